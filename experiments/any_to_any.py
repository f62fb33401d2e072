"""One checkpoint for whatever is missing, beside networks that know a single task each.

  python -m experiments.any_to_any [--seeds=0,1,2] [--workdir=runs/any_to_any] [--show]

On the same phantom patients, for each seed: CDM and M1 of any modalities, with twice the steps; a
dedicated M1 of every pattern in which one modality is missing; M1 and CDM dedicated to the paper's
task; and M1 of any modalities once more, where every second training patient lacks a modality, and
without these patients. A value of a patient is its mean over seeds; intervals are over patients.
What is trained already is not trained again. Every seed joins the others in
`experiments/results/phantom/any_to_any.json`; from it comes `docs/results/phantom/any_to_any.md`.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from cdm_jax import main as command_line
from cdm_jax.config import load_config
from cdm_jax.data.splits import load_split, save_split
from cdm_jax.data.subjects import find_subjects
from cdm_jax.metrics.aggregate import Summary, summarize
from cdm_jax.phantom.patient import VERSIONS
from cdm_jax.records import WHOLE, Record, per_patient
from cdm_jax.report.render import to_markdown
from cdm_jax.report.tables import with_interval
from cdm_jax.tasks import JOIN
from cdm_jax.writer import console
from configs.cdm import ALL
from experiments.records import SeedRecord, load_records, load_results, main_values
from experiments.study import DOCS, seed_by_seed, write

NAME = "phantom/any_to_any"
COMMAND = "python -m experiments.any_to_any"
PAPER = "t1+t2"
SINGLE = tuple(JOIN.join(name for name in ALL if name != missing) for missing in ALL)
PATTERNS = (PAPER, *SINGLE, "t1")  # of which the any-to-any systems are scored
CHAIN, CHAINED = ("t1", "t1+t2", "t1+t2+t2f"), "t1c"  # ever more sources of one target
ANY, LACKING, COMPLETE = "any", "half lack one", "complete half"
SYSTEMS = ("cunet", "m1")
BASELINES = ("copy", "brain_mean", "regression")  # fitted for each pattern
LENGTH, TIMES = "study", 2  # of dedicated networks; how many times as long others train
CLOSE = 0.2  # dB that one checkpoint may be behind dedicated ones
CONVENTION = "volume"
SCALE = f"small,length={LENGTH}"

Runs = Mapping[str, Mapping[str, Mapping[str, Sequence[Record]]]]
"""Name of a run -> pattern -> seed -> records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A run of the command line.

    Attributes:
      name: in the record.
      config: with its argument, less seed and scale.
      patterns: that it is scored by; the only one of a fixed task.
      overrides: of the config.
    """

    name: str
    config: str
    patterns: tuple[str, ...]
    overrides: tuple[str, ...] = ()


def trainings(workdir: pathlib.Path) -> Iterator[Training]:
    """All that a seed trains; the patients who lack a modality are made before theirs."""
    longer = _longer()
    yield Training(name=ANY, config="phantom.py:any", patterns=PATTERNS, overrides=longer)
    for pattern in (PAPER, *SINGLE):
        sources = tuple(pattern.split(JOIN))
        targets = tuple(name for name in ALL if name not in sources)
        yield Training(
            name="dedicated",
            config=f"phantom.py:{'cdm' if pattern == PAPER else 'm1'}",
            patterns=(pattern,),
            overrides=(f"--config.data.sources={sources}", f"--config.data.targets={targets}"),
        )
    folder = workdir / "patients_lacking"
    for name, split in zip((LACKING, COMPLETE), _lacking(workdir, folder), strict=True):
        own = (f"--config.data.root={folder}", f"--config.data.split_file={split}")
        size = load_config(f"configs/phantom.py:m1,{SCALE}", []).data.size
        yield Training(
            name=name,
            config=f"brats.py:m1,any,size={size}",
            patterns=PATTERNS,
            overrides=(*longer, *own),
        )


def _longer() -> tuple[str, ...]:
    """Overrides that let every stage train several times as long."""
    config = load_config(f"configs/phantom.py:any,{SCALE}", [])
    return tuple(
        f"--config.{stage}.train.num_steps={TIMES * config[stage].train.num_steps}"
        for stage in config.pipeline
    )


def _lacking(workdir: pathlib.Path, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Patients of whom every second one to train on lacks a modality, each another in turn.

    Returns:
      The split of all of them, and that without those who lack one.
    """
    whole, reduced = workdir / "split.json", workdir / "split_complete.json"
    split = load_split(whole)
    lacking = dict(zip(split.train[::2], itertools.cycle(ALL), strict=False))
    save_split(
        dataclasses.replace(split, train=tuple(p for p in split.train if p not in lacking)), reduced
    )
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for subject in find_subjects(workdir / "patients", modalities=ALL):
            missing = lacking.get(subject.patient_id)
            for name, path in subject.images.items():
                if name != missing:
                    copy = partial / subject.subject_id / path.name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
        os.replace(partial, folder)
    return whole, reduced


