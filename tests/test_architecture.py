"""Imports point one way, and one file touches each outside thing. Read from the syntax trees."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "cdm_jax").rglob("*.py")) + sorted((ROOT / "configs").rglob("*.py"))
# What a room may import of the package, beside itself.
ALLOWED = {
    "errors": set(),
    "workers": {"errors"},
    "phantom": {"errors", "workers"},
    "data": {"errors", "files", "metrics", "phantom", "workers"},
    "metrics": {"errors"},
    "parallel": {"errors"},
    "draws": {"errors", "parallel"},
    "nn": {"errors", "parallel", "draws"},
    "diffusion": {"errors", "draws"},
    "optim": {"errors"},
    "precision": {"errors"},
    "tasks": {"errors", "draws"},
    "methods": {
        "errors",
        "parallel",
        "draws",
        "optim",
        "precision",
        "tasks",
        "nn",
        "diffusion",
        "methods",
    },
    "non_learned": {"errors", "data"},
    "files": {"errors"},
    "records": {"errors", "files", "metrics"},
    "report": {"errors", "files", "metrics", "records"},
}


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _imports(path, *, top_level=False):
    """Full names of everything that a file imports: `from a import b` gives a.b."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _importers(library):
    """Files that import a library anywhere, also within functions."""
    return {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in _imports(path))
    }


def _room(module):
    return module.split(".")[1] if module.count(".") else ""


def _neighbors(module):
    """Modules of this repository that a module imports."""
    found = set()
    for name in _imports(MODULES[module]):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name and name != "cdm_jax":
            found.add(name)
    return found - {module}


def test_there_is_something_to_check():
    assert len(MODULES) > 40
    assert "cdm_jax.methods.cdm.cunet" in MODULES
    assert _neighbors("cdm_jax.methods.cdm.cunet") >= {"cdm_jax.methods.cdm.mdn"}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room):
    modules = [m for m in MODULES if m.startswith("cdm_jax") and _room(m) == room]
    assert modules
    for module in modules:
        rooms = {_room(n) if n.startswith("cdm_jax") else n for n in _neighbors(module)}
        assert rooms - {room} <= ALLOWED[room], module


def test_nothing_imports_the_command_line():
    for module in MODULES:
        assert "cdm_jax.main" not in _neighbors(module), module
        if module != "cdm_jax.main":
            assert "cdm_jax.commands" not in _neighbors(module), module


def test_the_loop_knows_no_method():
    for module in MODULES:
        if _room(module) != "methods":
            assert not {n for n in _neighbors(module) if n.startswith("cdm_jax.methods.")} - {
                "cdm_jax.methods.base"
            }, module


def test_the_package_imports_nothing_that_stands_beside_it():
    for module in MODULES:
        if module.startswith("cdm_jax"):
            outside = {name.split(".")[0] for name in _imports(MODULES[module])}
            assert not outside & {"configs", "experiments", "benchmarks", "tests"}, module


def test_experiments_import_no_benchmarks():
    for path in (ROOT / "experiments").glob("*.py"):
        assert "benchmarks" not in {name.split(".")[0] for name in _imports(path)}, path


def test_configs_import_nothing_but_ml_collections_and_each_other():
    for module in MODULES:
        if module.startswith("configs"):
            allowed = {"ml_collections", "configs", "difflib"}
            assert {name.split(".")[0] for name in _imports(MODULES[module])} <= allowed, module


@pytest.mark.parametrize("room", ["data", "metrics", "report"])
def test_rooms_that_run_in_workers_or_on_records_import_no_jax(room):
    learning = {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}
    for module, path in MODULES.items():
        if _room(module) == room:
            # The pipeline's last step, which no worker runs, puts batches on devices.
            names = _imports(path, top_level=module == "cdm_jax.data.pipeline")
            assert not {name.split(".")[0] for name in names} & learning, module


def test_scoring_loads_no_jax_at_all():
    """Indirect imports count as well; Grain brings its own, so `data` is looked at without it."""
    script = (
        "import sys, pkgutil, importlib, cdm_jax.metrics, cdm_jax.report\n"
        "for package in (cdm_jax.metrics, cdm_jax.report):\n"
        "    for m in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(m.name)\n"
        "import cdm_jax.data.cohort, cdm_jax.data.splits, cdm_jax.phantom.cohort, cdm_jax.scoring\n"
        "import cdm_jax.doctor\n"
        "print(sorted(m for m in sys.modules if m in ('jax', 'flax', 'optax')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("orbax", {"cdm_jax.checkpoint"}),
        ("tensorboardX", {"cdm_jax.writer"}),
        ("grain", {"cdm_jax.data.pipeline"}),
        (
            "nibabel",
            {"cdm_jax.data.formats", "cdm_jax.data.nifti", "cdm_jax.phantom.cohort"},
        ),
        ("nilearn", {"cdm_jax.phantom.templates"}),
        ("clu", {"cdm_jax.guard", "cdm_jax.train"}),
        (
            "optax",
            {
                *("cdm_jax.optim", "cdm_jax.end_fitting"),
                *(m for m in MODULES if _room(m) == "methods"),
            },
        ),
    ],
)
def test_one_place_touches_each_outside_thing(library, allowed):
    importers = _importers(library)
    assert importers
    assert importers <= allowed


def test_the_mesh_is_made_in_one_place():
    for module, path in MODULES.items():
        touched = {name for name in _imports(path) if name.startswith("jax.sharding")}
        assert not touched or module == "cdm_jax.parallel", module


def test_no_module_imports_itself_through_others():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for neighbor in sorted(_neighbors(module)):
                visit(neighbor)
            done.add(path.pop())

    for module in MODULES:
        visit(module)
