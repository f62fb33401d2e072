"""GcGAN (Fu et al. 2019): a generator that commutes with a rotation, without pairs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.methods.base import Batch, Metrics, Model, State, apply
from cdm_jax.methods.baselines.adversarial import Images
from cdm_jax.methods.baselines.pooled import Pooled
from cdm_jax.methods.settings import build, check_resnet
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.nn.resnet import ResNetGenerator


def rotate(images: Float[Array, "b h w c"], times: int = 1) -> Float[Array, "b _ _ c"]:
    """Images rotated clockwise by this many right angles."""
    return jnp.rot90(images, -times, axes=(1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GcGAN(Pooled):
    """One generator for images as they are and rotated; a discriminator and a pool for each.

    Attributes:
      generator: source images to target images.
      geometry_weight: of the distance between the translation and the one by way of the rotation,
        in both frames.
      identity_weight: of the distance between targets and what the generator makes of them, in
        both frames; 0 leaves these passes out.
    """

    generator: nn.Module
    geometry_weight: float
    identity_weight: float

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks and empty pools."""
        generator_key, discriminator_key = jax.random.split(key)
        generator = self.generator.init(generator_key, batch["source"])["params"]
        return self.begin(discriminator_key, generator, batch)

    def real(self, batch: Batch) -> Images:
        """The targets in both frames."""
        return self._frames(batch["target"])

    def _frames(self, images: Float[Array, "b h w c"]) -> Images:
        """The images as they are and rotated."""
        return {"plain": images, "transformed": rotate(images)}

    def generator_loss(
        self, params: PyTree, state: State, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[Images, Metrics]]:
        """The weighted sum, the synthetic images, and its parts."""

        def generate(images: Array) -> Array:
            return apply(self.generator, params, images)

        synthetic = {
            frame: generate(images) for frame, images in self._frames(batch["source"]).items()
        }
        adversarial = self.adversarial_loss(state, synthetic)
        geometry = self._inconsistency(synthetic)
        loss = adversarial + self.geometry_weight * geometry
        if self.identity_weight:
            for targets in self.real(batch).values():
                loss += self.identity_weight * jnp.abs(generate(targets) - targets).mean()
        return loss, (synthetic, {"adversarial": adversarial, "geometry": geometry})

    def _inconsistency(self, synthetic: Images) -> Float[Array, ""]:
        """Distance of each frame's images from the other's, brought over.

        What is brought over is held fixed, as in the official code: the value is the paper's, the
        gradient half of it.
        """
        plain, transformed = synthetic["plain"], synthetic["transformed"]
        fixed = jax.lax.stop_gradient
        distance = jnp.abs(plain - rotate(fixed(transformed), -1)).mean()
        return distance + jnp.abs(transformed - rotate(fixed(plain))).mean()

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, both in [-1, 1]."""
        return apply(self.generator, model["params"]["generator"], sources)


def create(config: Any) -> GcGAN:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: a size or a number of modalities that does not fit.
    """
    check_resnet(config)
    section = config[config.stage]
    targets = len(config.data.targets)
    return build(
        GcGAN,
        section,
        generator=ResNetGenerator(section.width, section.blocks, targets, initial="xavier"),
        discriminator=PatchGAN(section.width, initial="xavier"),
        paired=not section.unpaired,
    )
