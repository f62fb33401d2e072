"""The table of sizes against numbers counted elsewhere, and against networks known by hand."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from benchmarks import networks, parameters, records
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.shapes import example, start
from configs import brats, common
from configs.common import SYSTEMS

CONFIG = brats.get_config("all")
RESNET, SINGLE, PAIR = 11_371_906, 2_763_713, 2_766_657
# Parameters of every network, and how often it stands in the system: by running the official
# code with two sources and two targets at 256 pixels.
PUBLISHED = {
    "pix2pix": {"generator": (54_410_882, 1), "discriminator": (PAIR, 1)},
    "cyclegan": {
        "to_target": (RESNET, 1),
        "to_source": (RESNET, 1),
        "discriminator": (SINGLE, 2),
    },
    "gcgan": {"generator": (RESNET, 1), "discriminator": (SINGLE, 2)},
    "cut": {
        "network": (RESNET, 1),
        "projection": (560_128, 1),
        "discriminator": (SINGLE, 1),
    },
    "reggan": {
        "network": (RESNET, 1),
        "registration": (2_058_594, 1),
        "discriminator": (SINGLE, 1),
    },
    "resvit_cnn": {"generator": (11_377_154, 1), "discriminator": (PAIR, 1)},
    "resvit": {"generator": (123_447_810, 1), "discriminator": (PAIR, 1)},
    "diffusion": {"network": (311_017_538, 1)},
}


@pytest.fixture(scope="module")
def traced():
    """`traced(stage)`: its networks at the paper's scale, traced once."""
    found = {}

    def trace(stage):
        if stage not in found:
            found[stage] = networks.networks(CONFIG, stage)
        return found[stage]

    return trace


@pytest.mark.parametrize("stage", PUBLISHED)
def test_networks_are_as_large_as_those_of_the_official_code(traced, stage):
    found = {n.name: (n.parameters(), n.copies) for n in traced(stage)}
    assert found == PUBLISHED[stage]


def test_the_rdm_is_the_published_one_at_the_width_of_our_representation(traced):
    """384 features of y instead of 256: more inputs of the first layer, outputs of the last."""
    (network,) = traced("rdm")
    assert network.parameters() == 62_721_280 + 128 * 1536 + 128 * (1536 + 1)


def network_of(module, *shape):
    """A network of one input."""
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, networks.key(), inputs)
    return networks.Network(name="", module=module, inputs=((inputs,), {}), variables=variables)


def test_a_patchgan_over_four_channels_is_the_published_one():
    assert network_of(PatchGAN(64), 1, 256, 256, 4).parameters() == 2_765_761


# Multiplications, as counted there by hooks on layers, padding included, in thousands of millions.
@pytest.mark.parametrize(
    ("stage", "name", "published"),
    [
        ("cyclegan", "to_target", 49.1),
        ("cyclegan", "discriminator", 3.13),
        ("cut", "discriminator", 6.37),
        ("cut", "network", 63.7),
        ("pix2pix", "generator", 6.00),
    ],
)
def test_operations_are_twice_the_published_multiplications(traced, stage, name, published):
    (network,) = [n for n in traced(stage) if n.name == name]
    assert network.flops() / 2e9 == pytest.approx(published, rel=0.07)


def test_a_linear_layer_is_counted_as_by_hand():
    network = network_of(nn.Dense(8), 3, 4)
    assert network.parameters() == 4 * 8 + 8
    assert network.flops() == 2 * 3 * 4 * 8 + 3 * 8  # products and sums, and the bias


@pytest.mark.slow
def test_every_trained_stage_has_networks_that_hold_all_its_parameters():
    """But for single vectors that stages keep beside their networks, such as a learned null."""
    config = brats.get_config("all,smoke")
    for stage in SYSTEMS["all"]:
        found = networks.networks(config, stage)
        state = start(config, stage, example(config, 1))
        beside = networks.size_of(state.params.get("null", ()))
        total = sum(n.copies * n.parameters() for n in found)
        assert total + beside == networks.size_of(state.params), stage


@pytest.mark.parametrize(
    ("stage", "used", "kept"),
    [
        ("m1", ("m1",), ("m1",)),
        ("cunet", ("cunet", "mdn"), ("cunet", "mdn", "mrm")),
        ("rcg", ("rcg", "rdm"), ("rcg", "rdm", "mrm")),
    ],
)
def test_inference_leaves_out_what_only_training_needs(stage, used, kept):
    """The encoder of the targets; the learned null stands for what is not sampled."""
    config = brats.get_config("all,smoke")
    row = parameters.stage_row(config, stage, peak=False)

    def total(stages):
        return sum(n.parameters() for name in stages for n in networks.networks(config, name))

    assert row["inference"] == total(used)
    null = row["trained"] - total((stage,))
    assert null == (0 if stage == "m1" else config.mrm.width)
    assert row["total"] == total(kept) + null


@pytest.mark.slow
def test_the_command_writes_a_record_and_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(brats, "get_config", _smoke)
    monkeypatch.setattr(parameters, "DOCS", tmp_path)
    monkeypatch.setattr(parameters, "COMPILED", tmp_path / "compiled")
    parameters.main(["--size=32", "--stages=m1,mdn", "--peak"])
    record = json.loads((tmp_path / "parameters.json").read_text())
    assert [row["network"] for row in record["networks"]] == ["network", "denoiser", "encoder"]
    rows = {row["stage"]: row for row in record["stages"]}
    assert set(rows) == {"m1", "mdn"}
    assert "inference" in rows["m1"] and "inference" not in rows["mdn"]
    assert all(row["peak_bytes"] > 4 * row["trained"] for row in rows.values())
    assert all(row["step_flops"] > 0 for row in rows.values())
    printed = capsys.readouterr().out
    assert f"{rows['m1']['trained']:,}" in printed


def test_the_committed_record_says_what_steps_take_and_where_it_was_planned():
    content = records.load_results("parameters")
    peaks = {row["stage"]: row["peak_bytes"] for row in content["stages"]}
    assert set(peaks) == set(SYSTEMS["all"])
    held = {row["stage"]: 4 * row["trained"] for row in content["stages"]}
    assert all(peaks[stage] > 3 * held[stage] for stage in peaks)  # with both moments of Adam
    plans = {(row["batch"], row["remat"]): row["peak_bytes"] for row in content["plans"]}
    assert plans[12, True] == peaks["diffusion"] < plans[12, False]
    assert plans[6, False] < plans[12, False]
    text = "\n".join(parameters.tables(content))
    assert f"as XLA's {content['backend']} backend plans it (JAX {content['jax']})" in text
    assert f"| 12 | 1 | off | {content['plans'][1]['step_flops'] / 1e12:.2f} |" in text


def _smoke(argument):
    stage, values = common.parse(argument)
    assert (stage, values) == ("all", {"size": 32})
    return common.smoke(common.base(stage))


@pytest.mark.slow
def test_the_variants_are_the_published_ones():
    config = brats.get_config("all")
    found = {network.name: network.parameters() for network in parameters.variants(config)}
    assert found == {
        "192, attention 32/16/8": 311_017_538,
        # 138,288,772 with the learned variance's two more outputs.
        "128, attention 32/16/8": 138_288_772 - 2 * (128 * 9 + 1),
        "128, attention 16/8, plain": 124_053_250,
        "64, attention 16": 32_964_034,
    }
