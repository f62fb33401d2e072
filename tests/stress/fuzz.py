"""Broken inputs by the thousand: each gives a result, or one line that names what is broken.

  python -m tests.stress.fuzz --cases=10000 [--seed=0] [--kinds=image,tree] [--record=<json>]

A case is an intact input of some kind, damaged at random and given to the code that reads it. Only
`UserError` may be raised, as only it is printed in one line. A case fails by any other exception,
by a message that does not name the file, by over 5 s of CPU, and by changing a file that it was
given. A failed case is named by its kind and seed; `--kinds=<kind> --seed=<seed> --cases=1` runs
it again. The process may not need more than 1 GiB of memory.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console
from rich.progress import track

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # of `odd_inputs`

import odd_inputs

from cdm_jax import arguments, checkpoint, config, doctor, score, seals, shipped
from cdm_jax.data.cohort import prepare
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import image_like
from cdm_jax.data.prepare import PrepareSettings
from cdm_jax.data.splits import Split, load_split, save_split
from cdm_jax.data.subjects import find_subjects
from cdm_jax.errors import UserError
from cdm_jax.examination import examine_subject
from cdm_jax.writer import console
from tests.stress import mutations

SECONDS = 5
BYTES = 2**30
SOURCES = ("t1", "t2")
SETTINGS = PrepareSettings(sources=SOURCES, targets=("t1c",), size=32, minimum_brain=0.01)
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "phantom.py"
KEYS = ("data.size", "seed", "data.sources", "cunet.features", "cunet.train.num_steps", "data.root")
KEYS += ("data.patterns.t1", "precision", "cunet", "data", "phantom.shape", "sampler.num_steps")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
      make: writes an intact one into a folder.
      damage: damages it; returns what a message about it may name, any of these.
      read: gives it to the code; the second folder is for what that writes.
      every: it takes part in one of so many rounds. Orbax keeps .4 MB of each checkpoint that a
        process has read, which would hide what else takes memory.
    """

    make: Callable[[pathlib.Path], None]
    damage: Callable[[random.Random, pathlib.Path], tuple[str, ...]]
    read: Callable[[pathlib.Path, pathlib.Path], None]
    every: int = 1


def _one_of(rng: random.Random, folder: pathlib.Path, pattern: str) -> pathlib.Path:
    return rng.choice(sorted(folder.rglob(pattern)))


