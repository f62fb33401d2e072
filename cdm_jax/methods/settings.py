"""Checks of settings that several adversarial systems have in common."""

from typing import Any

from cdm_jax.errors import UserError

SMALLEST = 24  # at fewer pixels no score is left of a PatchGAN


def check_size(config: Any, multiple: int) -> None:
    """Refuses images that the networks of this stage cannot take.

    Args:
      config: whole config; `data.size` is checked.
      multiple: what the generator needs the size to be a multiple of.

    Raises:
      UserError: the size does not fit the generator or is too small for a PatchGAN.
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
    for name in ("blocks", "pool"):
        if section[name] < 1:
            raise UserError(f"{stage}.{name} {section[name]} is too small: use 1 or more")
    sources, targets = len(config.data.sources), len(config.data.targets)
    if section.identity_weight and sources != targets:
        raise UserError(
            f"{stage}.identity_weight {section.identity_weight} asks the generator to keep target "
            f"images as they are, which needs as many source as target modalities, not {sources} "
            f"and {targets}: use --config.{stage}.identity_weight=0"
        )
