"""Pix2pix (Isola et al. 2017): a UNet trained by L1 and by a discriminator that sees the source."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Metrics, Model, State
from cdm_jax.methods.baselines.adversarial import (
    Adversarial,
    AdversarialLoss,
    cross_entropy,
    discriminator_loss,
    score,
)
from cdm_jax.methods.settings import build, check_size
from cdm_jax.nn.convolution import Conv, ConvTranspose, Norm
from cdm_jax.nn.dropout import Dropout
from cdm_jax.nn.patchgan import PatchGAN

SLOPE = 0.2
WIDEST = 8  # most features of a level, in those of the first
DROPPED = 3  # most levels with dropout


class HalvingUNet(nn.Module):
    """A UNet of 4x4 convolutions of stride 2 down to few pixels: "unet_256" has eight of them.

    Attributes:
      width: features of the first level; each next one has twice as many, up to eight times.
      halvings: levels.
      num_targets: output channels.
      dropout: probability, in those of the decoder's levels that keep the greatest width, but not
        in the deepest one (three of eight levels).
    """

    width: int
    halvings: int
    num_targets: int
    dropout: float

    def _features(self, level: int) -> int:
        return self.width * min(2**level, WIDEST)

    def _dropped(self, level: int) -> bool:
        widest = level > 0 and self._features(level - 1) == self.width * WIDEST
        return widest and self.halvings - 1 - DROPPED <= level < self.halvings - 1

    @nn.compact
    def __call__(
        self, sources: Float[Array, "b h w s"], train: bool
    ) -> Float[Array, "b h w {self.num_targets}"]:
        """Source images to target images, both in [-1, 1].

        In training, norms use the batch (the collection "batch_stats" keeps running means) and
        dropout draws from the stream "dropout".
        """
        x, skips, deepest = sources, [], self.halvings - 1
        for level in range(self.halvings):
            x = x if level == 0 else nn.leaky_relu(x, SLOPE)
            x = Conv(self._features(level), 4, 2, 1, bias=False, initial="normal")(x)
            if 0 < level < deepest:
                x = Norm("batch", "normal")(x, train)
            skips.append(x)
        for level in range(deepest, 0, -1):
            features = self._features(level - 1)
            x = ConvTranspose(features, 4, 2, 1, bias=False, initial="normal")(nn.relu(x))
            x = Norm("batch", "normal")(x, train)
            if self._dropped(level):
                x = Dropout(self.dropout)(x, train)
            x = jnp.concatenate([skips[level - 1], x], axis=-1)
        return jnp.tanh(ConvTranspose(self.num_targets, 4, 2, 1, initial="normal")(nn.relu(x)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pix2pix(Adversarial):
    """The UNet against a PatchGAN that sees pairs of source and target images.

    Attributes:
      generator: the UNet.
      discriminator: of sources and targets, concatenated.
      l1_weight: of the mean absolute error (100 as published).
      adversarial_loss: of the discriminator's scores.
    """

    generator: nn.Module
    discriminator: nn.Module
    l1_weight: float
    adversarial_loss: AdversarialLoss = cross_entropy

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks; the statistics are the generator's running means."""
        generator_key, discriminator_key = jax.random.split(key)
        generator = self.generator.init(generator_key, batch["source"], False)
        pairs = jnp.concatenate([batch["source"], batch["target"]], axis=-1)
        discriminator = self.discriminator.init(discriminator_key, pairs)
        return self.start(
            {"generator": generator["params"], "discriminator": discriminator["params"]},
            statistics={"generator": generator["batch_stats"]},
        )

    def _paint(
        self, params: PyTree, state: State, sources: Array, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b h w t"], Model]:
        """Synthetic images as in training, and the running means after them."""
        variables = {"params": params, "batch_stats": state.statistics["generator"]}
        images, changed = self.generator.apply(
            variables, sources, True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return images, {"generator": changed["batch_stats"]}

    def _score(self, params: PyTree, sources: Array, targets: Array) -> Float[Array, "b _ _ 1"]:
        return score(self.discriminator, params, jnp.concatenate([sources, targets], axis=-1))

    def _discriminator_loss(
        self, params: PyTree, batch: Batch, synthetic: Float[Array, "b h w t"]
    ) -> tuple[Float[Array, ""], None]:
        real = self._score(params, batch["source"], batch["target"])
        scores = self._score(params, batch["source"], synthetic)
        return discriminator_loss(self.adversarial_loss, real, scores), None

    def _generator_loss(
        self, params: PyTree, state: State, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Model, Metrics]]:
        """Eq. 4 with the target flipped instead of the sign, the running means, and its parts."""
        synthetic, statistics = self._paint(params, state, batch["source"], key)
        scores = self._score(state.params["discriminator"], batch["source"], synthetic)
        adversarial = self.adversarial_loss(scores, True)
        l1 = jnp.abs(synthetic - batch["target"]).mean()
        loss = adversarial + self.l1_weight * l1
        return loss, (statistics, {"adversarial": adversarial, "l1": l1})

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """A step of the discriminator, then one of the generator on the same synthetic images."""
        # The same key gives the same dropout: both networks see the same images, as in the official
        # code, at the price of a second forward pass.
        synthetic, _ = self._paint(state.params["generator"], state, batch["source"], key)
        state, discriminator_loss, _ = self.update_network(
            state,
            "discriminator",
            lambda params: self._discriminator_loss(params, batch, synthetic),
        )
        state, loss, (statistics, metrics) = self.update_network(
            state, "generator", lambda params: self._generator_loss(params, state, batch, key)
        )
        metrics |= {"loss": loss, "discriminator_loss": discriminator_loss}
        return state.replace(step=state.step + 1, statistics=statistics), metrics

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, with running means and without dropout.

        The official test script keeps both as in training, with batches of one; its results
        depend on chance and, with larger batches, on what else is in a batch.
        """
        variables = {
            "params": model["params"]["generator"],
            "batch_stats": model["statistics"]["generator"],
        }
        return self.generator.bind(variables)(sources, False)


def create(config: Any) -> Pix2pix:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: a number of halvings, a size or a dropout that does not fit.
    """
    stage, section = config.stage, config[config.stage]
    if section.halvings < 2:
        raise UserError(f"{stage}.halvings {section.halvings} are too few: use 2 or more")
    if not 0 <= section.dropout < 1:
        raise UserError(f"{stage}.dropout is {section.dropout}: it must be in [0, 1)")
    check_size(config, 2**section.halvings)
    return build(
        Pix2pix,
        section,
        generator=build(HalvingUNet, section, num_targets=len(config.data.targets)),
        discriminator=PatchGAN(section.width, norm="batch"),
    )
