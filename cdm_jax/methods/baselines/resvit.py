"""ResViT, a residual vision transformer (Dalmaz et al. 2022), in the official code's two stages.

The first stage trains the network without its transformer, the second goes on from its weights with
the transformer. Both learn by a conditional PatchGAN, least squares, and 100 times L1.
"""

import dataclasses
import logging
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Metrics, Model, State
from cdm_jax.methods.baselines.adversarial import (
    Adversarial,
    discriminator_loss,
    least_squares,
    score,
)
from cdm_jax.methods.baselines.options import check_size
from cdm_jax.methods.baselines.resvit_network import TOKEN_SIZE, ResViTGenerator
from cdm_jax.methods.baselines.resvit_pretrained import with_pretrained
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.optim import make_optimizer

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
class ResViT(Adversarial):
    """Either stage.

    Attributes:
      generator: with or without its transformer.
      discriminator: of targets beside their sources.
      l1_weight: of the mean absolute error.
      pretrained: path of the transformer's public weights, or "".
    """

    generator: ResViTGenerator
    discriminator: PatchGAN
    l1_weight: float
    pretrained: str

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The first stage, where this is the second."""
        return (FIRST_STAGE,) if self.generator.transformer_blocks else ()

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks; the second stage's generator begins where the first one's ended."""
        generator_key, discriminator_key = jax.random.split(key)
        source, target = batch["source"], batch["target"]
        fresh = self.generator.init(generator_key, source, train=False)
        generator, statistics = fresh["params"], fresh["batch_stats"]
        pair = jnp.concatenate([source, target], axis=-1)
        discriminator = self.discriminator.init(discriminator_key, pair)["params"]
        if self.depends_on:
            first = frozen[FIRST_STAGE]
            generator = inherit(generator, first["params"]["generator"])
            statistics = inherit(statistics, first["statistics"]["generator"])
            generator = self._begin_transformer(generator)
        params = {"generator": generator, "discriminator": discriminator}
        return self.start(params, statistics={"generator": statistics})

    def _begin_transformer(self, generator: PyTree) -> PyTree:
        """Takes the public weights where there are any, and says so where there are none."""
        if self.pretrained:
            return with_pretrained(generator, self.pretrained)
        _logger.warning(
            "resvit.pretrained names no file: the transformer starts from random weights, not "
            "from ImageNet-21k as published"
        )
        return generator

    def _synthesize(
        self, params: PyTree, statistics: PyTree, sources: Array, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b h w t"], PyTree]:
        """Synthetic targets as in training, and the running means after them."""
        synthetic, changed = self.generator.apply(
            {"params": params, "batch_stats": statistics},
            sources,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return synthetic, changed["batch_stats"]

    def _score(
        self, params: PyTree, sources: Float[Array, "b h w s"], targets: Float[Array, "b h w t"]
    ) -> Float[Array, "b _ _ 1"]:
        return score(self.discriminator, params, jnp.concatenate([sources, targets], axis=-1))

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """The discriminator's step, then the generator's against the new discriminator."""
        source, target = batch["source"], batch["target"]
        statistics = state.statistics["generator"]
        # One image for both networks: the same dropout in both passes.
        synthetic, _ = self._synthesize(state.params["generator"], statistics, source, key)

        def loss_of_discriminator(params: PyTree) -> tuple[Array, None]:
            real = self._score(params, source, target)
            return discriminator_loss(
                least_squares, real, self._score(params, source, synthetic)
            ), None

        state, discriminator_value, _ = self.update_network(
            state, "discriminator", loss_of_discriminator
        )
        updated = state.params["discriminator"]

        def loss_of_generator(params: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
            """The generator's loss, its new running means, and the parts of the loss."""
            synthetic, changed = self._synthesize(params, statistics, source, key)
            adversarial = least_squares(self._score(updated, source, synthetic), True)
            l1 = jnp.abs(synthetic - target).mean()
            parts = {"adversarial": adversarial, "l1": l1}
            return adversarial + self.l1_weight * l1, (changed, parts)

        state, loss, (changed, parts) = self.update_network(state, "generator", loss_of_generator)
        state = state.replace(step=state.step + 1, statistics={"generator": changed})
        return state, {"loss": loss, "discriminator_loss": discriminator_value, **parts}

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Sources to targets with running means and without dropout."""
        variables = {
            "params": model["params"]["generator"],
            "batch_stats": model["statistics"]["generator"],
        }
        return self.generator.bind(variables)(sources, train=False)


def _check(config: Any) -> None:
    """Refuses settings that no network can be built from."""
    stage, section = config.stage, config[config.stage]
    check_size(config, TOKEN_SIZE if section.transformer else 4)
    for name in ("blocks", "heads"):
        if section[name] < 1:
            raise UserError(f"{stage}.{name} {section[name]} is too small: use 1 or more")
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
    section = config[config.stage]
    _check(config)
    generator = ResViTGenerator(
        width=section.width,
        blocks=section.blocks,
        transformer_blocks=tuple(section.transformer_blocks) if section.transformer else (),
        hidden=section.hidden,
        layers=section.layers,
        heads=section.heads,
        dropout=section.dropout,
        num_targets=len(config.data.targets),
    )
    return ResViT(
        optimizer=make_optimizer(section.optimizer, section.train.num_steps),
        generator=generator,
        discriminator=PatchGAN(section.width, norm="batch"),
        l1_weight=section.l1_weight,
        pretrained=section.pretrained,
    )
