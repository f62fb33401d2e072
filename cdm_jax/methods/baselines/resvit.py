"""ResViT, a residual vision transformer (Dalmaz et al. 2022), in the official code's two stages.

The first stage trains the network without its transformer, the second goes on from its weights with
the transformer. Both learn by a conditional PatchGAN, least squares, and 100 times L1.
"""

import dataclasses
import logging
from typing import Any

import flax.traverse_util
from jaxtyping import Array, Key, PyTree

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Model, State
from cdm_jax.methods.baselines.adversarial import AdversarialLoss, least_squares
from cdm_jax.methods.baselines.pix2pix import Pix2pix
from cdm_jax.methods.baselines.resvit_network import TOKEN_SIZE, ResViTGenerator
from cdm_jax.methods.baselines.resvit_pretrained import with_pretrained
from cdm_jax.methods.settings import build, check_least, check_size
from cdm_jax.nn.patchgan import PatchGAN

FIRST_STAGE = "resvit_cnn"

_logger = logging.getLogger(__name__)


def inherit(fresh: PyTree, given: PyTree) -> PyTree:
    """Fresh values, those that the first stage has replaced by it.

    Raises:
      UserError: the first stage has others, or others' shapes.
    """
    ours, theirs = (flax.traverse_util.flatten_dict(tree) for tree in (fresh, given))
    for place, value in theirs.items():
        if place not in ours or ours[place].shape != value.shape:
            raise UserError(
                f"{FIRST_STAGE}'s {'/'.join(place)} does not fit into this stage: give both the "
                f"same width and blocks, and train {FIRST_STAGE} anew"
            )
    return flax.traverse_util.unflatten_dict({**ours, **theirs})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResViT(Pix2pix):
    """Either stage: pix2pix's losses with least squares, and another generator.

    Attributes:
      generator: with or without its transformer.
      pretrained: path of the transformer's public weights, or "".
    """

    pretrained: str
    adversarial_loss: AdversarialLoss = least_squares

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The first stage, where this is the second."""
        return (FIRST_STAGE,) if self.generator.transformer_blocks else ()

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks; the second stage's generator begins where the first one's ended."""
        state = super().init(key, batch, frozen)
        if not self.depends_on:
            return state
        first = frozen[FIRST_STAGE]
        generator = inherit(state.params["generator"], first["params"]["generator"])
        if self.pretrained:
            generator = with_pretrained(generator, self.pretrained)
        else:
            _logger.warning(
                "resvit.pretrained names no file: the transformer starts from random weights, not "
                "from ImageNet-21k as published"
            )
        statistics = inherit(state.statistics["generator"], first["statistics"]["generator"])
        params = {**state.params, "generator": generator}
        return self.start(params, statistics={"generator": statistics})


def _check(config: Any) -> None:
    """Refuses settings that no network can be built from."""
    stage, section = config.stage, config[config.stage]
    check_size(config, TOKEN_SIZE if section.transformer else 4)
    check_least(stage, section, blocks=1, heads=1)
    if not section.transformer:
        return
    numbers = tuple(section.transformer_blocks)
    if not numbers or not set(numbers) <= set(range(1, section.blocks + 1)):
        raise UserError(
            f"{stage}.transformer_blocks {numbers}: give one or more of 1 to {section.blocks}"
        )
    if section.hidden % section.heads:
        raise UserError(
            f"{stage}.hidden {section.hidden} cannot be shared out over {section.heads} heads: "
            f"use a multiple of {section.heads}"
        )
    if not 0 <= section.dropout < 1:
        raise UserError(f"{stage}.dropout is {section.dropout}: it must be in [0, 1)")


def create(config: Any) -> ResViT:
    """The stage described by `config[config.stage]`, with or without its transformer.

    Raises:
      UserError: a size, a number of blocks or of heads, or a dropout that does not fit.
    """
    _check(config)
    section = config[config.stage]
    generator = build(
        ResViTGenerator,
        section,
        transformer_blocks=tuple(section.transformer_blocks) if section.transformer else (),
        num_targets=len(config.data.targets),
    )
    discriminator = PatchGAN(section.width, norm="batch")
    return build(ResViT, section, generator=generator, discriminator=discriminator)