def _damage_image(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    path = _one_of(rng, folder, "*.nii.gz")
    mutations.damage_image(rng, path)
    return path.name, path.parent.name, *SOURCES


def _damage_json(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    path = _one_of(rng, folder, "*.json")
    mutations.damage_json(rng, path)
    return path.name, path.stem.rpartition("-")[0] or path.name


def _damage_tree(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    mutations.damage_tree(rng, folder)
    return (folder.name,)


def _patients(folder: pathlib.Path) -> None:
    for subject in odd_inputs.IDS[:2]:
        odd_inputs.patient(folder, subject, (*SOURCES, "t1c"))


def _read_images(folder: pathlib.Path, _: pathlib.Path) -> None:
    for subject in find_subjects(folder, modalities=SOURCES):
        examine_subject(subject)
        native = read_native(subject, SOURCES, SOURCES)
        image_like(native.images["t1"], subject.images["t1"])


def _read_tree(folder: pathlib.Path, output: pathlib.Path) -> None:
    diagnosis = doctor.diagnose(folder, num_workers=1)
    doctor.write_findings(diagnosis, output / "findings.json")
    doctor.write_page(diagnosis, output / "page.html")
    with contextlib.suppress(UserError):  # what the doctor has said above
        for subject in find_subjects(folder, modalities=SOURCES):
            read_native(subject, SOURCES, SOURCES)


def _make_bids(folder: pathlib.Path) -> None:
    _patients(folder / "patients")
    description = {"Name": "fuzz", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    for number, path in enumerate(sorted((folder / "patients").iterdir()), start=1):
        target = folder / f"sub-{number:02d}" / "anat"
        target.mkdir(parents=True)
        for end, suffix in (("t1n", "T1w"), ("t2w", "T2w")):
            (image,) = path.glob(f"*{end}.nii.gz")
            image.rename(target / f"sub-{number:02d}_{suffix}.nii.gz")
            (target / f"sub-{number:02d}_{suffix}.json").write_text('{"MagneticFieldStrength": 3}')
    shutil.rmtree(folder / "patients")


def _damage_bids(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    damage = rng.choice([_damage_json, _damage_image, _damage_tree])
    return *damage(rng, folder), folder.name


def _make_checkpoint(folder: pathlib.Path) -> None:
    """Trains in another process, so that the memory of this one is that of reading."""
    words = [f"--config={CONFIG}:m1,smoke", "--config.m1.train.checkpoint_every=2"]
    with tempfile.TemporaryDirectory() as run:
        words += ["--config.pipeline=('m1',)", f"--workdir={run}"]
        command = [sys.executable, "-m", "cdm_jax.main", "train", *words]
        subprocess.run(command, cwd=CONFIG.parents[1], check=True, capture_output=True)
        shutil.copytree(pathlib.Path(run, "m1"), folder / "m1")


def _damage_checkpoint(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    part = folder / "m1" / rng.choice([checkpoint.FOLDER, checkpoint.BEST])
    if rng.random() < 0.3:
        mutations.damage_tree(rng, folder / "m1")
    elif rng.random() < 0.3:
        mutations.damage_json(rng, folder / "m1" / seals.FILE)
    else:
        path = rng.choice(sorted(p for p in part.rglob("*") if p.is_file()))
        path.write_bytes(mutations.damage_bytes(rng, path.read_bytes()))
    return ("m1",)


def _read_checkpoint(folder: pathlib.Path, _: pathlib.Path) -> None:
    checkpoint.finished(folder / "m1")
    for which in checkpoint.CHOICES:
        checkpoint.load_model(folder / "m1", which)


def _make_scored(folder: pathlib.Path) -> None:
    odd_inputs.patient(folder / "truth", modalities=SOURCES)
    odd_inputs.patient(folder / "predicted", modalities=("t2",))
    (path,) = (folder / "predicted").rglob("*.nii.gz")
    sidecar = {"reference_scale": 2.0, "checkpoints": {"cunet": 3}, "warnings": []}
    path.with_name(path.name.replace("nii.gz", "json")).write_text(json.dumps(sidecar))


def _damage_scored(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    damage = rng.choice([_damage_json, _damage_image, _damage_tree])
    return *damage(rng, folder), "truth", "predicted", odd_inputs.IDS[0]


def _read_scored(folder: pathlib.Path, output: pathlib.Path) -> None:
    score.score_folders(folder / "predicted", folder / "truth", output)


def _make_split(folder: pathlib.Path) -> None:
    split = Split(train=("a", "b"), validation=("c",), test=("d",))
    save_split(split, folder / "split.json")


def _make_cache(folder: pathlib.Path) -> None:
    _patients(folder / "patients")
    _prepare(folder)


def _prepare(folder: pathlib.Path) -> None:
    subjects = find_subjects(folder / "patients", modalities=SOURCES)
    for prepared in prepare(subjects, SETTINGS, folder / "cache", num_workers=1):
        np.testing.assert_equal(prepared.slices.ndim, 4)


def _damage_cache(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    path = _one_of(rng, folder / "cache", "*.*")
    if path.suffix == ".json":
        mutations.damage_json(rng, path)
    else:
        path.write_bytes(mutations.damage_bytes(rng, path.read_bytes()))
    return (path.name,)


def _read_cache(folder: pathlib.Path, output: pathlib.Path) -> None:
    copy = output / "run"  # what is damaged is prepared anew, in its place
    shutil.copytree(folder, copy, copy_function=shutil.copy2)
    _prepare(copy)


def _make_weights(folder: pathlib.Path) -> None:
    for name in (shipped.WEIGHTS, shipped.DESCRIPTION):
        shutil.copy(shipped.FOLDER / name, folder)


def _damage_weights(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    if rng.random() < 0.6:
        return _damage_json(rng, folder)
    path = folder / shipped.WEIGHTS
    path.write_bytes(mutations.damage_bytes(rng, path.read_bytes()))
    return (path.name,)


def _make_words(folder: pathlib.Path) -> None:
    words = ["train", f"--config={CONFIG}:cdm,smoke", "--config.seed=1", "--workdir=run"]
    (folder / "words.json").write_text(json.dumps(words))


def _damage_words(rng: random.Random, folder: pathlib.Path) -> tuple[str, ...]:
    words = json.loads((folder / "words.json").read_text())
    for _ in range(rng.randint(1, 3)):
        kind, odd = rng.random(), rng.choice(mutations.ODD_TEXTS)
        if kind < 0.6:
            words.append(f"--config.{rng.choice(KEYS)}={odd}")
        elif kind < 0.7:
            words.append(f"--config.{rng.choice(KEYS)}.{odd}={odd}")
        else:
            words[rng.randrange(len(words))] += odd
    (folder / "words.json").write_text(json.dumps(words))
    return ("",)  # of a command line any message is about it


def _read_words(folder: pathlib.Path, _: pathlib.Path) -> None:
    call = arguments.parse(json.loads((folder / "words.json").read_text()))
    if not isinstance(call, str) and call.options.get("config"):
        config.load_config(call.options["config"], call.overrides)


KINDS = {
    "image": Kind(_patients, _damage_image, _read_images),
    "tree": Kind(_patients, _damage_tree, _read_tree),
    "bids": Kind(_make_bids, _damage_bids, _read_tree),
    "checkpoint": Kind(_make_checkpoint, _damage_checkpoint, _read_checkpoint, every=20),
    "score": Kind(_make_scored, _damage_scored, _read_scored),
    "split": Kind(_make_split, _damage_json, lambda a, _: load_split(a / "split.json") and None),
    "cache": Kind(_make_cache, _damage_cache, _read_cache),
    "weights": Kind(_make_weights, _damage_weights, lambda a, _: shipped.load_model(a) and None),
    "words": Kind(_make_words, _damage_words, _read_words),
}


def run_case(kind: Kind, seed: int | None, intact: pathlib.Path) -> tuple[str, str]:
    """Runs one case; without a seed the input stays intact.

    Returns:
      "result", "refused" or "failed", and the message.
    """
    with tempfile.TemporaryDirectory() as place:
        given, output = pathlib.Path(place, "given"), pathlib.Path(place, "output")
        shutil.copytree(intact, given, copy_function=shutil.copy2)
        output.mkdir()
        names = ("",) if seed is None else kind.damage(random.Random(seed), given)
        before = _contents(given)
        try:
            with _limited(), contextlib.redirect_stdout(io.StringIO()):
                kind.read(given, output)
            outcome = "result", ""
        except UserError as error:
            text = " ".join(str(error).split())
            named = any(name in text for name in names)
            outcome = ("refused", text) if named else ("failed", f"names none of {names}: {text}")
        except Exception as error:
            outcome = "failed", repr(error)
        if _contents(given) != before:
            outcome = "failed", "changed a file that it was given"
    return outcome


def _contents(folder: pathlib.Path) -> dict[str, str]:
    """Path to hash of what is below a folder; links are not followed."""
    return {
        str(path): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raises TimeoutError after too many seconds of CPU."""

    def stop(*_):
        raise TimeoutError(f"took over {SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz(cases: int, seed: int, names: list[str]) -> dict:
    """Runs cases of each kind in turn.

    Returns:
      What the record holds.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    rounds = range(max(KINDS[name].every for name in names))
    turns = [name for turn in rounds for name in names if turn % KINDS[name].every == 0]
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            folder = pathlib.Path(place, name)
            folder.mkdir()
            KINDS[name].make(folder)
            outcome, text = run_case(KINDS[name], None, folder)
            assert outcome == "result", f"an intact {name} was {outcome}: {text}"
        for number in track(range(cases), "fuzzing", console=Console(stderr=True)):
            name = turns[number % len(turns)]
            start = time.process_time()
            outcome, text = run_case(KINDS[name], seed + number, pathlib.Path(place, name))
            slowest = max(slowest, time.process_time() - start)
            counts[name][outcome] += 1
            if outcome == "failed":
                failures.append({"kind": name, "seed": seed + number, "message": text[:500]})
    return {
        "command": f"python -m tests.stress.fuzz --cases={cases} --seed={seed}",
        "outcomes": {name: dict(count) for name, count in counts.items()},
        "slowest_s": round(slowest, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "failures": failures,
    }


def main() -> int:
    """Runs the cases, prints what failed, and writes the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--record", type=pathlib.Path)
    options = parser.parse_args()
    console.quiet = True  # of what the code prints of each case
    found = fuzz(options.cases, options.seed, options.kinds.split(","))
    for failure in found["failures"]:
        print(failure)
    print({name: value for name, value in found.items() if name != "failures"})
    if options.record:
        options.record.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["failures"] or found["peak_mib"] * 2**20 > BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
