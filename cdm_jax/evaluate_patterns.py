"""Evaluation of any-to-any systems: pattern by pattern, each as the fixed task that it is."""

import dataclasses
import pathlib
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from cdm_jax import parallel
from cdm_jax.data.dataset import PARTS, Dataset, copied_sources
from cdm_jax.evaluate import evaluate_run
from cdm_jax.records import Record
from cdm_jax.tasks import parse_pattern
from cdm_jax.writer import console


def evaluate_patterns(
    config: ConfigDict, workdir: pathlib.Path, dataset: Dataset
) -> dict[str, list[Record]]:
    """Scores the config's systems under each of `evaluate.patterns`; prints the tables.

    Args:
      config: of an any-to-any task.
      workdir: holds the systems' folders; records go to `<workdir>/evaluation/<part>/<pattern>`.
      dataset: prepared patients. Those that have all modalities are scored; the non-learned
        baselines are fitted on such patients too.

    Returns:
      Pattern to its records.

    Raises:
      UserError: as `evaluate.evaluate_run`, or a pattern that does not exist.
    """
    part, records = config.evaluate.part, {}
    for name in config.evaluate.patterns:
        fixed, shown = as_fixed(config, dataset, name)
        console.rule(f"{', '.join(fixed.data.sources)} to {', '.join(fixed.data.targets)}")
        records[name] = evaluate_run(fixed, workdir, shown, f"{part}/{name}")
    if parallel.is_first():
        for convention in config.evaluate.conventions:
            table = summary(records, convention, "psnr")
            console.print(f"PSNR in dB by pattern, convention {convention}")
            text = table.reset_index().to_markdown(index=False, floatfmt=".2f", missingval="")
            console.print(text, markup=False)
            path = workdir / "evaluation" / part / f"patterns_{convention}.csv"
            table.to_csv(path, float_format="%.4f")
    return records


def as_fixed(config: ConfigDict, dataset: Dataset, pattern: str) -> tuple[ConfigDict, Dataset]:
    """An any-to-any config and its patients as those of the fixed task of one pattern.

    Patients who lack a modality are left out.

    Raises:
      UserError: the pattern does not exist.
    """
    sources, targets = parse_pattern(pattern, tuple(config.data.sources))
    fixed = config.copy_and_resolve_references()
    fixed.data.update({"sources": sources, "targets": targets, "copies": ()})
    fixed.volume_scale = False  # of the regression, as of the systems that it stands beside
    wanted = {*sources, *targets}
    parts: dict[str, Any] = {
        part: tuple(
            subject.view(sources, targets)
            for subject in getattr(dataset, part)
            if wanted <= subject.intensities.keys()
        )
        for part in PARTS
    }
    return fixed, dataclasses.replace(dataset, **parts, copies=copied_sources(fixed.data))


def summary(records: dict[str, list[Record]], convention: str, metric: str) -> pd.DataFrame:
    """A table: a line for each pattern and row, a column for each target, means over subjects."""
    lines = {}
    for pattern, scored in records.items():
        for row in scored[0]["rows"]:
            if "/" in row:
                continue  # audits
            targets = (record["rows"][row][convention] for record in scored)
            values = pd.DataFrame([{t: v[metric] for t, v in each.items()} for each in targets])
            lines[pattern, row] = values.mean()
    table = pd.DataFrame(lines).T
    table = table[sorted(table.columns)]
    table.index.names = ["sources", "system"]
    return table
