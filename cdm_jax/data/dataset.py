"""A config's data set: subjects found, split by patient, prepared."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdm_jax import workers
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.cohort import prepare
from cdm_jax.data.prepare import PrepareSettings
from cdm_jax.data.splits import load_or_make, load_split
from cdm_jax.data.subjects import Subject, find_subjects
from cdm_jax.errors import UserError
from cdm_jax.phantom import PhantomSettings, write_cohort

PARTS = ("train", "validation", "test")
SAME_WEIGHTING = {"t1c": "t1", "t1": "t1c", "t2f": "t2", "t2": "t2f"}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Prepared subjects of each part of the split.

    Attributes:
        train: subjects to train on.
        validation: subjects of patients held out of training, for selection and calibration.
        test: subjects of patients that nothing is ever tuned on.
        subjects: every subject's files, by subject id.
        simulated: simulated patients to train on beside them.
        copies: for each target, the source that the row "copy" shows.
        split_hash: names the split in records and checkpoints.
    """

    train: tuple[PreparedSubject, ...]
    validation: tuple[PreparedSubject, ...]
    test: tuple[PreparedSubject, ...]
    subjects: Mapping[str, Subject]
    copies: tuple[str, ...]
    split_hash: str
    simulated: tuple[PreparedSubject, ...] = ()


def data_root(config: Any, workdir: pathlib.Path) -> pathlib.Path:
    """The folder of patients: `data.root`, or for a phantom `<workdir>/patients` by default.

    Raises:
        UserError: no root given, or it does not exist.
    """
    if "phantom" in config:
        return pathlib.Path(config.data.root or workdir / "patients")
    if not config.data.root:
        raise UserError(
            "data.root is empty: give the folder of patients, --config.data.root=<folder>"
        )
    root = pathlib.Path(config.data.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder: give one that holds patients' NIfTI")
    return root


def make_phantom(config: Any, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the config's simulated patients where they are missing; returns their folder.

    Raises:
        UserError: the config has no phantom.
    """
    if "phantom" not in config:
        raise UserError("this config has no phantom: use --config=configs/phantom.py")
    root = data_root(config, workdir)
    write_cohort(root, PhantomSettings(**config.phantom.to_dict()), num_workers(config))
    return root


def copied_sources(data: Any) -> tuple[str, ...]:
    """For each target of a config's section `data`, the source that the row "copy" shows.

    `data.copies` names them. Where it is empty, it is the source of the same weighting (T1 and T1c,
    T2 and T2-FLAIR), or the first source where that is not among them.

    Raises:
        UserError: `data.copies` does not name a source for each target.
    """
    sources, targets, copies = (tuple(data[key]) for key in ("sources", "targets", "copies"))
    if not copies:
        names = (SAME_WEIGHTING.get(target, "") for target in targets)
        return tuple(name if name in sources else sources[0] for name in names)
    if len(copies) != len(targets) or not set(copies) <= set(sources):
        raise UserError(
            f"data.copies {copies} does not fit: name one of the sources {sources} for each of "
            f"the targets {targets}, or none, --config.data.copies='()'"
        )
    return copies


def load_dataset(config: Any, workdir: pathlib.Path) -> Dataset:
    """Finds, splits and prepares a config's subjects; what is done already is read back.

    `workdir` holds split and cache unless the config names other places.

    Raises:
        UserError: no patients, an unreadable file, a split or copies that do not fit.
    """
    data = config.data
    sources, targets = tuple(data.sources), tuple(data.targets)
    any_to_any = sources == targets  # whatever a subject lacks is wanted, see `tasks.Task`
    settings = PrepareSettings(
        sources=sources,
        targets=() if any_to_any else targets,
        size=data.size,
        minimum_brain=data.minimum_brain,
    )
    copies = copied_sources(data)
    root = make_phantom(config, workdir) if "phantom" in config else data_root(config, workdir)
    subjects = find_subjects(
        root,
        modalities=settings.images,
        patterns=data.patterns.to_dict() or None,
        require_all=not any_to_any,
    )
    split = load_or_make(
        _split_file(config, workdir),
        subjects,
        seed=data.split_seed,
        test_fraction=data.test_fraction,
        validation_fraction=data.validation_fraction,
        test_patients=tuple(data.test_patients),
        exclude=tuple(data.exclude),
    )
    parts = split.assign(subjects)
    cache = pathlib.Path(data.cache or workdir / "cache")
    wanted = [subject for part in parts.values() for subject in part]
    done = prepare(wanted, settings, cache, num_workers=num_workers(config))
    prepared = {subject.subject_id: subject for subject in done}
    by_part = {name: tuple(prepared[s.subject_id] for s in part) for name, part in parts.items()}
    return Dataset(
        **by_part,
        subjects={subject.subject_id: subject for subject in wanted},
        copies=copies,
        split_hash=split.hash,
        simulated=tuple(_simulated(config, settings, workdir, cache)),
    )


def _simulated(
    config: Any, settings: PrepareSettings, workdir: pathlib.Path, cache: pathlib.Path
) -> list[PreparedSubject]:
    """The patients to mix into the training, simulated in `<workdir>/simulated` and prepared.

    Raises:
        UserError: a share without patients, or one that is no share.
    """
    number, share = config.data.simulated.patients, config.data.simulated.share
    if not 0 <= share < 1 or number < 0 or bool(number) != bool(share):
        raise UserError(
            f"data.simulated: {number} patients with a share of {share}: give a share above 0 and "
            "below 1 and at least one patient, or 0 of both"
        )
    if not number:
        return []
    root = workdir / "simulated"
    write_cohort(root, random_protocols(settings.size, number), num_workers(config))
    subjects = find_subjects(root, modalities=settings.images, require_all=True)
    return prepare(subjects, settings, cache, num_workers=num_workers(config))


def random_protocols(size: int, patients: int) -> PhantomSettings:
    """Simulated patients, each scanned by another protocol, as slices of `size` pixels.

    Their frame is between that of BraTS (240 mm) and that of images cropped to the head.
    """
    return PhantomSettings(
        num_patients=patients,
        shape=(size, size, size * 100 // 128),
        voxel_mm=224 / size,
        seed=100,
        protocol="random",
        predictable=0.5,
    )


def find_split(config: Any, workdir: pathlib.Path) -> str | None:
    """The hash of the config's split; None where it is not drawn yet.

    Raises:
        UserError: its file is damaged.
    """
    path = _split_file(config, workdir)
    return load_split(path).hash if path.exists() else None


def _split_file(config: Any, workdir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(config.data.split_file or workdir / "split.json")


def num_workers(config: Any) -> int:
    """Processes for what is done patient by patient: `data.num_workers`, or one a core where 0."""
    return config.data.num_workers or workers.cores()
