"""CycleGAN (Zhu et al. 2017): two generators that undo one another, trained without pairs."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleGAN(Pooled):
    """A generator in each direction, and a discriminator and a pool for each domain.

    Attributes:
      to_target: source images to target images.
      to_source: target images to source images.
      cycle_weight: of the distance between images and what both generators in turn make of them.
      identity_weight: of the distance between images that are in a generator's domain already and
        what it makes of them; 0 leaves these passes out.
    """

    to_target: nn.Module
    to_source: nn.Module
    cycle_weight: float
    identity_weight: float

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks and empty pools."""
        target_key, source_key, discriminator_key = jax.random.split(key, 3)
        generators = {
            "to_target": self.to_target.init(target_key, batch["source"])["params"],
            "to_source": self.to_source.init(source_key, batch["target"])["params"],
        }
        return self.begin(discriminator_key, generators, batch)

    def generator_loss(
        self, params: PyTree, state: State, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[Images, Metrics]]:
        """The weighted sum (Eq. 3 and section 5.2), the synthetic images, and its parts."""

        def to_target(images: Array) -> Array:
            return apply(self.to_target, params["to_target"], images)

        def to_source(images: Array) -> Array:
            return apply(self.to_source, params["to_source"], images)

        source, target = batch["source"], batch["target"]
        synthetic = {"source": to_source(target), "target": to_target(source)}
        adversarial = self.adversarial_loss(state, synthetic)
        cycle = jnp.abs(to_source(synthetic["target"]) - source).mean()
        cycle += jnp.abs(to_target(synthetic["source"]) - target).mean()
        loss = adversarial + self.cycle_weight * cycle
        if self.identity_weight:
            identity = jnp.abs(to_target(target) - target).mean()
            identity += jnp.abs(to_source(source) - source).mean()
            loss += self.identity_weight * identity
        return loss, (synthetic, {"adversarial": adversarial, "cycle": cycle})

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, both in [-1, 1]."""
        return apply(self.to_target, model["params"]["generator"]["to_target"], sources)


def create(config: Any) -> CycleGAN:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: a size or a number of modalities that does not fit.
    """
    check_resnet(config)
    section = config[config.stage]
    to_source, to_target = (
        ResNetGenerator(section.width, section.blocks, len(modalities))
        for modalities in (config.data.sources, config.data.targets)
    )
    return build(
        CycleGAN,
        section,
        to_target=to_target,
        to_source=to_source,
        discriminator=PatchGAN(section.width),
        paired=not section.unpaired,
    )
