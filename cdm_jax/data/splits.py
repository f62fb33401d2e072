"""Splits by patient, kept in a file with a hash.

The time-points of a patient never lie on two sides. A split is drawn once, written to a file and
read from then on: patients that are added later stay out of it until a new file is asked for.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError, about
from cdm_jax.workers import whole_file

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Names of the patients for training, for choosing a model (`validation`) and for testing.

    Raises:
        UserError: A patient is listed twice.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        listed = Counter((*self.train, *self.validation, *self.test))
        twice = [patient for patient, count in listed.items() if count > 1]
        if twice:
            raise UserError(f"the split lists {twice[0]} more than once: each patient has one part")

    @property
    def patients(self) -> frozenset[str]:
        """Every patient of the split."""
        return frozenset((*self.train, *self.validation, *self.test))

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the parts, whatever their order."""
        content = {name: sorted(patients) for name, patients in asdict(self).items()}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def assign(self, subjects: Iterable[Subject]) -> dict[str, list[Subject]]:
        """Part to its subjects, in the given order; patients outside the split are left out."""
        subjects = list(subjects)
        return {
            name: [subject for subject in subjects if subject.patient_id in patients]
            for name, patients in asdict(self).items()
        }


def make_split(
    patient_ids: Iterable[str],
    *,
    seed: int,
    test_fraction: float = 0.3,
    validation_fraction: float = 0.1,
    test_patients: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Split:
    """Draw a split at random; the same for any order of the patients.

    Fractions are rounded to whole patients. The test part has at least one of two patients or
    more, the validation part at least one of three or more that are left, unless their fraction
    is 0, and training always keeps one; a single patient is for training.

    Args:
        patient_ids: Patients; names that repeat (time-points) count once.
        seed: Seed of the draw.
        test_fraction: Part of all patients for testing, in [0, 1); 0.3 is the paper's.
        validation_fraction: Part of the patients left for training that validate, in [0, 1).
        test_patients: The test part itself, instead of a draw (leave one out).
        exclude: Patients in no part, for instance those that another cohort shares.

    Raises:
        UserError: No patient, a fraction outside [0, 1), or unknown test patients.
    """
    for fraction in (test_fraction, validation_fraction):
        if not 0 <= fraction < 1:
            raise UserError(f"a split's fraction is {fraction}: give a number from 0 to below 1")
    patients = sorted(set(patient_ids) - set(exclude))
    if not patients:
        raise UserError("no patient to split: check the data folder and the excluded patients")
    if unknown := sorted(set(test_patients) - set(patients)):
        raise UserError(
            f"test patient {unknown[0]} is not among the {len(patients)} patients "
            f"(such as {patients[0]}): give names of patients, without a time-point"
        )
    drawn = np.random.default_rng(seed).permutation(patients).tolist()
    test = list(test_patients) or drawn[: _share(test_fraction, len(drawn), at_least=2)]
    rest = [patient for patient in drawn if patient not in set(test)]
    count = _share(validation_fraction, len(rest), at_least=3)
    parts = {"train": rest[count:], "validation": rest[:count], "test": test}
    return Split(**{name: tuple(sorted(part)) for name, part in parts.items()})


def save_split(split: Split, path: Path | str) -> None:
    """Write a split as JSON with its hash; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:  # several processes may draw it at once
        partial.write_text(json.dumps({"hash": split.hash, **asdict(split)}, indent=1) + "\n")


def load_split(path: Path | str) -> Split:
    """Read a split that `save_split` wrote.

    Raises:
        UserError: The file is missing, is no split or was changed since it was written.
    """
    try:
        content = json.loads(Path(path).read_text())
        parts = {name: tuple(content[name]) for name in ("train", "validation", "test")}
        stated = content["hash"]
        if any(not isinstance(name, str) for part in parts.values() for name in part):
            raise TypeError("a patient's name is no text")
    except FileNotFoundError as error:
        raise UserError(f"there is no split file {path}: check the path") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a split file ({error!r}): restore or delete it") from error
    with about(str(path)):
        split = Split(**parts)
    if split.hash != stated:
        raise UserError(
            f"{path} was changed by hand: its hash is {stated}, its content's {split.hash}; "
            "restore it, or delete it to draw a new split"
        )
    return split


def load_or_make(path: Path | str, subjects: Iterable[Subject], **settings: Any) -> Split:
    """The split in the file, or a new one of these subjects by `make_split`, written there.

    A file that is present always wins over a new draw. Patients that it does not name are used
    for nothing, with a warning in the log.

    Raises:
        UserError: The file names patients that are not on disk or are to be excluded, its test
            part is not the `test_patients` asked for, or as `load_split` and `make_split`.
    """
    patients = {subject.patient_id for subject in subjects}
    if Path(path).exists():
        split = load_split(path)
        _check_current(split, path, patients, settings)
        return split
    split = make_split(patients, **settings)
    save_split(split, path)
    return split


def _share(fraction: float, count: int, *, at_least: int) -> int:
    """How many of `count` patients a fraction stands for, none being left out by rounding."""
    if fraction == 0 or count < at_least:
        return 0
    return min(max(round(fraction * count), 1), count - 1)


def _check_current(
    split: Split, path: Path | str, patients: set[str], settings: dict[str, Any]
) -> None:
    excluded = set(settings.get("exclude", ()))
    wanted_test = set(settings.get("test_patients", ()))
    problems = {
        "names patients that are not on disk": split.patients - patients,
        "names patients that are to be excluded": split.patients & excluded,
        "has another test part than asked for": wanted_test and wanted_test ^ set(split.test),
    }
    for problem, names in problems.items():
        if names:
            raise UserError(
                f"the split {path} {problem} ({len(names)}, such as {min(names)}): "
                "mend the data or the settings, or give another file to draw a new split"
            )
    if added := patients - split.patients - excluded:
        _logger.warning(
            "%d patients on disk are not in the split %s and are left out; the first is %s",
            len(added),
            path,
            min(added),
        )
