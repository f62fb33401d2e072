"""How a step runs on several devices: its numbers, what it exchanges, where its state is."""

import collections
import functools
import importlib.metadata

import numpy as np
import pytest

from benchmarks import scaling
from cdm_jax import parallel
from cdm_jax.errors import UserError
from tests.helpers import smoke_config
from tests.processes import BATCH, Process, child, free_port, report_of


@pytest.fixture(scope="module")
def report():
    """Three steps of a stage on one and on four devices, in each mode."""
    return functools.cache(lambda stage: report_of(child("modes", stage, devices=4))[stage])


def slow(stage):
    return pytest.param(stage, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "stage", ["mrm", *map(slow, ("pix2pix", "mdn", "cunet", "cyclegan", "diffusion"))]
)
def test_four_devices_compute_what_one_does(report, stage):
    """Losses, norms, BatchNorm, dropout, masks, noise and the pool of past images."""
    found = report(stage)
    alone = found["one"]["losses"]
    assert all(np.isfinite(list(row.values())).all() for row in alone)
    for mode in parallel.MODES:
        for one, other in zip(alone, found[mode]["losses"], strict=True):
            for name, value in one.items():
                assert other[name] == pytest.approx(value, rel=5e-6, abs=1e-6), (mode, name)


# What a step exchanges on four devices: how many of a kind, and their bytes. XLA joins small ones.
COUNTED_WITH = "0.10.2"
EXCHANGED = {
    "mrm": {
        "jit": {"all-reduce": (2, 84744)},
        "pmap": {"all-reduce": (4, 84752)},
        "fsdp": {"all-reduce": (13, 84832), "all-gather": (11, 82944)},
    },
    "pix2pix": {
        "jit": {"all-reduce": (79, 361376)},
        "pmap": {"all-reduce": (64, 313684)},
        "fsdp": {"all-reduce": (93, 361436), "all-gather": (20, 353792)},
    },
    "mdn": {
        "jit": {"all-reduce": (1, 61000)},
        "pmap": {"all-reduce": (3, 60492)},
        "fsdp": {"all-reduce": (19, 61144), "all-gather": (18, 57280)},
    },
    "cunet": {
        "jit": {"all-reduce": (1, 32988)},
        "pmap": {"all-reduce": (3, 32900)},
        "fsdp": {"all-reduce": (15, 33100), "all-gather": (14, 31616)},
    },
    "diffusion": {
        "jit": {"all-reduce": (1, 194764)},
        "pmap": {"all-reduce": (3, 194516)},
        "fsdp": {"all-reduce": (44, 195108), "all-gather": (43, 188864)},
    },
}
# Bytes of a state on each of them: whole, and in fsdp, where frozen stages stay whole.
AT_REST = {
    "mrm": (254476, 67852),
    "pix2pix": (928296, 235944),
    "mdn": (333084, 161244),
    "cunet": (282044, 187196),
    "diffusion": (779052, 212460),
}
STEPPED = [stage if stage == "mrm" else slow(stage) for stage in EXCHANGED]


@pytest.mark.parametrize("stage", STEPPED)
def test_what_a_step_exchanges_is_as_pinned(report, stage):
    if importlib.metadata.version("jax") != COUNTED_WITH:
        pytest.skip(f"counted with JAX {COUNTED_WITH}")
    for mode, expected in EXCHANGED[stage].items():
        found = report(stage)[mode]["collectives"]
        assert {k: (v["number"], v["bytes"]) for k, v in found.items()} == expected, mode


@pytest.mark.parametrize("stage", STEPPED)
def test_the_gradient_is_exchanged_once_and_no_activation(report, stage):
    """Beside it only single numbers: logged ones, and in fsdp the norm's part of each array.

    BatchNorm adds its sums, and but for pmap Pix2pix's discriminator, which sees real and
    synthetic images, has a gradient of each.
    """
    gradient, networks = report(stage)["bytes"], report(stage)["parameters"]
    arrays = sum(map(len, networks.values()))
    for mode in parallel.MODES:
        found = report(stage)[mode]["collectives"]
        assert set(found) - {"all-gather"} == {"all-reduce"}
        most = 1.25 * gradient if stage == "pix2pix" else gradient + 4 * (16 + arrays)
        assert 0.98 * gradient <= found["all-reduce"]["bytes"] <= most, mode


