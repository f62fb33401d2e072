"""LSGAN with a discriminator and a pool of past synthetic images for each of several kinds."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.methods.base import Batch, Metrics, State
from cdm_jax.methods.baselines.adversarial import (
    Adversarial,
    Images,
    discriminator_loss,
    empty_pool,
    exchange_kinds,
    least_squares,
    score,
)


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

    @abc.abstractmethod
    def generator_loss(
        self, params: PyTree, state: State, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[Images, Metrics]]:
        """The weighted sum, the synthetic images, and parts of the sum without their weights."""

    def real(self, batch: Batch) -> Images:
        """Images of each kind for the discriminators."""
        return batch

    def begin(self, key: Key[Array, ""], generator: PyTree, batch: Batch) -> State:
        """A state at step 0 with empty pools for images of these kinds and shapes."""
        images = self.real(batch)
        discriminators = {
            kind: self.discriminator.init(kind_key, images[kind])["params"]
            for kind, kind_key in zip(images, jax.random.split(key, len(images)), strict=True)
        }
        return self.start(
            {"generator": generator, "discriminator": discriminators},
            memory={kind: empty_pool(self.pool, shown) for kind, shown in images.items()},
        )

    def adversarial_loss(self, state: State, synthetic: Images) -> Float[Array, ""]:
        """What the generator loses where the discriminators know its images, over all kinds."""
        loss = jnp.zeros(())
        for kind, images in synthetic.items():
            scores = score(self.discriminator, state.params["discriminator"][kind], images)
            loss += least_squares(scores, True)
        return loss

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """A step of all generators, then one of all discriminators."""
        state, loss, (synthetic, metrics) = self.update_network(
            state, "generator", lambda params: self.generator_loss(params, state, batch)
        )
        # The images from before the generators' step: the official codes make them once a step.
        memory, shown = exchange_kinds(state.memory, synthetic, key)
        real = self.real(batch)

        def loss_of_discriminators(params: PyTree) -> tuple[Float[Array, ""], None]:
            """Half of real and half of shown images, summed over the kinds."""
            loss = jnp.zeros(())
            for kind in shown:
                scores = (
                    score(self.discriminator, params[kind], images[kind])
                    for images in (real, shown)
                )
                loss += discriminator_loss(least_squares, *scores)
            return loss, None

        state, discriminator_value, _ = self.update_network(
            state, "discriminator", loss_of_discriminators
        )
        metrics |= {"loss": loss, "discriminator_loss": discriminator_value}
        return state.replace(step=state.step + 1, memory=memory), metrics
