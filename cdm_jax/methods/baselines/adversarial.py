"""What the adversarial systems share: a generator and a discriminator that learn in turns."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from cdm_jax import parallel
from cdm_jax.methods.base import (
    Keys,
    Model,
    Samples,
    Sources,
    State,
    Translator,
    value_and_gradient,
)

NETWORKS = ("generator", "discriminator")

Images = Mapping[str, Float[Array, "b _ _ _"]]  # by kind, such as "source" and "target"


def score(module: nn.Module, params: PyTree, images: Float[Array, "b h w _"]) -> Array:
    """A discriminator's scores; running means that a BatchNorm would keep are dropped."""
    # The generator is scored by the discriminator that has just been updated.
    params = parallel.gather_params(params)
    return module.apply({"params": params}, images, mutable=["batch_stats"])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Translator):
    """A system whose generator translates in one pass.

    Attributes:
      optimizer: of the generator and of the discriminator, with a state for each.
    """

    optimizer: optax.GradientTransformation

    @abc.abstractmethod
    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, both in [-1, 1], as a trained system does."""

    def translate(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Samples:
        """The one translation that there is, whatever the key."""
        return self.generate(model, sources)[None]

    def start(
        self, params: dict[str, PyTree], *, statistics: Model | None = None, memory: Any = None
    ) -> State:
        """A state at step 0; `params` holds the parameters of each of `NETWORKS`."""
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            optimizer={network: self.optimizer.init(params[network]) for network in NETWORKS},
            statistics=statistics or {},
            memory=memory or {},
        )

    def update_network(
        self,
        state: State,
        network: str,
        loss: Callable[[PyTree], tuple[Float[Array, ""], Any]],
    ) -> tuple[State, Float[Array, ""], Any]:
        """One gradient step of the generator or the discriminator alone, on `loss(params)`.

        Returns:
          The state (its step number unchanged), the loss, and the second thing that it returned.
        """
        value, extra, gradient = value_and_gradient(loss, state.params[network])
        changes, optimizer = self.optimizer.update(
            gradient, state.optimizer[network], state.params[network]
        )
        params = optax.apply_updates(state.params[network], changes)
        state = state.replace(
            params={**state.params, network: params},
            optimizer={**state.optimizer, network: optimizer},
        )
        return state, value, extra


class Pool(NamedTuple):
    """Past synthetic images, which a discriminator is shown beside new ones (Shrivastava 2017).

    Attributes:
      images: the stored ones; only the first `filled` are in use.
      filled: how many there are.
    """

    images: Float[Array, "n h w c"]
    filled: Int[Array, ""]


def empty_pool(size: int, like: Float[Array, "b h w c"]) -> Pool:
    """A pool for `size` images of this shape."""
    return Pool(jnp.zeros((size, *like.shape[1:]), like.dtype), jnp.zeros((), jnp.int32))


def exchange(
    pool: Pool, images: Float[Array, "b h w c"], key: Key[Array, ""]
) -> tuple[Pool, Float[Array, "b h w c"]]:
    """Stores images, one after the other, and returns those that the discriminator is to see.

    While the pool fills up, each image is stored and returned. Afterwards, with equal chance, it is
    returned and not stored, or takes the place of a random stored one, which is returned.
    """
    size, number = pool.images.shape[0], len(images)
    images = parallel.gather(images)  # there is one pool for all devices

    def one(pool: Pool, item: tuple[Array, Array]) -> tuple[Pool, Array]:
        """The pool after one image, and the image to show for it."""
        image, key = item
        swap_key, place_key = jax.random.split(key)
        filling = pool.filled < size
        swap = jax.random.bernoulli(swap_key) & ~filling
        place = jnp.where(filling, pool.filled, jax.random.randint(place_key, (), 0, size))
        shown = jnp.where(swap, pool.images[place], image)
        stored = jnp.where(filling | swap, image, pool.images[place])
        full = Pool(pool.images.at[place].set(stored), jnp.minimum(pool.filled + 1, size))
        return full, shown

    pool, shown = jax.lax.scan(one, pool, (images, jax.random.split(key, len(images))))
    return pool, parallel.device_shard(shown, number)


def exchange_kinds(
    pools: Mapping[str, Pool], images: Images, key: Key[Array, ""]
) -> tuple[dict[str, Pool], Images]:
    """`exchange` for each kind of images, with a pool of its own."""
    memory, shown = {}, {}
    for kind, kind_key in zip(pools, jax.random.split(key, len(pools)), strict=True):
        memory[kind], shown[kind] = exchange(pools[kind], images[kind], kind_key)
    return memory, shown


# Losses of the discriminator's scores.

AdversarialLoss = Callable[[Float[Array, "..."], bool], Float[Array, ""]]


def least_squares(scores: Float[Array, "..."], real: bool) -> Float[Array, ""]:
    """Mean squared distance of the scores from 1 (real) or 0 (Mao et al. 2017, LSGAN)."""
    return jnp.mean((scores - float(real)) ** 2)


def cross_entropy(scores: Float[Array, "..."], real: bool) -> Float[Array, ""]:
    """Binary cross-entropy of the scores as logits (Goodfellow et al. 2014)."""
    labels = jnp.full_like(scores, float(real))
    return jnp.mean(optax.sigmoid_binary_cross_entropy(scores, labels))


def discriminator_loss(
    loss: AdversarialLoss, real: Float[Array, "..."], synthetic: Float[Array, "..."]
) -> Float[Array, ""]:
    """Half of the loss on real images plus half of that on synthetic ones."""
    return (loss(real, True) + loss(synthetic, False)) / 2