@pytest.mark.parametrize("stage", STEPPED)
def test_all_that_is_gathered_are_parameters(report, stage):
    """By their shapes, each once; Pix2pix's discriminator again when it has been updated."""
    for mode in ("jit", "pmap"):
        assert report(stage)[mode]["gathered"] == []
    networks = report(stage)["parameters"]
    again = networks["discriminator"] if stage == "pix2pix" else []
    shapes = collections.Counter(map(tuple, sum(networks.values(), again)))
    found = collections.Counter(map(tuple, report(stage)["fsdp"]["gathered"]))
    assert found and not found - shapes


@pytest.mark.parametrize("stage", STEPPED)
def test_a_step_takes_the_memory_of_the_state_before(report, stage):
    for mode in parallel.MODES:
        assert report(stage)[mode]["kept"] == 0, mode


@pytest.mark.parametrize("stage", STEPPED)
def test_a_device_keeps_its_share_of_the_state(report, stage):
    whole, share = AT_REST[stage]
    assert report(stage)["jit"]["at_rest"] == [whole] * 4
    assert report(stage)["fsdp"]["at_rest"] == [share] * 4


@pytest.mark.slow
def test_only_the_pools_new_images_are_gathered(report):
    """What CycleGAN's pools are told: synthetic images of both kinds, 32 x 32 x 2 floats each."""
    for mode in ("jit", "pmap"):
        found = report("cyclegan")[mode]["collectives"]["all-gather"]
        assert found["bytes"] == 2 * BATCH * 32 * 32 * 2 * 4


def test_a_timed_batch_is_shared_by_the_devices(finished_run):
    """A device that computes all of it would make two no faster than one."""
    found = report_of(child("timed", str(finished_run), devices=2))
    per_device = smoke_config("cdm").evaluate.batch_size
    assert (found["devices"], found["slices"], found["keys"]) == (2, per_device, [per_device])
    assert 0.45 < found["flops"] / found["flops alone"] < 0.55


HLO = """
  %all-reduce.1 = f32[3,4]{1,0} all-reduce(f32[3,4]{1,0} %x), replica_groups={{0,1}}
  ROOT %all-reduce.2 = (f32[5]{0}, bf16[], pred[2]{0}) all-reduce(f32[5]{0} %y, bf16[] %z, %w)
  %gathered = f32[8,2]{1,0} all-gather(f32[4,2]{1,0} %p), dimensions={0}
  %name.all-reduce = f32[7]{0} add(f32[7]{0} %a, f32[7]{0} %b)
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    class Program:
        def as_text(self):
            return HLO

    assert scaling.collectives(Program()) == {
        "all-reduce": {"number": 2, "bytes": 48 + 20 + 2 + 2, "largest": 48},
        "all-gather": {"number": 1, "bytes": 64, "largest": 64},
    }


def test_the_shapes_of_gathered_arrays_are_read():
    class Program:
        def as_text(self):
            return HLO

    assert scaling.gathered(Program()) == [(8, 2)]


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="unknown parallel 'ddp': allowed are jit, pmap, fsdp"):
        parallel.all_devices("ddp")


MEET = """
import jax
from cdm_jax import parallel
parallel.start()
parallel.wait_for_all("meeting")
print(jax.process_count(), jax.process_index(), jax.device_count())
"""
SLURM = {
    "SLURM_JOB_ID": "{port}",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "{place}",
    "SLURM_LOCALID": "{place}",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "{port}.0;tcp://127.0.0.1:1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "{place}",
    "OMPI_COMM_WORLD_LOCAL_RANK": "{place}",
}


@pytest.mark.slow
@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI], ids=["slurm", "open_mpi"])
def test_processes_find_each_other_by_what_their_launcher_sets(variables):
    """The variables that srun and mpirun set; neither is needed to see that JAX reads them."""
    port = free_port()
    pair = [
        Process(
            ["-c", MEET], 1, **{k: v.format(port=port, place=place) for k, v in variables.items()}
        )
        for place in range(2)
    ]
    for place, process in enumerate(pair):
        status, printed = process.finish(timeout=120)
        assert status == 0, printed[-3000:]
        assert f"2 {place} 2" in printed


def test_half_of_what_several_processes_need_is_refused():
    with pytest.raises(UserError, match="--num_processes and --process_id"):
        parallel.start(coordinator="127.0.0.1:1234")


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_tasks_of_an_unknown_launcher_do_not_run_alone(variable, monkeypatch):
    """MPICH and Intel MPI, and Open MPI 5, which says how many there are but not where."""
    monkeypatch.setenv(variable, "4")
    with pytest.raises(UserError, match=r"one of 4 tasks .* --num_processes=4 and --process_id"):
        parallel.start()
    monkeypatch.setenv(variable, "1")
    parallel.start()
