"""A run's report: images of a few unseen patients by every system, then pages for a browser."""

import importlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Real
from ml_collections import ConfigDict

from cdm_jax import checkpoint, parallel
from cdm_jax.cards import evaluated, worth
from cdm_jax.data.dataset import PARTS, Dataset
from cdm_jax.data.native import read_native
from cdm_jax.data.nifti import read_geometry, read_labels, read_volume, write_like
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.evaluate_patterns import as_fixed, summary
from cdm_jax.files import read_json, read_lines
from cdm_jax.metrics.regions import ENHANCING_TUMOR
from cdm_jax.records import Record, read_records
from cdm_jax.report import patients, rows
from cdm_jax.report.curves import final_values
from cdm_jax.report.gallery import DEVIATION_LIMIT, ERROR_LIMIT, INTERVAL_LIMIT, Case, Image
from cdm_jax.report.page import Pattern, Report, Stage, save_report
from cdm_jax.report.viewer import overlay_values
from cdm_jax.synthesize import synthesize_subjects
from cdm_jax.tasks import JOIN, task_of

CONVENTION = "volume"  # under which patients are chosen, where the records have it
SIMULATED = (
    "These patients are simulated. Their numbers compare methods with each other and say nothing "
    "about real patients."
)
PAGE_NOTICE = (
    "For research, not for clinical use. Images named synthesis were made by neural networks: they "
    "show what a patient's other images make likely, not what is there."
)
SELECTION = (
    "{shown} of {total} unseen patients, chosen by rule and not by eye, the rule beside each name "
    "(more: --patients=N). Each opens on the slice with most of the tumor. Samples were drawn anew "
    "for these pages, so a picture is not the very draw that the tables score."
)

Volume = Float[np.ndarray, "z y x"]


def publish_run(
    config: ConfigDict, workdir: pathlib.Path, dataset: Dataset, num_patients: int
) -> pathlib.Path:
    """Writes `<workdir>/report`; images that were synthesized for an earlier report are kept.

    Args:
      config: its `evaluate` section says which records and which row to test against.
      workdir: of the run, with its evaluation.
      dataset: prepared patients.
      num_patients: unseen patients of whom images are shown; all have a page of numbers.

    Returns:
      The first page.

    Raises:
      UserError: nothing was evaluated, or on another split.
    """
    by_pattern, whole = _by_pattern(config, workdir, dataset), config
    if by_pattern:
        pattern = next(iter(by_pattern))
        config, dataset = as_fixed(config, dataset, pattern)
        records = by_pattern[pattern]
    else:
        records = _records(workdir / "evaluation" / config.evaluate.part, dataset)
    known = dict.fromkeys(name for record in records for name in record["conventions"])
    convention = CONVENTION if CONVENTION in known else next(iter(known))
    systems, remarks = _systems(records, workdir)
    reference = config.evaluate.reference
    judged = next((row for name, row in systems.items() if name != reference), "copy")
    chosen = patients.choose(records, judged, convention, num_patients)
    subjects = [dataset.subjects[name] for name in chosen]
    folder = workdir / "report"
    for name, row in systems.items():
        output, samples = folder / "images" / name, rows.samples_of(row)
        targets = config.data.targets
        synthesize_subjects(subjects, output, workdir / name, samples=samples, make=targets)
    report = Report(
        title=f"{config.data.name}: {', '.join(config.data.targets)} synthesized from "
        f"{', '.join(config.data.sources)}",
        notice=PAGE_NOTICE,
        facts=_facts(config, dataset),
        records=records,
        convention=convention,
        reference=reference if reference in records[0]["rows"] else None,
        stages=_stages(config, workdir),
        selection=SELECTION.format(shown=len(chosen), total=len(records)),
        patterns=_patterns(by_pattern, convention, whole.data.targets),
        worth=_worth(config, workdir, dataset, records, systems),
        remarks=[*([SIMULATED] if "phantom" in config else []), *remarks],
    )
    cases = _cases(subjects, chosen, systems, folder / "images", records, convention)
    if parallel.is_first():
        save_report(folder, report, cases)
    parallel.wait_for_all("report")
    return folder / "index.html"


