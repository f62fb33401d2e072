"""RegGAN (Kong et al. 2021): a registration accounts for targets that lie a little aside.

The targets correct the generator after a second network has laid its images on them. This is the
publication's NC+R, without a cycle.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Metrics, Model, State, apply
from cdm_jax.methods.baselines.adversarial import Adversarial, least_squares, score
from cdm_jax.methods.baselines.reggan_network import (
    RandomAffine,
    RegistrationNetwork,
    smoothness,
    warp,
)
from cdm_jax.methods.settings import build, check_least, check_size
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.nn.resnet import ResNetGenerator


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegGAN(Adversarial):
    """A generator and a registration network, which learn together, and a discriminator.

    Attributes:
      network: source images to target images.
      registration: the displacement between synthetic and true targets; only training needs it.
      discriminator: of target images.
      correction_weight: of the distance between displaced syntheses and targets.
      smoothness_weight: of the displacement's squared slopes.
      misalignment: moves sources and targets in training, each by itself.
    """

    network: nn.Module
    registration: nn.Module
    discriminator: nn.Module
    correction_weight: float
    smoothness_weight: float
    misalignment: RandomAffine

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks."""
        keys = jax.random.split(key, 3)
        source, target = batch["source"], batch["target"]
        generator = {
            "network": self.network.init(keys[0], source)["params"],
            "registration": self.registration.init(keys[1], target, target)["params"],
        }
        discriminator = self.discriminator.init(keys[2], target)["params"]
        return self.start({"generator": generator, "discriminator": discriminator})

    def _misalign(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Sources and targets as two scans that were never registered."""
        source_key, target_key = jax.random.split(key)
        return {
            "source": self.misalignment(source_key, batch["source"]),
            "target": self.misalignment(target_key, batch["target"]),
        }

    def _score(self, params: PyTree, images: Float[Array, "b h w _"]) -> Float[Array, " b"]:
        """One score for each image: the mean over its patches."""
        return score(self.discriminator, params, images).mean(axis=(1, 2, 3))

    def _generator_loss(
        self, params: PyTree, discriminator: PyTree, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum, and its parts without their weights."""
        synthetic = apply(self.network, params["network"], batch["source"])
        displacement = apply(self.registration, params["registration"], synthetic, batch["target"])
        parts = {
            "adversarial": least_squares(self._score(discriminator, synthetic), True),
            "correction": jnp.abs(warp(synthetic, displacement) - batch["target"]).mean(),
            "smoothness": smoothness(displacement),
        }
        loss = parts["adversarial"] + self.correction_weight * parts["correction"]
        return loss + self.smoothness_weight * parts["smoothness"], parts

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """A step of generator and registration on moved images, then one of the discriminator.

        As in the official code, the discriminator is shown images of the updated generator, and its
        losses on real and on synthetic images are not halved.
        """
        move_key, _ = jax.random.split(key)
        moved = self._misalign(batch, move_key)
        discriminator = state.params["discriminator"]
        state, loss, metrics = self.update_network(
            state, "generator", lambda params: self._generator_loss(params, discriminator, moved)
        )
        synthetic = apply(self.network, state.params["generator"]["network"], moved["source"])

        def loss_of_discriminator(params: PyTree) -> tuple[Float[Array, ""], None]:
            real = least_squares(self._score(params, moved["target"]), True)
            return real + least_squares(self._score(params, synthetic), False), None

        state, discriminator_loss, _ = self.update_network(
            state, "discriminator", loss_of_discriminator
        )
        metrics |= {"loss": loss, "discriminator_loss": discriminator_loss}
        return state.replace(step=state.step + 1), metrics

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, both in [-1, 1]; nothing is registered."""
        return apply(self.network, model["params"]["generator"]["network"], sources)


def create(config: Any) -> RegGAN:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: a size or a number that does not fit.
    """
    check_size(config, 4)
    stage, section, size = config.stage, config[config.stage], config.data.size
    check_least(stage, section, blocks=1)
    scales = len(section.registration)
    if not scales or size >> scales < 2:
        raise UserError(
            f"{stage}.registration has {scales} scales: use between 1 and "
            f"{size.bit_length() - 2} at {size} pixels, so that two are left at the bottom"
        )
    targets = len(config.data.targets)
    return build(
        RegGAN,
        section,
        network=ResNetGenerator(section.width, section.blocks, targets, initial="pytorch"),
        registration=RegistrationNetwork(tuple(section.registration)),
        discriminator=PatchGAN(section.width, initial="pytorch"),
        misalignment=RandomAffine(**section.misalignment),
    )
