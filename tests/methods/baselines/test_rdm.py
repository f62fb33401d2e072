import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.methods.baselines import rdm
from cdm_jax.methods.baselines.rdm import ResidualBlock, SimpleMLP
from cdm_jax.methods.cdm.mdn import MDN
from configs import common

SHAPE = jax.ShapeDtypeStruct
TINY = {
    "data.size": 16,
    "mrm.patch": 4,
    "mrm.mask_cell": 4,
    "mrm.width": 16,
    "rdm.optimizer.warmup_steps": 0,
    "rdm.optimizer.schedule": "constant",
    "rdm.optimizer.learning_rate": 3e-3,
}


def _config(changes=None):
    config = common.smoke(common.base("rdm"))
    config.update_from_flattened_dict(TINY | (changes or {}))
    return config


@pytest.fixture(scope="module")
def begun(images, start):
    """The stage, its fresh state over an MRM that measured this batch, and the batch."""
    batch = images(0)
    mrm, state, _ = start("mrm")
    measured = mrm.finish(state, lambda: [batch], list, jax.random.key(0))
    method = rdm.create(_config())
    frozen = {"mrm": {"params": measured.params, "statistics": measured.statistics}}
    init = jax.jit(lambda key, frozen: method.init(key, batch, frozen))
    return method, init(jax.random.key(0), frozen), batch


@pytest.mark.parametrize(
    ("context", "parameters"),
    # The class-conditional one was counted with its table of 1000 classes of 512 features.
    [(None, 62_721_280), (512, 72_688_896 - 1000 * 512)],
)
def test_the_published_network_has_as_many_parameters(context, parameters):
    network = SimpleMLP(representation_width=256, width=1536, blocks=12, time_width=256)
    params = jax.eval_shape(
        network.init,
        jax.random.key(0),
        SHAPE((1, 256), jnp.float32),
        SHAPE((1,), jnp.int32),
        context and SHAPE((1, context), jnp.float32),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_the_paper_scale_stage_is_rcgs_diffusion_over_the_mrms_representation():
    method = rdm.create(common.base("rdm"))
    assert isinstance(method, MDN)
    assert (method.encoder, method.depends_on) == (None, ("mrm",))
    network = method.denoiser
    assert (network.width, network.blocks, network.time_width) == (1536, 12, 256)
    assert network.representation_width == 384
    betas = 1 - np.asarray(method.sampler.alpha_bar) / [1, *method.sampler.alpha_bar[:-1]]
    assert betas[0] == pytest.approx(0.0015)
    assert betas[-1] == pytest.approx(0.0195)
    np.testing.assert_allclose(np.diff(np.sqrt(betas)), np.diff(np.sqrt(betas)).mean(), rtol=1e-6)
    assert method.sampler.alpha_bar[-1] == pytest.approx(1.4e-4, rel=0.05)
    assert (method.sampler.prediction, method.sampler.clip) == ("x0", None)
    assert (method.sampler.num_steps, method.sampler.eta) == (250, 1.0)


def _unit(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def _silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("with_context", [False, True])
def test_a_residual_block_is_what_is_published(stir, with_context):
    """No norm before the layers of time and context, one before each of the other two."""
    generator = np.random.default_rng(0)
    x, time, context = (generator.normal(size=(3, width)) for width in (8, 5, 6))
    given = [jnp.asarray(a, jnp.float32) for a in (x, time)]
    given.append(jnp.asarray(context, jnp.float32) if with_context else None)
    block = ResidualBlock()
    fresh = block.init(jax.random.key(0), *given)
    np.testing.assert_array_equal(block.apply(fresh, *given), given[0])
    params = stir(fresh)["params"]

    def linear(name, values):
        layer = params[name]["Conv_0"]["conv"]
        return values @ np.asarray(layer["kernel"])[0, 0] + np.asarray(layer["bias"])

    def norm(name, values):
        return _unit(values) * np.asarray(params[name]["scale"]) + np.asarray(params[name]["bias"])

    h = linear("Linear_0", _silu(norm("LayerNorm_0", x))) + linear("Linear_1", _silu(time))
    if with_context:
        h += linear("Linear_2", _silu(context))
    out = _silu(norm("LayerNorm_1", h)) @ np.asarray(params["Dense_0"]["kernel"])
    expected = x + out + np.asarray(params["Dense_0"]["bias"])
    np.testing.assert_allclose(block.apply({"params": params}, *given), expected, atol=1e-4)


def test_training_starts_at_the_power_of_y_falls_and_leaves_the_mrm_alone(begun, train, same):
    method, state, batch = begun
    trained, losses = train(method, state, batch, 300)
    assert float(losses[0]) == pytest.approx(1, abs=0.02)  # it answers zero, y is standardized
    assert losses[-100:].mean() < 0.8
    assert same(trained.frozen, state.frozen)
    assert int(trained.step) == 300


def test_samples_know_nothing_of_the_patient(begun, images, stir):
    method, state, batch = begun
    model = {"params": stir(state.params)}
    samples = jax.jit(method.samples, static_argnums=3)
    one = samples(model, batch["source"], jax.random.key(3), 2)
    assert one.shape == (2, 4, 16)
    np.testing.assert_array_equal(one, samples(model, images(9)["source"], jax.random.key(3), 2))
    assert (one[0] != one[1]).all()


def test_it_can_be_made_for_another_stage():
    config = common.smoke(common.base("rcg"))
    assert (
        rdm.create(config, "rdm").denoiser == rdm.create(common.smoke(common.base("rdm"))).denoiser
    )


def test_settings_that_do_not_fit_are_refused_by_name():
    with pytest.raises(UserError, match="unknown noise schedule 'cosine'"):
        rdm.create(_config({"rdm.schedule": "cosine"}))
    with pytest.raises(UserError, match="num_steps is 0"):
        rdm.create(_config({"rdm.sampler.num_steps": 0}))


def test_it_is_a_stage_and_no_translator(begun):
    assert isinstance(begun[0], base.Method)
    assert not isinstance(begun[0], base.Translator)


def test_its_end_needs_no_data_and_changes_nothing(begun):
    """MDN measures there how far C-UNet may trust a sample; nobody asks that of RDM."""
    method, state, _ = begun

    def unread():
        raise AssertionError("slices were read")

    assert method.finish(state, unread, unread, jax.random.key(0)) is state