def _by_pattern(
    config: ConfigDict, workdir: pathlib.Path, dataset: Dataset
) -> dict[str, list[Record]]:
    """Records of an any-to-any run by pattern, the one of which images are shown first."""
    if not task_of(config.data).is_any:
        return {}
    folder = workdir / "evaluation" / config.evaluate.part
    return {name: _records(folder / name, dataset) for name in config.evaluate.patterns}


def _patterns(
    records: dict[str, list[Record]], convention: str, targets: Sequence[str]
) -> list[Pattern]:
    """The report's map of patterns: PSNR of each target that a pattern lacks."""
    if not records:
        return []
    table = summary(records, convention, "psnr")
    made = [name for name in targets if name in table]  # those that some pattern lacks
    return [
        Pattern(
            sources=sources.replace(JOIN, ", "),
            system=system,
            values={name: None if np.isnan(v := line[name]) else float(v) for name in made},
        )
        for (sources, system), line in table.iterrows()
    ]


def check_evaluated(folder: pathlib.Path) -> None:
    """Refuses a folder without records, its own or those of patterns.

    Raises:
      UserError: there are none.
    """
    if not any(folder.glob("**/*.json")):
        raise UserError(
            f"nothing has been evaluated in {folder}: run the command evaluate with this --workdir"
        )


def _records(folder: pathlib.Path, dataset: Dataset) -> list[Record]:
    check_evaluated(folder)
    records = [r for r in read_records(folder) if r["subject"] in dataset.subjects]
    if not records:
        raise UserError(f"the records in {folder} are of other patients: evaluate again")
    others = {record["split"] for record in records} - {dataset.split_hash}
    if others:
        raise UserError(
            f"the records in {folder} are of split {', '.join(sorted(others))}, this data's is "
            f"{dataset.split_hash}: evaluate again"
        )
    return records


