"""The command for efficiency: turns, equal networks, operations and compilations, what is drawn."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import efficiency
from benchmarks.networks import networks
from benchmarks.parts.rows import SkippedError
from benchmarks.studies import contest, growth, limits, start_side, telling, worker
from benchmarks.studies.cases import case, config_of, torch_options
from benchmarks.studies.loaders import PATIENTS
from benchmarks.studies.metrics_side import BRAIN
from benchmarks.studies.patients import simulate

METRIC = {"metric": "mae", "library": "cdm_jax", "smoke": True}


@pytest.fixture
def setting(tmp_path):
    return contest.Setting(smoke=True, turns=2, workdir=tmp_path)


def test_contenders_are_timed_in_processes_of_their_own_and_outlive_each_other(tmp_path):
    folder = str(simulate(tmp_path, smoke=True))
    good, bad = (
        contest.Contender(
            names={"library": name}, side="metrics_side.measure", given=METRIC | {"folder": place}
        )
        for name, place in (("ours", folder), ("lost", str(tmp_path / "nowhere")))
    )
    ours, lost = contest.contest([good, bad], turns=2)
    assert ours["library"] == "ours" and ours["milliseconds"] > 0 and ours["spread"] >= 0
    assert 0 < ours["values"]["mae"] < 1
    assert lost.keys() == {"library", "error"} and "nowhere" in lost["error"]


def test_a_library_that_is_missing_is_named(monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith("benchmarks.") and "torch_" in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SkippedError, match="PyTorch is not installed"):
        worker.prepare("torch_side.product", {"side": 2, "smoke": True})


def test_networks_of_different_sizes_are_not_compared():
    contest.check_equal([{"parameters": 3}, {"skipped": "none"}, {"parameters": 3}])
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        contest.check_equal([{"parameters": 3}, {"parameters": 4}])


def test_times_are_those_of_the_standard_over_ones_own():
    rows = [
        {"mode": "ours", "milliseconds": 2.0},
        {"mode": "eager", "milliseconds": 6.0},
        {"mode": "compiled", "error": "no compiler"},
    ]
    found = contest.beside(rows, {"mode": "eager"})
    assert [row.get("times") for row in found] == [3, 1, None]
    assert contest.beside(rows, {"mode": "of another library"}) == rows


def test_the_step_of_a_network_alone_has_as_many_parameters_as_pytorch_is_told():
    stage = "mdn"
    one = case("smoke", stage, 2)
    facts, turn = worker.prepare("jax_side.network", {"case": one, "smoke": True})
    told = torch_options(one)["networks"][stage]["parameters"]
    assert (
        facts["parameters"] == told == sum(n.parameters() for n in networks(config_of(one), stage))
    )
    assert turn() > 0


@pytest.mark.parametrize(
    ("stage", "part", "flops"), [("m1", "step", 43_584_976), ("mdn", "codes", 590_324)]
)
def test_the_operations_of_a_program_are_known(stage, part, flops):
    given = {"part": part, "case": case("smoke", stage, 2), "smoke": True, "counted": True}
    facts, turn = worker.prepare("jax_side.program", given)
    assert facts["flops"] == pytest.approx(flops, rel=0.02)
    assert facts["bytes"] > 0 and facts["peak_bytes"] > 0
    assert turn() > 0


def test_what_is_compiled_is_counted_by_function():
    @jax.jit
    def doubled(x):
        return 2 * x

    with start_side.compiled_functions() as found:
        for size in (3, 4, 3, 4):
            doubled(np.zeros(size, np.float32))
    doubled(np.zeros(5, np.float32))
    assert [len(times) for name, times in found.items() if "doubled" in name] == [2]
    rows = start_side.listed({"large": [6.0, 3.0], "small": [0.1], "smaller": [0.1]})
    assert rows[0] == {"function": "large", "compilations": 2, "compile_seconds": 9}
    assert rows[1]["function"] == "2 small ones" and rows[1]["compilations"] == 2


def test_the_limit_is_the_longer_of_computing_and_moving():
    """At 100 Gflop/s and 10 GB/s: 1 Gflop takes 10 ms, 1 GB takes 100 ms."""
    rows = [
        {"what": limits.PRODUCT, "flops": 1e9, "milliseconds": 10},
        {"what": limits.PRODUCT, "flops": 1e9, "milliseconds": 20},
        {"what": limits.READING, "bytes": 1e9, "milliseconds": 100},
        {"what": "dense", "flops": 2e9, "bytes": 1e7, "milliseconds": 40},
        {"what": "thin", "flops": 1e7, "bytes": 1e9, "milliseconds": 125},
        {"what": "broken", "error": "no memory"},
    ]
    *_, dense, thin, broken = limits.placed(rows)
    assert dense["share_of_limit"] == pytest.approx(0.5) and dense["bound_by"] == "computing"
    assert thin["share_of_limit"] == pytest.approx(0.8) and thin["bound_by"] == "memory"
    assert broken == rows[-1]


def test_exponents_are_those_of_power_laws():
    rows = [
        {"value": n, "milliseconds": 3 * n**2, "peak_bytes": 7 * n, "flops": n**2.5}
        for n in (2, 4, 8, 16)
    ]
    found = growth.exponents([*rows, {"value": 32, "error": "no memory"}])
    assert found == pytest.approx(
        {"exponent_of_time": 2, "exponent_of_memory": 1, "exponent_of_operations": 2.5}
    )
    assert "skipped" in growth.exponents(rows[:1])


def _record():
    """A record with a row or two of each study."""
    timed = {"milliseconds": 10.0, "spread": 0.1}
    step = {"stage": "cunet", "scale": "paper", "batch": 2, "slices_per_second": 2.0} | timed
    alone = {"library": "JAX", "mode": "network alone", "times": 0.9}
    whole = {"library": "JAX", "mode": "the loop's step", "times": 0.8}
    eager = {"library": "PyTorch", "mode": "eager", "times": 1.0}
    rate = {"gflop_per_second": 50.0, "gb_per_second": 5.0, "intensity": 10.0}
    phases = {"imports": 2.0, "state": 1.0, "compile": 1.0, "step": 1.5, "seconds": 5.5}
    rows = {
        "training": [step | alone, step | whole, step | eager, {"stage": "m1", "error": "none"}],
        "sampling": [step | {"stage": "mdn", "batch": 1} | alone | {"times": 2.5}],
        "roofline": [
            {"what": limits.PRODUCT, "gflop_per_second": 100.0} | timed,
            {"what": limits.READING, "gb_per_second": 10.0} | timed,
            {"what": "mdn codes", "scale": "paper", "batch": 1, "share_of_limit": 0.5}
            | rate
            | timed,
        ],
        "metrics": [
            {"metric": BRAIN, "library": "cdm_jax", "times": 1.0, "millionths": 0.0} | timed,
            {"metric": BRAIN, "library": "scikit-image", "times": 0.125, "millionths": 3.0} | timed,
            {"metric": BRAIN, "library": "torchmetrics", "times": 0.1, "millionths": 40.0} | timed,
        ],
        "loading": [
            {"library": "cdm_jax", "loader": "ours", "slices_per_second": 40.0} | timed,
            {"library": "cdm_jax", "loader": "slow", "slices_per_second": 4.0, "milliseconds": 99},
            {"library": "MONAI", "loader": PATIENTS, "slices_per_second": 4, "milliseconds": 110},
            {"library": "MONAI", "loader": "slices", "slices_per_second": 50, "milliseconds": 8.0},
            {"library": "MONAI", "loader": "none", "error": "no memory"},
        ],
        "frames": [
            {"system": name, "N": n, "frames_per_second": 60.0 / n, "times": times}
            for name, times in (("CDM", 60.0), ("Diffusion", 1.0))
            for n in (10, 30)
        ],
        "start": [
            {"what": "", "scale": "small", "cache": cache} | phases for cache in ("cold", "warm")
        ],
        "compilations": [
            {"run": "", "function": "step", "compilations": 1, "compile_seconds": 1.0},
            {"run": "", "function": "9 small ones", "compilations": 12, "compile_seconds": 0.1},
        ],
        "growth": [
            {"program": "cunet step", "grows": "N", "value": 2, "peak_bytes": 3, "flops": 4}
            | timed,
            {"program": "cunet step", "grows": "N", "exponent_of_time": 1.0},
        ],
    }
    return {
        "machine": {"processor": "x", "cores": 2, "jax": "0"},
        "smoke": False,
        "studies": {name: {"rows": found, "turns": 5} for name, found in rows.items()},
    }


def test_what_was_wanted_is_held_to_the_record():
    content = _record()
    assert list(content["studies"]) == list(efficiency.STUDIES) == list(telling.TOLD)
    reached = {
        row["what"]: (row["reached"], row["met"]) for row in telling.wanted(content["studies"])
    }
    assert reached == {
        "C-UNet's step, times eager PyTorch": (0.9, False),
        "MDN's sampling at batch 1, times eager PyTorch": (2.5, True),
        "MDN's sampling at batch 1, share of the limit": (0.5, False),
        "CDM's frames at N = 30, times Diffusion's": (60, True),
        "input, times MONAI's cached loader of patients": (11, True),
        "input, times the fastest of MONAI's cached loaders": (0.8, False),
        "input, times C-UNet's step": (20, True),
        "volume metrics in the brain, times scikit-image": (8, True),
        "metrics, distance from scikit-image, millionths": (3, True),
        "warm start to the first step, seconds": (5.5, True),
        "compilations of a function, at most": (1, True),
    }
    assert telling.wanted({"frames": {"rows": [{"system": "CDM", "N": 30, "error": "x"}]}}) == []


def test_the_record_is_drawn_as_far_as_it_goes(tmp_path, capsys):
    path, content = tmp_path / "record.json", _record()
    content["studies"]["frames"] = {"rows": [], "turns": 5, "error": "RuntimeError: no memory"}
    path.write_text(json.dumps(content))
    efficiency.main(["--show", f"--record={path}"])
    text = (tmp_path / "efficiency.md").read_text()
    assert "The study was ended by an error: RuntimeError: no memory." in text
    assert all(f"**{name}.**" in text for name in efficiency.STUDIES)
    assert "| share of limit |" in text and "peak bytes" in text.split("**growth.**")[1]
    assert (tmp_path / "efficiency.png").stat().st_size > 20_000
    capsys.readouterr()


def test_a_record_grows_study_by_study_and_keeps_what_an_error_ends(setting, tmp_path, monkeypatch):
    def ends(_):
        yield {"a": 1}
        raise RuntimeError("out of memory")

    def other(_):
        yield {"b": jnp.float32(2).item()}

    path = tmp_path / "record.json"
    monkeypatch.setattr(efficiency, "STUDIES", {"first": ends, "second": other})
    efficiency.measure(["second"], setting, path)
    efficiency.measure(["first"], setting, path)
    studies = json.loads(path.read_text())["studies"]
    assert list(studies) == ["first", "second"]
    assert studies["first"]["rows"] == [{"a": 1}] and "out of memory" in studies["first"]["error"]
    assert studies["second"]["rows"] == [{"b": 2}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--studies=trainin"], "unknown study 'trainin' (did you mean training?)"),
        (["--turns=0"], "--turns is 0"),
        (["--show"], "there is no record"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments, words, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: ") as caught:
        efficiency.main([*arguments, f"--record={tmp_path / 'none.json'}"])
    assert words in str(caught.value)


def test_a_record_of_another_machine_is_not_added_to(setting, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(_record()))
    with pytest.raises(efficiency.UserError, match="give another --record"):
        efficiency.measure(["frames"], setting, path)


@pytest.mark.slow
def test_the_smoke_form_makes_every_study(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    path = tmp_path / "record.json"
    efficiency.main(["--smoke", "--turns=1", f"--record={path}"])
    studies = json.loads(path.read_text())["studies"]
    assert list(studies) == list(efficiency.STUDIES)
    for name, study in studies.items():
        assert "error" not in json.dumps(study), name
        assert study["rows"], name
    assert {row["library"] for row in studies["training"]["rows"]} == {"JAX", "PyTorch"}
    compared = [row for row in studies["metrics"]["rows"] if "millionths" in row]
    for row in compared:  # PyTorch's libraries compute a volume's SSIM in single precision
        exact = row["library"] in ("cdm_jax", "scikit-image")
        assert row["millionths"] < (10 if exact else 1000), row
    efficiency.main(["--show", f"--record={path}"])
    assert (tmp_path / "efficiency.png").exists()
