"""ADM, the UNet of guided diffusion (Dhariwal & Nichol 2021).

Residual blocks that a timestep scales and shifts, self-attention on the small feature maps, and
last convolutions of zero, so that a fresh network answers zero and fresh blocks add nothing.
Initial values, the epsilon of norms and the order of channels within attention are PyTorch's.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from cdm_jax.errors import UserError
from cdm_jax.nn.convolution import NORM_EPSILON, Conv
from cdm_jax.nn.dropout import Dropout
from cdm_jax.nn.embeddings import sinusoidal

GROUPS = 32


def groups_of(channels: int) -> int:
    """32 for every published width, of 64 channels and more; of fewer, groups of four channels.

    A group of a single channel loses the channel's scale. A narrow network cannot tell then how
    much noise it is shown, and DDIM never takes away what its first steps have left.
    """
    wide = channels >= 2 * GROUPS and channels % GROUPS == 0
    return GROUPS if wide else math.gcd(channels, max(channels // 4, 1))


class GroupNorm(nn.Module):
    """Normalizes `groups_of` groups of channels over all places."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Features in, normalized features out."""
        return nn.GroupNorm(
            num_groups=groups_of(x.shape[-1]), epsilon=NORM_EPSILON, use_fast_variance=False
        )(x)


def zero_conv(features: int, kernel: int) -> nn.Conv:
    """A convolution that starts as zero and keeps the size of images."""
    return nn.Conv(
        features,
        (kernel, kernel),
        padding=((kernel // 2, kernel // 2),) * 2,
        kernel_init=nn.initializers.zeros,
    )


class Linear(nn.Module):
    """A linear layer with PyTorch's initial values: a 1x1 convolution of a single place."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b _"]) -> Float[Array, "b {self.features}"]:
        """Vectors in, vectors out."""
        return Conv(self.features, 1)(x[:, None, None, :])[:, 0, 0, :]


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Half the resolution: means of 2x2 pixels."""
    return nn.avg_pool(x, (2, 2), (2, 2))


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Twice the resolution: every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


RESIZE = {"": lambda x: x, "down": halve, "up": double}


def rematerialized(block: type[nn.Module], static: tuple[int, ...] = ()) -> type[nn.Module]:
    """The block with less memory in training: of its inside, only convolutions' outputs are kept.

    Norms, activations and attention are computed again when the gradient needs them. That is most
    of what a block holds, and a small part of its operations. Names of parameters do not change.

    Args:
      block: a module's class.
      static: arguments of its call that are no arrays, counted from 1.
    """

    def is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive is jax.lax.conv_general_dilated_p

    leaner: Any = nn.remat(block, policy=is_kept, static_argnums=static)
    leaner.__name__ = block.__name__  # Flax names parameters by it
    return leaner


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions after GroupNorm and SiLU, the second norm scaled and shifted by time.

    Attributes:
      features: output channels.
      dropout: share of features left out before the last convolution in training.
      resize: "" or the change of resolution within the block, "down" or "up".
    """

    features: int
    dropout: float
    resize: str = ""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w _"], embedding: Float[Array, "b e"], train: bool
    ) -> Float[Array, "b _ _ {self.features}"]:
        """Refines x given the embedded timestep."""
        resize = RESIZE[self.resize]
        h = Conv(self.features, 3, padding=1)(resize(nn.silu(GroupNorm()(x))))
        code = Linear(2 * self.features)(nn.silu(embedding))
        scale, shift = jnp.split(code[:, None, None, :], 2, axis=-1)
        h = nn.silu(GroupNorm()(h) * (1 + scale) + shift)
        h = zero_conv(self.features, 3)(Dropout(self.dropout)(h, train))
        x = resize(x)
        return h + (x if x.shape[-1] == self.features else Conv(self.features, 1)(x))


class SelfAttention(nn.Module):
    """Self-attention between all places, beside a residual.

    Attributes:
      heads: each holds its queries, keys and values side by side (the released models' order).
    """

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Features in, features of the same shape out."""
        b, h, w, channels = x.shape
        width = channels // self.heads
        combined = Conv(3 * channels, 1)(GroupNorm()(x)).reshape(b, h * w, self.heads, 3 * width)
        query, key, value = jnp.split(combined, 3, axis=-1)
        root = width**-0.25  # on both factors: their products stay small
        scores = jnp.einsum("bqhc,bkhc->bhqk", query * root, key * root)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores, axis=-1), value)
        return x + zero_conv(channels, 1)(mixed.reshape(b, h, w, channels))


class ADM(nn.Module):
    """The UNet.

    Attributes:
      outputs: output channels.
      width: channels that the multipliers multiply.
      multipliers: of the channels at each level; every level has half the resolution of the last.
      blocks: residual blocks of a level on the way down; one more on the way up.
      attention: levels whose residual blocks are followed by attention; the middle always has it.
      heads: of attention.
      resblock_updown: changes resolution within a residual block instead of by a convolution.
      dropout: see `ResidualBlock`.
      remat: see `rematerialized`: less memory in training, the same values.
    """

    outputs: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int
    resblock_updown: bool
    dropout: float = 0.0
    remat: bool = False

    def _residual(self, features: int, resize: str = "") -> nn.Module:
        block = rematerialized(ResidualBlock, static=(3,)) if self.remat else ResidualBlock
        return block(features, self.dropout, resize)

    def _attention(self) -> nn.Module:
        return (rematerialized(SelfAttention) if self.remat else SelfAttention)(self.heads)

    def _embed(self, t: Array, condition: Array | None, dtype: Any) -> Array:
        """The timestep, and the condition added to it through a linear layer of zero."""
        features = 4 * self.width
        time = sinusoidal(t, self.width).astype(dtype)
        embedding = Linear(features)(nn.silu(Linear(features)(time)))
        if condition is None:
            return embedding
        return embedding + nn.Dense(features, kernel_init=nn.initializers.zeros)(condition)

    def _refine(self, x: Array, embedding: Array, train: bool, level: int) -> Array:
        features = self.multipliers[level] * self.width
        x = self._residual(features)(x, embedding, train)
        return self._attention()(x) if level in self.attention else x

    def _resize(self, x: Array, embedding: Array, train: bool, kind: str) -> Array:
        features = x.shape[-1]
        if self.resblock_updown:
            return self._residual(features, kind)(x, embedding, train)
        if kind == "down":
            return Conv(features, 3, stride=2, padding=1)(x)
        return Conv(features, 3, padding=1)(double(x))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Int[Array, "b"],
        condition: Float[Array, "b d"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w {self.outputs}"]:
        """The prediction for images x at timestep t, given one vector an image or none."""
        last = len(self.multipliers) - 1
        given = self._embed(t, condition, x.dtype), train
        x = Conv(self.multipliers[0] * self.width, 3, padding=1)(x)
        skips = [x]
        for level in range(last + 1):
            for _ in range(self.blocks):
                x = self._refine(x, *given, level)
                skips.append(x)
            if level < last:
                x = self._resize(x, *given, "down")
                skips.append(x)
        x = self._residual(x.shape[-1])(x, *given)
        x = self._residual(x.shape[-1])(self._attention()(x), *given)
        for level in range(last, -1, -1):
            for _ in range(self.blocks + 1):
                x = self._refine(jnp.concatenate([x, skips.pop()], axis=-1), *given, level)
            if level:
                x = self._resize(x, *given, "up")
        return zero_conv(self.outputs, 3)(nn.silu(GroupNorm()(x)))


def attention_levels(size: int, levels: int, sides: Sequence[int]) -> tuple[int, ...]:
    """The levels whose feature maps have these sides, for images of `size` pixels a side.

    The released models name attention so: "32,16,8" for 256 pixels is where the resolution is an
    eighth, a sixteenth and a thirty-second.

    Raises:
      UserError: the size cannot be halved often enough, or no level has such a side.
    """
    halvings = levels - 1
    if size % 2**halvings:
        raise UserError(
            f"images of {size} pixels cannot be halved {halvings} times: use a multiple of "
            f"{2**halvings} as data.size, or fewer multipliers"
        )
    found = [size >> level for level in range(levels)]
    if missing := [side for side in sides if side not in found]:
        raise UserError(
            f"attention on feature maps of {missing[0]} pixels: those of images of {size} pixels "
            f"with {levels} multipliers have {', '.join(map(str, found))}; choose among these"
        )
    return tuple(level for level, side in enumerate(found) if side in sides)