def _systems(records: Sequence[Record], workdir: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    """Systems that can paint, with their headline rows; and what to say of the others."""
    headline = rows.headline_rows(records)
    systems = {name: row for name, row in headline.items() if checkpoint.finished(workdir / name)}
    return systems, [
        f"{name} has numbers but no images: its checkpoint is not in the run."
        for name in headline
        if name not in systems
    ]


def _worth(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: Dataset,
    records: Sequence[Record],
    systems: Mapping[str, str],
) -> dict[str, dict[str, str]]:
    """What each system's images are worth to a reader."""
    _, judged = evaluated(workdir, config.evaluate.part, dataset)
    return {name: worth(workdir / name, records, judged) for name in systems}


def _facts(config: ConfigDict, dataset: Dataset) -> dict[str, str]:
    counts = {name: len(getattr(dataset, name)) for name in PARTS}
    return {
        "Data": f"{config.data.name}{' (simulated patients)' if 'phantom' in config else ''}",
        "Input modalities": ", ".join(config.data.sources),
        "Target modalities": ", ".join(config.data.targets),
        "Examinations": ", ".join(f"{count} {name}" for name, count in counts.items()),
        "Split (by patient)": dataset.split_hash,
        "Model's slices": f"{config.data.size} x {config.data.size} pixels",
        "Scored part": config.evaluate.part,
    }


def _stages(config: ConfigDict, workdir: pathlib.Path) -> list[Stage]:
    """The run's stages: those of the config's pipeline in its order, then all others."""
    names = [
        *config.pipeline,
        *sorted(path.parent.name for path in workdir.glob("*/metrics.jsonl")),
    ]
    stages = []
    for name in dict.fromkeys(names):
        log, saved = workdir / name / "metrics.jsonl", checkpoint.provenance(workdir / name)
        if saved is None or not log.exists():
            continue
        lines = read_lines(log)
        method = saved.config[saved.config.stage].method
        facts = {
            "Method": _description(method),
            "Steps": f"{saved.config[saved.config.stage].train.num_steps}"
            + ("" if checkpoint.finished(log.parent) else " planned, not finished"),
            "Slices a step": str(saved.batch_size),
            "Split": saved.split,
        }
        stages.append(Stage(name=name, facts=facts | final_values(lines), lines=lines))
    return stages


def _description(method: str) -> str:
    """The first line of what a method's module says of itself."""
    text = importlib.import_module(f"cdm_jax.methods.{method}").__doc__ or method
    return text.partition("\n")[0]


def _cases(
    subjects: Sequence[Subject],
    reasons: Mapping[str, str],
    systems: Mapping[str, str],
    images: pathlib.Path,
    records: Sequence[Record],
    convention: str,
) -> Iterator[Case]:
    """The patients shown, each read when its turn comes."""
    by_subject = {record["subject"]: record for record in records}
    for subject in subjects:
        name, record = subject.subject_id, by_subject[subject.subject_id]
        targets = patients.targets_of([record])
        native = read_native(subject, [m for m in subject.images if m not in targets])
        brain, grid = native.brain, next(iter(subject.images.values()))
        shown = [
            Image(
                name=f"{'truth' if modality in targets else 'input'}-{modality}",
                role="truth" if modality in targets else "input",
                modality=modality,
                values=volume,
                nifti={"image": _nifti(volume * 255, np.uint8, grid)},
            )
            for modality, volume in native.images.items()
        ]
        for system, row in systems.items():
            for target in targets:
                note = _note(record, row, convention, target)
                files, truth = f"{images / system / name / name}-{target}", native.images[target]
                shown.append(_synthesis(files, system, note, target, truth, brain, grid))
        yield Case(
            subject=name,
            reason=reasons[name],
            images=shown,
            brain=brain,
            voxel_size=read_geometry(grid).voxel_size,
            focus=_focus(subject, brain),
        )


def _focus(subject: Subject, brain: Bool[np.ndarray, "z y x"]) -> tuple[int, int, int]:
    """The middle of the slice with most of the enhancing tumor, else the tumor, else the brain.

    Where no tumor is known, this is the slice with most brain.
    """
    labels = np.zeros(brain.shape, np.int16)
    if subject.segmentation is not None:
        labels = read_labels(subject.segmentation)
    enhancing = np.isin(labels, ENHANCING_TUMOR)
    mask = next(m for m in (enhancing & brain, (labels > 0) & brain, brain) if m.any())
    z = int(mask.sum(axis=(1, 2)).argmax())
    y, x = (int(np.median(indices)) for indices in np.nonzero(mask[z]))
    return z, y, x


def _note(record: Record, row: str, convention: str, target: str) -> str:
    parts = []
    for metric in ("psnr", "ssim"):
        number = patients.value(record, row, convention, target, metric)
        parts.append(f"{metric.upper()} {patients.text(number, metric)}")
    return ", ".join(parts)


def _synthesis(
    files: str,
    system: str,
    note: str,
    target: str,
    truth: Volume,
    brain: Bool[np.ndarray, "z y x"],
    grid: pathlib.Path,
) -> Image:
    """A synthetic image whose files begin so, on the network's scale of [0, 1]."""
    scale = np.float32(read_json(pathlib.Path(f"{files}.json"))["reference_scale"])
    values = np.clip(read_volume(f"{files}.nii.gz") / scale, 0, 1)
    error = (values - truth) * brain
    nifti = {
        "image": _nifti(values * 255, np.uint8, grid),
        "error": _nifti(overlay_values(error, ERROR_LIMIT), np.int16, grid),
    }
    deviation, interval = None, None
    if (file := pathlib.Path(f"{files}-deviation.nii.gz")).exists():
        deviation = read_volume(file) / scale
        nifti["deviation"] = _nifti(overlay_values(deviation, DEVIATION_LIMIT), np.int16, grid)
    lower, upper = (pathlib.Path(f"{files}-{end}.nii.gz") for end in ("lower", "upper"))
    if lower.exists() and upper.exists():
        interval = (read_volume(upper) - read_volume(lower)) / scale
        nifti["interval"] = _nifti(overlay_values(interval, INTERVAL_LIMIT), np.int16, grid)
    return Image(
        name=f"{system}-{target}",
        role="synthesis",
        modality=target,
        system=system,
        note=note,
        values=values,
        deviation=deviation,
        interval=interval,
        nifti=nifti,
    )


def _nifti(volume: Real[np.ndarray, "z y x"], dtype: type[np.integer], grid: pathlib.Path) -> bytes:
    """Rounded values as a small compressed NIfTI file on a patient's grid."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "volume.nii.gz"
        write_like(path, np.rint(volume), grid, dtype=dtype)
        return path.read_bytes()