def run(one: Training, seed: int, workdir: pathlib.Path) -> dict[str, list[Record]]:
    """Trains and scores one of them; patients, split and caches are shared."""
    folder = workdir / f"{one.name.replace(' ', '_')}_{len(one.patterns)}_{one.patterns[0]}_{seed}"
    shared = {"root": "patients", "split_file": "split.json"}
    shared["cache"] = "cache_any" if one.patterns == PATTERNS else f"cache_{one.patterns[0]}"
    console.rule(f"seed {seed}: {one.name}, {', '.join(one.patterns)}")
    arguments = [
        f"--config=configs/{one.config},{SCALE},seed={seed}",
        f"--workdir={folder}",
        f"--config.evaluate.conventions=({CONVENTION!r},)",
        "--config.volume_scale=False",  # which only fixed tasks have: networks are compared
        *(f"--config.data.{key}={workdir / name}" for key, name in shared.items()),
        *one.overrides,
    ]
    if one.patterns == PATTERNS:
        arguments.append(f"--config.evaluate.patterns={PATTERNS}")
    if command_line.main(["cdm_jax.main", "train", *arguments]):
        raise SystemExit(1)
    parts = {p: f"test/{p}" if one.patterns == PATTERNS else "test" for p in one.patterns}
    return {p: [_kept(record) for record in load_records(folder, parts[p])] for p in parts}


def _kept(record: Record) -> Record:
    """A record without audits and means of samples."""
    rows = {name: row for name, row in record["rows"].items() if name in (*BASELINES, *SYSTEMS)}
    return main_values({**record, "rows": rows})


def measure(seeds: Sequence[int], workdir: pathlib.Path) -> None:
    """Runs what is missing, seed by seed, and adds each to the record."""
    settings = {"scale": SCALE, "phantom": VERSIONS["fixed"]}
    record = SeedRecord(NAME, COMMAND, settings)
    for seed in seeds:
        for one in trainings(workdir):
            for pattern, records in run(one, seed, workdir).items():
                record.add(one.name, pattern, seed, records)
        record.save()


# What it says


def values(runs: Runs, name: str, pattern: str, row: str, target: str) -> pd.Series:
    """A patient's PSNR, its mean over seeds."""
    seeds = [
        per_patient(records, CONVENTION)[row, target, WHOLE, "psnr"]
        for records in runs[name][pattern].values()
    ]
    return pd.concat(seeds).groupby(level="patient").mean()


def targets_of(pattern: str) -> list[str]:
    """What is made of a pattern's sources."""
    return [name for name in ALL if name not in pattern.split(JOIN)]


def beside_dedicated(runs: Runs) -> pd.DataFrame:
    """A line for each pattern, target and system that is dedicated to it: any less dedicated."""
    lines: dict[tuple[str, str, str], Summary] = {}
    for pattern in (PAPER, *SINGLE):
        first = next(iter(runs["dedicated"][pattern].values()))
        for target, system in itertools.product(targets_of(pattern), SYSTEMS):
            if system in first[0]["rows"]:
                own, theirs = (
                    values(runs, name, pattern, system, target) for name in (ANY, "dedicated")
                )
                lines[pattern, target, system] = summarize(own - theirs)
    return _table(lines, "difference")


def along_chain(runs: Runs) -> pd.DataFrame:
    """A line for each system and further source: what it changes of `CHAINED`."""
    lines: dict[tuple[str, str, str], Summary] = {}
    for system, (fewer, more) in itertools.product(SYSTEMS, itertools.pairwise(CHAIN)):
        with_it, without = (values(runs, ANY, p, system, CHAINED) for p in (more, fewer))
        lines[fewer, more, system] = summarize(with_it - without)
    return _table(lines, "gain", ("from", "to", "system"))


