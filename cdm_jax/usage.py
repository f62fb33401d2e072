"""What each command is called, does, needs and takes: all that help and parsing know of it."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any


def _folder(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder is needed, got nothing")
    return pathlib.Path(text)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number, 1 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' should be a number") from error


def _page(text: str) -> pathlib.Path:
    if not text.lower().endswith((".html", ".htm")):
        raise argparse.ArgumentTypeError(f"'{text}' should end in .html")
    return pathlib.Path(text)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag `--name=value`.

    Attributes:
      name: without dashes; also the keyword argument of the command's function.
      text: what it is for.
      value: stands for the value in the help.
      default: where it is not given; None: there is no default, or the text says which.
      kind: from the text given to the value.
      required: whether the command cannot do without.

    A flag of kind bool is given without a value, and `value` is empty.
    """

    name: str
    text: str
    value: str = "FOLDER"
    default: Any = None
    kind: Callable[[str], Any] = _folder
    required: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command as its help presents it.

    Attributes:
      summary: one line.
      text: what it does and needs.
      flags: all that it takes.
      examples: arguments of two calls.
      overrides: whether config values can be overridden by `--config.<key>=<value>`.
    """

    summary: str
    text: str
    flags: tuple[Flag, ...]
    examples: tuple[str, str]
    overrides: bool = True


PROCESSES = (
    Flag("coordinator_address", "address of the first", "HOST:PORT", "", str),
    Flag("num_processes", "how many", "N", 0, int),
    Flag("process_id", "which one this is, from 0", "K", -1, int),
)
CONFIG = Flag(
    "config",
    "config file and stage, such as configs/brats.py:cdm",
    value="FILE:STAGE",
    default="configs/phantom.py:cdm",
    kind=str,
)
SAVED_CONFIG = Flag(
    "config",
    "config file and stage; default: the config that the run was trained with",
    value="FILE:STAGE",
    kind=str,
)
WORKDIR = Flag("workdir", "folder of the run; default runs/<dataset of the config>")

COMMANDS = {
    "train": Command(
        summary="train a stage, or all stages of a system, and score it",
        text="""
            Trains the stage after the colon (mrm, mdn, cunet, m1, ...), or all stages of a system
            (cdm, all, ...; configs/common.py lists them) and then scores it on the test patients.
            The same command continues an interrupted run. Needs a config and patients:
            configs/phantom.py simulates its own, the others need --config.data.root=<folder>.
            """,
        flags=(CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "train --config=configs/phantom.py:cdm,smoke --workdir=runs/smoke",
            "train --config=configs/brats.py:cdm --config.data.root=/data/BraTS2023",
        ),
    ),
    "evaluate": Command(
        summary="score a run's systems on its test patients",
        text="""
            Writes a JSON record for each test patient to <workdir>/evaluation and prints the
            tables. Needs a run with trained systems.
            """,
        flags=(SAVED_CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "evaluate --workdir=runs/brats",
            "evaluate --config=configs/brats.py:cdm --workdir=runs/brats "
            "--config.data.root=/data/BraTS2023",
        ),
    ),
    "calibrate": Command(
        summary="make intervals for synthesize, on a run's validation patients",
        text="""
            Conformal risk control over the validation patients; synthesize with as many samples
            then writes the lower and upper ends of an interval for each voxel. Needs a run with a
            trained system whose samples differ, or that predicts ends (its config value
            `quantiles`): the stage of --config, cunet by default. Of one that predicts ends of T1c
            from T1 it also calibrates a map of the probability that a voxel enhances. A system for
            whatever is missing is calibrated for each pattern of the config's `evaluate.patterns`.
            """,
        flags=(
            SAVED_CONFIG,
            WORKDIR,
            Flag(
                "samples",
                "samples of each patient, as many as synthesize will draw",
                value="N",
                default=8,
                kind=_at_least_one,
            ),
            Flag("level", "nominal coverage, between 0 and 1", "SHARE", 0.9, _number),
            *PROCESSES,
        ),
        examples=(
            "calibrate --workdir=runs/brats",
            "calibrate --workdir=runs/brats --samples=16 --level=0.8",
        ),
    ),
    "synthesize": Command(
        summary="make the missing modalities of one patient or a cohort, as NIfTI",
        text="""
            Writes each target modality on the grid of the input, with a JSON sidecar and an
            overview; with several samples their mean, their deviation and, after calibrate with
            as many samples, the ends of an interval (and the probability that a voxel enhances,
            where calibrate says that it has one). What is done already is left alone. Needs no
            training: without --workdir, the model that ships with cdm_jax makes what each patient
            lacks of T1, T1c, T2 and T2-FLAIR. Needs of each patient the source modalities:
            skull-stripped, on one grid, named as in BraTS, UPenn-GBM or BIDS (or by the patterns
            that the system was trained with). A patient who cannot be made stops no other; all
            such are listed at the end.
            """,
        flags=(
            Flag(
                "workdir",
                "folder of the run, of which CDM's cunet is taken, or of one of its systems, "
                "such as runs/brats/m1; default: the model that ships with cdm_jax",
            ),
            Flag("input", "one patient's folder, or a folder of many", required=True),
            Flag("output", "a folder for each patient is made in it", required=True),
            Flag(
                "samples",
                "samples of each patient; a deterministic system, as the one that ships, has 1",
                "N",
                1,
                _at_least_one,
            ),
            Flag(
                "checkpoint",
                "which one of the system: best (in validation) or last",
                value="best|last",
                default="best",
                kind=str,
            ),
            Flag(
                "make",
                "modalities to make, with commas between; default: all that the system makes, "
                "or, of a system for whatever is missing, all that a patient lacks",
                value="MODALITIES",
                default="",
                kind=str,
            ),
            Flag(
                "replace",
                "of a system for whatever is missing: make these also where they are there, "
                "from the others",
                value="",
                kind=bool,
            ),
            Flag(
                "resample_to",
                "resample the other sources onto the grid of this one, in world coordinates; "
                "they have to be registered",
                value="MODALITY",
                kind=str,
            ),
            Flag("bids", "write BIDS derivatives with a dataset_description.json", "", kind=bool),
            *PROCESSES,
        ),
        examples=(
            "synthesize --input=patient --output=synthetic",
            "synthesize --workdir=runs/brats --input=cohort --output=synthetic --samples=8",
        ),
        overrides=False,
    ),
    "score": Command(
        summary="score anybody's synthetic images against the real ones",
        text="""
            Prints and writes tables and a record for each patient, under every convention. Needs
            no model. Files are matched by the names of BraTS, UPenn-GBM and BIDS, any others by
            equal paths below the two folders.
            """,
        flags=(
            Flag("input", "folder of the synthetic images", required=True),
            Flag("truth", "folder of the real patients", required=True),
            Flag("output", "where the records go; default <input>/scores"),
        ),
        examples=(
            "score --input=synthetic --truth=patient",
            "score --input=synthetic --truth=/data/BraTS2023 --output=scores",
        ),
        overrides=False,
    ),
    "report": Command(
        summary="write a run's pages: tables, curves, pictures, a viewer",
        text="""
            Writes <workdir>/report/index.html, to be opened from disk. Needs a run that has been
            evaluated.
            """,
        flags=(
            SAVED_CONFIG,
            WORKDIR,
            Flag("patients", "unseen patients to show in pictures", "N", 3, _at_least_one),
            *PROCESSES,
        ),
        examples=("report --workdir=runs/brats", "report --workdir=runs/brats --patients=10"),
    ),
    "prepare": Command(
        summary="find, split and cache the patients, and train nothing",
        text="""
            Writes <workdir>/split.json and <workdir>/cache, which train then finds. Needs a config
            and patients, as train does.
            """,
        flags=(CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "prepare --config=configs/brats.py:cdm --config.data.root=/data/BraTS2023",
            "prepare --config=configs/brats.py:cdm,size=128 --config.data.root=/data/BraTS2023 "
            "--workdir=runs/brats128",
        ),
    ),
    "doctor": Command(
        summary="examine a folder of patients: what is wrong with it, and what to do",
        text="""
            Reads every image and says what is wrong or odd: files, headers, grids, values, swapped
            modalities, skulls, labels, patients that are there twice. Changes nothing. The exit
            code is 1 where there are errors, which train would end at or learn nonsense from, and
            0 where there are only warnings and notes. Needs patients and no model. Files are found
            by the names of BraTS, UPenn-GBM and BIDS, or by the patterns of a config.
            """,
        flags=(
            Flag("input", "one patient's folder, or a folder of many", required=True),
            Flag(
                "config",
                "config file and stage whose modalities and patterns of names to take",
                value="FILE:STAGE",
                kind=str,
            ),
            Flag("against", "another folder, which should hold none of these patients"),
            Flag("json", "also write all findings there, for programs", "FILE"),
            Flag(
                "page",
                "also write a page there, for a browser; its name ends in .html",
                value="FILE",
                kind=_page,
            ),
        ),
        examples=(
            "doctor --input=/data/BraTS2023 --page=doctor.html",
            "doctor --input=/data/UPENN-GBM --against=/data/BraTS2023 --json=doctor.json",
        ),
    ),
    "phantom": Command(
        summary="simulate patients and write them as NIfTI",
        text="""
            Writes them to <workdir>/patients, or to --config.data.root. Needs a config with a
            section phantom.
            """,
        flags=(CONFIG, WORKDIR, *PROCESSES),
        examples=(
            "phantom --workdir=runs/phantom",
            "phantom --config=configs/phantom.py:cdm,smoke --config.data.root=simulated",
        ),
    ),
}
