"""CUT (Park et al. 2020): what a patch became must still be told apart by where it came from.

One generator, trained without pairs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Metrics, Model, State, apply
from cdm_jax.methods.baselines.adversarial import (
    Adversarial,
    discriminator_loss,
    least_squares,
    score,
)
from cdm_jax.methods.settings import build, check_least, check_size
from cdm_jax.nn.convolution import kernel_values
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.nn.resnet import NCE_LAYERS, ResNetGenerator

Features = list[Float[Array, "b _ _ _"]]
Places = list[Int[Array, " _"]]  # of each layer, in raster order

_XAVIER = kernel_values("xavier")
_TINY = 1e-7  # beside a code's length where it is divided by it


class ProjectionHeads(nn.Module):
    """Two linear layers for the patches of each layer of an encoder, to codes of unit length.

    Attributes:
      features: length of the codes.
    """

    features: int

    @nn.compact
    def __call__(self, layers: list[Float[Array, "b _ _"]]) -> list[Float[Array, "b _ _"]]:
        """Features of some places of each layer, to codes of the same places."""
        return [self._project(patches) for patches in layers]

    def _project(self, patches: Float[Array, "b n _"]) -> Float[Array, "b n {self.features}"]:
        hidden = nn.relu(nn.Dense(self.features, kernel_init=_XAVIER)(patches))
        codes = nn.Dense(self.features, kernel_init=_XAVIER)(hidden)
        square = jnp.sum(codes**2, axis=-1, keepdims=True)
        # A narrow head may return zeros, where a root has no slope.
        return codes / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + _TINY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CUT(Adversarial):
    """A generator whose encoder, with projection heads, also compares patches.

    Attributes:
      network: the generator, with a method `features`.
      projection: the heads.
      discriminator: of target images.
      contrast_weight: of PatchNCE.
      patches: places that are compared at each layer, or all where there are fewer.
      temperature: of PatchNCE.
      paired: whether a batch's sources and targets are of the same slices.
    """

    network: nn.Module
    projection: ProjectionHeads
    discriminator: nn.Module
    contrast_weight: float
    patches: int
    temperature: float
    paired: bool = False

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks; the heads take their widths from the generator's features."""
        network_key, projection_key, discriminator_key = jax.random.split(key, 3)
        network = self.network.init(network_key, batch["source"])["params"]
        features = self._features(network, batch["source"])
        patches = _select(features, [jnp.zeros(1, jnp.int32)] * len(features))
        projection = self.projection.init(projection_key, patches)["params"]
        discriminator = self.discriminator.init(discriminator_key, batch["target"])["params"]
        generator = {"network": network, "projection": projection}
        return self.start({"generator": generator, "discriminator": discriminator})

    def _features(self, network: PyTree, images: Float[Array, "b h w _"]) -> Features:
        return apply(self.network, network, images, method="features")

    def _draw(self, features: Features, key: Key[Array, ""]) -> Places:
        """Places of each layer, the same ones for all images of the batch."""
        return [
            jax.random.permutation(layer_key, layer.shape[1] * layer.shape[2])[: self.patches]
            for layer, layer_key in zip(features, jax.random.split(key, len(features)), strict=True)
        ]

    def _contrast(
        self,
        params: PyTree,
        images: Float[Array, "b h w _"],
        synthetic: Float[Array, "b h w _"],
        key: Key[Array, ""],
    ) -> Float[Array, ""]:
        """PatchNCE between images and what was made of them, averaged over the layers."""
        before = self._features(params["network"], images)
        after = self._features(params["network"], synthetic)
        places = self._draw(before, key)
        keys, queries = (
            apply(self.projection, params["projection"], _select(features, places))
            for features in (before, after)
        )
        losses = [patch_nce(q, k, self.temperature) for q, k in zip(queries, keys, strict=True)]
        return jnp.stack(losses).mean()

    def _generator_loss(
        self, params: PyTree, discriminator: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Adversarial loss and weighted contrast, and both by themselves."""
        source_key, target_key = jax.random.split(key)
        synthetic = self._synthesize(params, batch)
        contrast = self._contrast(params, batch["source"], synthetic["source"], source_key)
        kept = self._contrast(params, batch["target"], synthetic["target"], target_key)
        contrast = (contrast + kept) / 2
        scores = score(self.discriminator, discriminator, synthetic["source"])
        adversarial = least_squares(scores, True)
        loss = adversarial + self.contrast_weight * contrast
        return loss, {"adversarial": adversarial, "contrast": contrast}

    def _synthesize(self, params: PyTree, batch: Batch) -> Batch:
        """What the generator makes of the sources and of the targets."""
        inputs = jnp.concatenate([batch["source"], batch["target"]])
        source, target = jnp.split(apply(self.network, params["network"], inputs), 2)
        return {"source": source, "target": target}

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """A step of the discriminator, then one of the generator and its heads."""
        _, contrast_key = jax.random.split(key)
        synthetic = self._synthesize(state.params["generator"], batch)["source"]

        def loss_of_discriminator(params: PyTree) -> tuple[Float[Array, ""], None]:
            real, made = (
                score(self.discriminator, params, images) for images in (batch["target"], synthetic)
            )
            return discriminator_loss(least_squares, real, made), None

        state, discriminator_value, _ = self.update_network(
            state, "discriminator", loss_of_discriminator
        )
        discriminator = state.params["discriminator"]
        state, loss, metrics = self.update_network(
            state,
            "generator",
            lambda params: self._generator_loss(params, discriminator, batch, contrast_key),
        )
        metrics |= {"loss": loss, "discriminator_loss": discriminator_value}
        return state.replace(step=state.step + 1), metrics

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, both in [-1, 1]."""
        return apply(self.network, model["params"]["generator"]["network"], sources)


def patch_nce(
    queries: Float[Array, "b n f"], keys: Float[Array, "b n f"], temperature: float
) -> Float[Array, ""]:
    """Cross-entropy of finding each query's own key among all of its image (Park et al. 2020).

    Args:
      queries: codes of places of synthesized images, of unit length.
      keys: codes of the same places of the inputs, of unit length; no gradient reaches them.
      temperature: divides the similarities.
    """
    similarity = jnp.einsum("bnf,bmf->bnm", queries, jax.lax.stop_gradient(keys)) / temperature
    own = jnp.diagonal(similarity, axis1=1, axis2=2)
    return jnp.mean(jax.nn.logsumexp(similarity, axis=2) - own)


def _select(features: Sequence[Array], places: Places) -> list[Float[Array, "b _ _"]]:
    """The features of these places of each layer."""
    return [
        layer.reshape(len(layer), -1, layer.shape[-1])[:, chosen]
        for layer, chosen in zip(features, places, strict=True)
    ]


def create(config: Any) -> CUT:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: a size, a number or numbers of modalities that do not fit.
    """
    check_size(config, 4)
    stage, section = config.stage, config[config.stage]
    sources, targets = len(config.data.sources), len(config.data.targets)
    if sources != targets:
        raise UserError(
            f"{stage} shows its generator's encoder sources and syntheses alike, which needs as "
            f"many source as target modalities, not {sources} and {targets}: choose others in "
            "data.sources and data.targets"
        )
    check_least(stage, section, blocks=NCE_LAYERS, patches=2, projection=1)
    if section.temperature <= 0:
        raise UserError(f"{stage}.temperature {section.temperature} must be above 0: use 0.07")
    return build(
        CUT,
        section,
        network=ResNetGenerator(
            section.width, section.blocks, targets, antialias=True, initial="xavier"
        ),
        projection=ProjectionHeads(section.projection),
        discriminator=PatchGAN(section.width, antialias=True, initial="xavier"),
        paired=not section.unpaired,
    )
