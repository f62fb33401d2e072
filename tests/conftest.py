"""Strict settings for every test: typed shapes, no silent broadcasting, warnings as errors."""

import contextlib
import fcntl
import gc
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator

import pytest
from absl import flags
from jaxtyping import install_import_hook

# Most of the time goes into compiling small programs, so tests do without most optimizations; with
# CDM_OPTIMIZED=1 they run as users do. XLA's former code generator, in one thread, takes a third of
# the time; later versions of JAX do not have it, and end at unknown flags.
OPTIMIZED = bool(os.environ.get("CDM_OPTIMIZED"))
if not OPTIMIZED and importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + QUICK

# Shapes and types in the package's signatures are checked at every call.
install_import_hook("cdm_jax", "beartype.beartype")

import jax  # noqa: E402

from tests import helpers  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
jax.config.update("jax_traceback_in_locations_limit", 0)  # a fifth of the time of lowering
gc.set_threshold(100_000, 50, 50)  # a quarter of the time of tracing
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which pytest never parses.


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(pytestconfig):
    """What one test has compiled, the others find, those of other workers and of later runs too."""
    jax.config.update("jax_compilation_cache_dir", str(pytestconfig.cache.mkdir("compiled")))
    # Smaller programs are compiled in less time than it takes to keep them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real patients; where there is none, the test is skipped."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("CDM_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real patients here: set CDM_REAL_DATA to their folder")
    return folder


@contextlib.contextmanager
def made_once(tmp_path_factory, name: str) -> Iterator[pathlib.Path]:
    """A folder that the first worker who needs it fills for all of them, while the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / name).mkdir(exist_ok=True)
        yield root / name


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a run whose every stage was trained to its end without a break."""
    with made_once(tmp_path_factory, "finished_run") as workdir:
        for stage in helpers.STAGES:  # of those that are finished nothing is trained
            helpers.train(stage, workdir)
    return workdir


@pytest.fixture(scope="session")
def evaluated_run(finished_run, tmp_path_factory) -> pathlib.Path:
    """The workdir of such a run whose every row has been scored."""
    with made_once(tmp_path_factory, "evaluated_run") as workdir:
        if not (workdir / "split.json").exists():
            helpers.copy_run(finished_run, workdir, helpers.STAGES)
        helpers.evaluate(workdir)
    return workdir


@pytest.fixture(scope="module")
def evaluated(evaluated_run, tmp_path_factory):
    """A run of its own, its patients, and their records with every row."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    helpers.copy_run(evaluated_run, workdir, (*helpers.STAGES, "evaluation"))
    return workdir, *helpers.evaluate(workdir)