def from_lacking(runs: Runs) -> pd.DataFrame:
    """A line for each pattern and target: patients who lack one as well, less the others alone."""
    lines: dict[tuple[str, str, str], Summary] = {}
    for pattern in PATTERNS:
        for target in targets_of(pattern):
            both, alone = (values(runs, n, pattern, "m1", target) for n in (LACKING, COMPLETE))
            lines[pattern, target, "m1"] = summarize(both - alone)
    return _table(lines, "gain")


def _table(
    lines: Mapping[tuple[str, str, str], Summary],
    heading: str,
    names: Sequence[str] = ("sources", "target", "system"),
) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(lines, names=names)
    return pd.DataFrame({heading: list(lines.values())}, index=index)


def levels(runs: Runs) -> pd.DataFrame:
    """A line for each pattern and target, a column for each system: PSNR in dB."""
    rows = {}
    for pattern in PATTERNS:
        for target in targets_of(pattern):
            first = next(iter(runs[ANY][pattern].values()))
            rows[pattern, target] = {
                row: f"{values(runs, ANY, pattern, row, target).mean():.2f}"
                for row in first[0]["rows"]
            }
    index = pd.MultiIndex.from_tuples(rows, names=["sources", "target"])
    return pd.DataFrame(list(rows.values()), index=index)


def findings(runs: Runs) -> list[str]:
    """Markdown lines: the three answers."""
    dedicated, chain, lacking = beside_dedicated(runs), along_chain(runs), from_lacking(runs)
    close = [one.mean >= -CLOSE for one in dedicated["difference"]]
    worst = min(dedicated["difference"], key=lambda one: one.mean)
    harm = [one for one in chain["gain"] if one.interval and one.interval[1] < 0]
    gains = [one for one in lacking["gain"] if one.interval and one.interval[0] > 0]
    losses = [one for one in lacking["gain"] if one.interval and one.interval[1] < 0]
    mean = pd.Series([one.mean for one in lacking["gain"]]).mean()
    return [
        f"- One checkpoint is at most {CLOSE} dB behind the dedicated networks in {sum(close)} of "
        f"{len(close)} comparisons; furthest behind it is by {with_interval(worst, '+.2f')} dB.",
        f"- A further source makes {CHAINED} worse beyond its interval in {len(harm)} of "
        f"{len(chain)} steps.",
        f"- Training patients who lack a modality change {mean:+.2f} dB in the mean: better beyond "
        f"the interval in {len(gains)} of {len(lacking)} patterns and targets, worse in "
        f"{len(losses)}.",
    ]


def report(content: Mapping[str, Any]) -> str:
    """The whole Markdown text, from the record alone."""
    runs = content["runs"]
    patients = next(iter(runs[ANY][PAPER].values()))
    number = len(runs[ANY][PAPER])
    tables = {
        f"Less networks dedicated to the pattern (at most {TIMES} times the steps), dB": (
            beside_dedicated(runs)
        ),
        f"{CHAINED} by what is given, dB": along_chain(runs),
        "M1 trained on half of the patients with all modalities and half who lack one, less that "
        "trained on the former alone, dB": from_lacking(runs),
    }
    parts = [
        "# One checkpoint for whatever is missing",
        f"Made by `{content['command']}`, networks and lengths `{content['scale']}`.",
        "\n".join(findings(runs)),
        *(f"{title}:\n\n{to_markdown(_texts(found))}" for title, found in tables.items()),
        f"PSNR in dB of one checkpoint by pattern, baselines fitted for each:\n\n"
        f"{to_markdown(levels(runs).reset_index().set_index('sources'))}",
        f"Means over {len(patients)} unseen phantom patients and "
        f"{f'{number} seeds' if number > 1 else 'one seed'}, 95 % bootstrap intervals over "
        f"patients in brackets; convention `{CONVENTION}`. The scale of whole volumes, which only "
        "fixed tasks correct, is left as predicted.",
    ]
    return "\n\n".join(parts) + "\n"


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    """A table of summaries in words, with one column as its index."""
    texts = table.map(lambda one: with_interval(one, "+.2f")).reset_index()
    return texts.set_index(texts.columns[0])


def show() -> None:
    """Prints and writes what the committed record says."""
    text = report(load_results(NAME))
    console.print(text, soft_wrap=True, markup=False)
    write(DOCS / f"{NAME}.md", text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, writes the record and shows it."""
    seed_by_seed(arguments, __doc__, measure, show, "runs/any_to_any")


if __name__ == "__main__":
    main()
