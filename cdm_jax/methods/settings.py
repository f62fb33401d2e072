"""Systems and networks from a config's settings, and checks that several of them have in common."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cdm_jax.errors import UserError
from cdm_jax.optim import average_decay, make_optimizer
from cdm_jax.tasks import task_of

SMALLEST = 24  # at fewer pixels no score is left of a PatchGAN

T = TypeVar("T")


def build(kind: Callable[..., T], section: Any, **parts: Any) -> T:
    """A system or a network whose attributes are the settings of the same names, and these parts.

    `optimizer` and `average_decay` of a system are made from the settings of its training.
    """
    names = (name for name in inspect.signature(kind).parameters if name in section)
    found = {name: section[name] for name in names if name not in parts}
    for name, value in found.items():
        if isinstance(value, list):  # a config that was read from a file has no tuples
            found[name] = tuple(value)
    if "optimizer" in found:
        found["optimizer"] = make_optimizer(section.optimizer, section.train.num_steps)
    if "average_decay" in found:
        found["average_decay"] = average_decay(section)
    return kind(**found, **parts)


def check_task(config: Any) -> None:
    """Refuses a context that is no number of slices, and what a compared system was not made for.

    Raises:
      UserError: as said.
    """
    context, stage = config.data.get("context", 0), config.stage
    if not isinstance(context, int) or isinstance(context, bool) or context < 0:
        raise UserError(
            f"data.context {context} is no number of slices: use 0 for the slice alone, or "
            "how many neighbors to each side are seen too, such as 1"
        )
    if config[stage].method.startswith("cdm."):
        return
    if task_of(config.data).is_any:
        raise UserError(
            f"{stage} has a fixed task, the published one: only CDM's stages and M1 take "
            "any modalities; use other data.sources and data.targets"
        )
    if context:
        raise UserError(
            f"{stage} sees single slices: only CDM's stages, M1 and M2 see neighbors; use "
            "--config.data.context=0 for it"
        )


def check_choice(stage: str, section: Any, name: str, allowed: Iterable[str]) -> None:
    """Refuses a setting that is none of those allowed, by a `UserError`."""
    if section[name] not in allowed:
        raise UserError(
            f"unknown {stage}.{name} '{section[name]}': allowed are {', '.join(allowed)}"
        )


def check_removed(stage: str, section: Any, **left: Any) -> None:
    """Refuses a model of a former version that had another value of an option than what is left."""
    for name, value in left.items():
        if section.get(name, value) != value:
            raise UserError(
                f"this model was trained with {stage}.{name}={section[name]}, which this version "
                f"cannot compute: only {value} is left; use the version that trained it"
            )


def check_quantiles(stage: str, section: Any) -> None:
    """Refuses `quantiles` that are no ends of an interval, by a `UserError`; () is for none."""
    quantiles = tuple(section.get("quantiles", ()))
    if quantiles and not (len(quantiles) == 2 and 0 < quantiles[0] < quantiles[1] < 1):
        raise UserError(
            f"{stage}.quantiles {quantiles} are no ends of an interval: give two numbers between 0 "
            "and 1, the lower one first, such as (0.05, 0.95), or () for none"
        )


def check_least(stage: str, section: Any, **smallest: int) -> None:
    """Refuses settings below the smallest value of their name, by a `UserError`."""
    for name, least in smallest.items():
        if section[name] < least:
            raise UserError(f"{stage}.{name} {section[name]} is too small: use {least} or more")


def check_size(config: Any, multiple: int) -> None:
    """Refuses a `data.size` that a PatchGAN, or a generator that needs a multiple, cannot take.

    Raises:
      UserError: the size is no such multiple, or too small.
    """
    size = config.data.size
    if size % multiple:
        raise UserError(
            f"data.size {size} does not fit {config.stage}, whose generator halves it: "
            f"use a multiple of {multiple}"
        )
    if size < SMALLEST:
        raise UserError(
            f"data.size {size} is too small for {config.stage}, whose discriminator scores "
            f"patches: use {SMALLEST} pixels or more"
        )


def check_resnet(config: Any) -> None:
    """Refuses settings that a ResNet generator with a pool of images cannot have.

    Raises:
      UserError: the size does not fit, there is no block or no pool, or an identity loss is asked
        for between images of different numbers of modalities.
    """
    stage, section = config.stage, config[config.stage]
    check_size(config, 4)
    check_least(stage, section, blocks=1, pool=1)
    sources, targets = len(config.data.sources), len(config.data.targets)
    if section.identity_weight and sources != targets:
        raise UserError(
            f"{stage}.identity_weight {section.identity_weight} asks the generator to keep target "
            f"images as they are, which needs as many source as target modalities, not {sources} "
            f"and {targets}: use --config.{stage}.identity_weight=0"
        )
