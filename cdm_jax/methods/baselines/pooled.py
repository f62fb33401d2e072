"""LSGAN with a discriminator and a pool of past synthetic images for each of several kinds."""

import dataclasses
from collections.abc import Mapping

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.methods.base import State
from cdm_jax.methods.baselines.adversarial import (
    Adversarial,
    discriminator_loss,
    empty_pool,
    exchange,
    least_squares,
    score,
)

Images = Mapping[str, Float[Array, "b _ _ _"]]  # by kind, such as the two domains of CycleGAN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled(Adversarial):
    """A system whose discriminators are told of images by least squares (Mao et al. 2017).

    Attributes:
      discriminator: the network; each kind of image has parameters of its own.
      pool: past synthetic images that are kept of each kind.
      paired: whether a batch's sources and targets are of the same slices.
    """

    discriminator: nn.Module
    pool: int
    paired: bool = False

    def begin(self, key: Key[Array, ""], generator: PyTree, images: Images) -> State:
        """A state at step 0 with empty pools for images of these kinds and shapes."""
        discriminators = {
            kind: self.discriminator.init(kind_key, images[kind])["params"]
            for kind, kind_key in zip(images, jax.random.split(key, len(images)), strict=True)
        }
        return self.start(
            {"generator": generator, "discriminator": discriminators},
            memory={kind: empty_pool(self.pool, shown) for kind, shown in images.items()},
        )

    def generator_adversarial_loss(self, state: State, synthetic: Images) -> Float[Array, ""]:
        """What the generator loses where the discriminators know its images, over all kinds."""
        discriminators = state.params["discriminator"]
        scores = [
            score(self.discriminator, discriminators[kind], images)
            for kind, images in synthetic.items()
        ]
        return sum((least_squares(one, True) for one in scores[1:]), least_squares(scores[0], True))

    def discriminate(
        self, state: State, real: Images, synthetic: Images, key: Key[Array, ""]
    ) -> tuple[State, Float[Array, ""]]:
        """One step of the discriminators on real images and on what the pools return for new ones.

        Returns:
          The state with these discriminators and pools, and their loss, a sum over the kinds.
        """
        memory, shown = {}, {}
        kind_keys = jax.random.split(key, len(synthetic))
        for (kind, images), kind_key in zip(synthetic.items(), kind_keys, strict=True):
            memory[kind], shown[kind] = exchange(state.memory[kind], images, kind_key)

        def loss(params: PyTree) -> tuple[Float[Array, ""], None]:
            """Half of real and half of shown images, summed over the kinds."""
            scores = {
                kind: [
                    score(self.discriminator, params[kind], images[kind])
                    for images in (real, shown)
                ]
                for kind in shown
            }
            losses = [discriminator_loss(least_squares, *pair) for pair in scores.values()]
            return sum(losses[1:], losses[0]), None

        state, value, _ = self.update_network(state, "discriminator", loss)
        return state.replace(memory=memory), value
