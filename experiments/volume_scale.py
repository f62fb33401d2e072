"""What correcting the scale of whole volumes is worth: to a regression, to M1 and to CDM.

  python -m experiments.volume_scale --small

Predicts unseen phantom patients as the systems do slice by slice, on the scale that the volume
itself tells (`cdm_jax/data/volume_scale.py`), and with the factors that fit the truth best, which
nobody knows. The systems and the patients are those of `experiments.quantiles`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from cdm_jax import inference
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.prepare import FULL_SCALE
from cdm_jax.data.volume_scale import Volume
from cdm_jax.metrics.aggregate import compare, summarize
from cdm_jax.non_learned import NonLearned, fit_non_learned
from cdm_jax.records import per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import with_interval
from cdm_jax.rescaling import rescale_stage
from cdm_jax.sampling import SubjectSampler
from cdm_jax.writer import console
from experiments import quantiles
from experiments.segmenter import difference
from experiments.study import Study, main
from experiments.uncertainty import values

NAME = "volume_scale"
SYSTEMS = {"M1": ("m1", 1), "CDM mean of 8": ("cunet", 8)}  # stage, samples
REGRESSION = "Regression"
SLICES = 16  # a call
BRIGHTEST = 0.03  # part of a brain: lesions, vessels
METRICS = {"psnr": ("PSNR in dB", ".2f"), "mae_brightest": ("error where brightest", ".3f")}
CONVENTION = "volume_scale"  # of the records: slices of the model's frame, in the brain
AS_PREDICTED, CORRECTED, BEST = "slice by slice", "volume's scale", "best factors"
KINDS = (AS_PREDICTED, CORRECTED, BEST)
ROWS = (REGRESSION, *SYSTEMS)


# What is measured


def measure(study: Study) -> None:
    """Trains what is missing, scores every unseen patient, writes the record."""
    study = quantiles.placed(study)
    study.train(quantiles.STAGES)
    dataset = study.data()
    for stage, _ in SYSTEMS.values():  # a run of a former version has none
        rescale_stage(study.workdir / stage, dataset)
    predictors: dict[str, dict[str, SubjectSampler | NonLearned]] = {
        row: _predictors(study, *one) for row, one in SYSTEMS.items()
    }
    fitted = fit_non_learned(dataset.train, dataset.copies)
    plain = dataclasses.replace(fitted, curves={})
    predictors[REGRESSION] = {AS_PREDICTED: plain, CORRECTED: fitted}
    records = []
    for subject in track(dataset.test, "measuring", console=console):
        rows = dict(_rows(predictors, subject))
        records.append(
            {
                "subject": subject.subject_id,
                "patient": subject.patient_id,
                "split": dataset.split_hash,
                "conventions": {CONVENTION: ""},
                "rows": rows,
            }
        )
    content = {"command": study.command(NAME), "overrides": list(quantiles.OVERRIDES)}
    study.save(NAME, content | {"records": records})


def _predictors(study: Study, stage: str, samples: int) -> dict[str, SubjectSampler | NonLearned]:
    system = inference.load_system(study.workdir / stage, SLICES)
    return {
        AS_PREDICTED: SubjectSampler(inference.uncorrected(system), samples),
        CORRECTED: SubjectSampler(system, samples),
    }


def _rows(
    predictors: Mapping[str, Mapping[str, SubjectSampler | NonLearned]], subject: PreparedSubject
) -> Iterator[tuple[str, Any]]:
    """Rows of a patient's record: scores in the brain, and the factor that would have fitted."""
    slices = subject.slices.astype(np.float32) / FULL_SCALE
    sources, truth = np.split(slices, [len(subject.sources)], axis=-1)
    brain = np.any(sources > 0, axis=-1)
    for row, ways in predictors.items():
        images = {kind: _images(one, subject, sources) for kind, one in ways.items()}
        made = images[AS_PREDICTED][brain].astype(np.float64)
        factors = np.sum(made * truth[brain], axis=0) / np.sum(made**2, axis=0)
        images[BEST] = np.clip(images[AS_PREDICTED] * factors, 0, 1)
        for kind, volume in images.items():
            found = {
                target: _scores(volume[brain][:, t], truth[brain][:, t]) | {"factor": factors[t]}
                for t, target in enumerate(subject.targets)
            }
            yield f"{row}, {kind}", {CONVENTION: found}


def _scores(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR in the brain, and the mean absolute error where the truth is brightest."""
    brightest = truth >= np.percentile(truth, 100 * (1 - BRIGHTEST))
    return {
        "psnr": float(-10 * np.log10(np.mean((made - truth) ** 2, dtype=np.float64))),
        "mae_brightest": float(np.abs(made - truth)[brightest].mean()),
    }


def _images(
    predictor: SubjectSampler | NonLearned, subject: PreparedSubject, sources: Volume
) -> Volume:
    if isinstance(predictor, NonLearned):
        return predictor.rows(sources)["regression"]
    stored = {"source": predictor.system.sources_of(subject.slices, subject.slice_indices)}
    config = predictor.system.provenance.config
    key = inference.subject_key(config.seed, subject.subject_id)
    return predictor.volumes(stored, key)["mean"]


# What it says


def sentence(patients: pd.DataFrame, row: str, target: str) -> str:
    """What a system gains, and what it would gain at the most."""
    corrected, best = (
        compare(values(patients, f"{row}, {kind}", target, "psnr"), before)
        for kind in (CORRECTED, BEST)
        for before in [values(patients, f"{row}, {AS_PREDICTED}", target, "psnr")]
    )
    low, high = corrected.interval or (0.0, 0.0)
    verdict = "gains" if low > 0 else "LOSES" if high < 0 else "gains NOTHING beyond chance"
    spread = np.log(values(patients, f"{row}, {AS_PREDICTED}", target, "factor")).std()
    return (
        f"{row}, {target}: {verdict}, {difference(corrected, '.2f')} dB; the best factors, which "
        f"vary by {spread:.0%} between patients, would give {difference(best, '.2f')} dB."
    )


def table(patients: pd.DataFrame, target: str, metric: str) -> pd.DataFrame:
    """Texts: a metric of each row, a column a kind."""
    name, form = METRICS[metric]
    cells = {
        kind: [
            with_interval(summarize(values(patients, f"{row}, {kind}", target, metric)), form)
            for row in ROWS
        ]
        for kind in KINDS
    }
    return pd.DataFrame(cells, index=pd.Index(ROWS, name=f"{name}, {target}"))


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    patients = per_patient(content["records"], CONVENTION)
    targets = list(next(iter(content["records"][0]["rows"].values()))[CONVENTION])
    parts = [
        "# What correcting the scale gains",
        f"Made by `{content['command']}`, with `{' '.join(content['overrides'])}`.",
        *(sentence(patients, row, target) for target in targets for row in ROWS),
        *(to_markdown(table(patients, t, metric)) for t in targets for metric in METRICS),
        f"Means over {len(patients)} unseen phantom patients, 95 % bootstrap intervals over "
        "patients in brackets; in the brain, in slices of the model's size. Error where brightest: "
        f"mean absolute error in the {BRIGHTEST:.0%} of the brain that are brightest in truth.",
    ]
    return "\n\n".join(parts) + "\n"


def show(study: Study) -> None:
    """Prints the text and writes it, from the record."""
    study.save_text(NAME, report(study.load(NAME)))


if __name__ == "__main__":
    main(None, __doc__, measure, show, ("phantom",))
