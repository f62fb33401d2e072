"""How long the scores of a patient of BraTS' size take on this machine's cores, and what memory.

  python -m benchmarks.scoring [--before=<checkout of another commit>] [--show]

One simulated patient stands for several, whose images are the truth made darker; no network runs.
Each checkout scores them in a process of its own, in turn with the other. Where other programs use
the same cores, compare processor times. Writes `benchmarks/results/scoring.json`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from rich.table import Table

from benchmarks.records import load_results, save_results
from cdm_jax.phantom import PhantomSettings, write_cohort
from cdm_jax.workers import cores
from cdm_jax.writer import console

NAME = "scoring"
PATIENTS, ROWS = 2, 4  # an evaluation of CDM and M1 scores 12 rows
HERE = pathlib.Path(__file__).parents[1]
GRID = PhantomSettings(num_patients=1, shape=(240, 240, 155), voxel_mm=1.0)  # BraTS' own
# Runs with either checkout's package.
CHILD = """
import dataclasses, json, pathlib, resource, sys, time
import numpy as np
from types import SimpleNamespace
from cdm_jax import evaluate
from cdm_jax.data.prepare import PrepareSettings
from cdm_jax.data.subjects import find_subjects
try:
    from cdm_jax.data.cohort import prepare
except ImportError:
    from cdm_jax.data.prepare import prepare

if __name__ == "__main__":
    root, cache, patients, rows, number = json.loads(sys.argv[1])
    settings = PrepareSettings(
        sources=("t1", "t2"), targets=("t1c", "t2f"), size=256, minimum_brain=0.01
    )
    (files,) = find_subjects(root, modalities=settings.sources + settings.targets)
    (subject,) = prepare([files], settings, pathlib.Path(cache), num_workers=1)
    names = [f"patient {n}" for n in range(patients)]
    dataset = SimpleNamespace(subjects=dict.fromkeys(names, files))
    truth = np.asarray(subject.slices)[..., 2:].astype(np.float32) / 65535

    def pending():
        for name in names:
            images = {f"row {n}": truth * np.float32(0.9 - n / 100) for n in range(rows)}
            one = dataclasses.replace(subject, subject_id=name)
            yield evaluate._Pending(one, pathlib.Path(cache, name), {"rows": {}}, images)

    found = []
    evaluate.write_record = lambda path, record: found.append(record)
    conventions = ("paper", "volume")
    start = time.perf_counter()
    if hasattr(evaluate, "_Scoring"):
        from cdm_jax import workers
        with workers.pool(number) as pool:
            list(evaluate._Scoring(dataset, conventions, pool, number, {}).run(pending()))
    else:
        old = evaluate._Evaluation.__new__(evaluate._Evaluation)
        old._config = SimpleNamespace(evaluate=SimpleNamespace(conventions=conventions))
        old._dataset = dataset
        evaluate._one_ahead(pending(), lambda made: made, old.score)
    seconds = time.perf_counter() - start
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "seconds": seconds / patients,
        "processor_seconds": sum(u.ru_utime + u.ru_stime for u in used) / patients,
        "peak_gib": used[0].ru_maxrss / 2**20,
        "worker_peak_gib": used[1].ru_maxrss / 2**20,
        "scores": found[0]["rows"]["row 3"],
    }))
"""


def measure(before: pathlib.Path | None, repeats: int) -> None:
    """Scores the patients with each checkout in turn, and writes the record."""
    checkouts = ({"before": before.absolute()} if before else {}) | {"now": HERE}
    found: dict[str, list[dict[str, Any]]] = {code: [] for code in checkouts}
    with tempfile.TemporaryDirectory() as name:
        console.print("simulating a patient of BraTS' grid")
        write_cohort(pathlib.Path(name, "patients"), GRID, 1)
        script = pathlib.Path(name, "child.py")
        script.write_text(CHILD)
        for turn in range(repeats):
            for code, checkout in checkouts.items():
                console.print(f"{code}, {turn + 1} of {repeats}")
                cache = f"{name}/{code}"
                given = json.dumps([f"{name}/patients", cache, PATIENTS, ROWS, cores()])
                done = subprocess.run(
                    [sys.executable, str(script), given],
                    env=os.environ | {"PYTHONPATH": str(checkout)},
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                found[code].append(json.loads(done.stdout.splitlines()[-1]))
    scores = [row.pop("scores") for rows in found.values() for row in rows]
    content = {
        "command": f"python -m benchmarks.{NAME} --before=<checkout> --repeats={repeats}",
        "machine": f"CPU, {cores()} cores, shared with other programs",
        "cores": cores(),
        "patients": PATIENTS,
        "rows": ROWS,
        "identical": all(score == scores[0] for score in scores),
        "found": found,
    }
    save_results(NAME, content)


def median(code: str, name: str) -> float:
    """Of a record's turns."""
    return statistics.median(row[name] for row in load_results(NAME)["found"][code])


def show() -> None:
    """Prints the record's table."""
    content = load_results(NAME)
    table = Table(title=f"Scores of {content['rows']} rows of a patient; {content['machine']}")
    names = list(next(iter(content["found"].values()))[0])
    for heading in ("code", *names):
        table.add_column(heading)
    for code in content["found"]:
        table.add_row(code, *(f"{median(code, name):.1f}" for name in names))
    console.print(table)


def main() -> None:
    """Measures unless asked not to, then prints the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=pathlib.Path, help="checkout of a commit to compare with")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each checkout")
    parser.add_argument("--show", action="store_true", help="only print the committed record")
    options = parser.parse_args()
    if not options.show:
        measure(options.before, options.repeats)
    show()


if __name__ == "__main__":
    main()
