"""What a command can refuse before it prepares the patients, which may take an hour.

All of it follows from the config, the devices and what lies in the workdir.
"""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from cdm_jax import checkpoint, guard, parallel
from cdm_jax.data.dataset import PARTS, find_split
from cdm_jax.errors import UserError, nearest
from cdm_jax.initial import find_initial
from cdm_jax.methods import base
from cdm_jax.metrics.conventions import get_convention
from cdm_jax.rows import asked_rows
from cdm_jax.run import check_earlier_stages, check_resumes, resolve
from cdm_jax.tasks import parse_pattern


def check_settings(config: ConfigDict, stage: str) -> base.Method:
    """Builds a stage's method, and with it refuses what does not fit together.

    Raises:
      UserError: no such stage, an option that does not exist, sizes that do not divide, a batch of
        nothing, or no steps.
    """
    sections = {name: part for name, part in config.items() if isinstance(part, ConfigDict)}
    known = [name for name, section in sections.items() if "method" in section]
    if stage not in known:
        raise UserError(
            f"the config has no stage {stage}{nearest(stage, known)}: it has {', '.join(known)}"
        )
    train = config[stage].train
    if train.batch_size_per_device < 1:
        raise UserError(
            f"{stage}.train.batch_size_per_device is {train.batch_size_per_device}: use 1 or more"
        )
    guard.is_skipping(train)
    return base.create(resolve(config, 1, stage))  # how many there are, no check asks


def check_training(config: ConfigDict, stages: Sequence[str], workdir: pathlib.Path) -> None:
    """Refuses stages that cannot be trained in this order, whoever the patients are.

    Raises:
      MissingStageError: a stage needs one that is neither finished nor trained before it.
      UserError: settings do not fit together, or not to what was trained in the workdir.
    """
    parallel.all_devices(config.parallel)
    split = find_split(config, workdir)
    for number, stage in enumerate(stages):
        method = check_settings(config, stage)
        own = config.copy_and_resolve_references()
        own.stage = stage
        check_resumes(own, workdir / stage, split)
        find_initial(config.init_from, stage)
        check_earlier_stages(own, workdir, method.depends_on, planned=stages[:number])


def check_evaluation(
    config: ConfigDict, workdir: pathlib.Path, planned: Sequence[str] = ()
) -> None:
    """Refuses an evaluation of systems or rows that there are not, whoever the patients are.

    Systems that are planned need not be trained yet: the same command trains them before.

    Raises:
      UserError: no such part, convention, system or row, or a system that has not been trained.
    """
    settings = config.evaluate
    if settings.part not in PARTS:
        raise UserError(
            f"no patients in part '{settings.part}' of the split to evaluate: evaluate.part is one "
            f"of {', '.join(PARTS)}"
        )
    if settings.batch_size < 1:
        raise UserError(f"evaluate.batch_size is {settings.batch_size}: use 1 or more")
    for name in settings.conventions:
        get_convention(name)
    for name in settings.patterns:
        parse_pattern(name, config.data.sources)
    methods = {}
    for stage in settings.systems:
        method = check_settings(config, stage)
        if not isinstance(method, base.Translator):
            raise UserError(f"evaluate.systems: {stage} makes no images that could be scored")
        methods[stage] = method
    asked_rows(config, methods)
    for stage in methods:
        if stage not in planned:
            check_trained(workdir / stage, find_split(config, workdir))


def check_trained(folder: pathlib.Path, split: str | None) -> None:
    """Refuses a system that is not trained to its end, or was on another split (None: any).

    Raises:
      UserError: as said.
    """
    if not checkpoint.finished(folder):
        raise UserError(
            f"{folder.name} has not been trained to its end in {folder}: train it, or leave it out "
            "by --config.evaluate.systems='(...)'"
        )
    saved = checkpoint.provenance(folder)
    if saved and split and saved.split != split:
        raise UserError(
            f"{folder} was trained on split {saved.split}, not on this data's {split}: its "
            "training patients may be among the test patients"
        )
