"""Convolutions and norms as PyTorch computes them, so that systems published there are the same.

Flax's own defaults differ silently: "SAME" pads even sizes on one side at stride 2, transposed
convolutions are shifted by a pixel, norms have another epsilon, and initial values are others.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from cdm_jax import parallel

NORM_EPSILON = 1e-5

Initializer = Callable[..., Array]


def kernel_values(initial: str) -> Initializer:
    """PyTorch's default (Kaiming uniform of a = sqrt 5), N(0, .02), or Xavier normal, gain .02."""
    return {
        "pytorch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        "normal": nn.initializers.normal(0.02),
        "xavier": nn.initializers.variance_scaling(0.02**2, "fan_avg", "normal"),
    }[initial]


def bias_values(initial: str, fan_in: int) -> Initializer:
    """PyTorch's default, uniform within 1 / sqrt(fan_in), or zero."""
    if initial != "pytorch":
        return nn.initializers.zeros
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: Key[Array, ""], shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


class Conv(nn.Module):
    """A square convolution with the same padding on all sides.

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      stride: of both axes.
      padding: pixels of padding on each side.
      reflect: whether to pad by reflection instead of zeros.
      bias: whether to add one.
      initial: initial values: "pytorch" (its default), "normal" (deviation 0.02) or "xavier"
        (normal of gain 0.02), both with biases of zero.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    reflect: bool = False
    bias: bool = True
    initial: str = "pytorch"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ {self.features}"]:
        """Images in, images of (size + 2 padding - kernel) // stride + 1 out."""
        pad = ((self.padding, self.padding),) * 2
        if self.reflect:
            x = jnp.pad(x, ((0, 0), *pad, (0, 0)), mode="reflect")
            pad = ((0, 0),) * 2
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=pad,
            use_bias=self.bias,
            kernel_init=kernel_values(self.initial),
            bias_init=bias_values(self.initial, x.shape[-1] * self.kernel**2),
            name="conv",
        )(x)


class ConvTranspose(nn.Module):
    """A square transposed convolution; see `Conv` for the attributes that are not listed.

    Attributes:
      padding: pixels cut from each side of the full result, as PyTorch counts.
      output_padding: pixels added back at the end of each axis.
    """

    features: int
    kernel: int
    stride: int
    padding: int
    output_padding: int = 0
    bias: bool = True
    initial: str = "pytorch"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ {self.features}"]:
        """Images in, images of (size - 1) stride - 2 padding + kernel + output_padding out."""
        before = self.kernel - 1 - self.padding
        # PyTorch's fan-in of a transposed convolution is that of its output channels.
        fan_in = self.features * self.kernel**2
        kernel = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        return nn.ConvTranspose(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=((before, before + self.output_padding),) * 2,
            use_bias=self.bias,
            kernel_init=kernel if self.initial == "pytorch" else kernel_values(self.initial),
            bias_init=bias_values(self.initial, fan_in),
            name="conv",
        )(x)


class Norm(nn.Module):
    """Normalizes channels: "instance" over the places of an image, "batch" over a batch's as well.

    "instance" has no parameters. "batch" has scales (initially about 1) and biases, and running
    means in the collection "batch_stats", which it uses where `train` is false.

    Attributes:
      kind: "instance" or "batch".
      initial: of the scales: 1 ("pytorch"), or drawn around 1 with deviation 0.02.
    """

    kind: str
    initial: str = "pytorch"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Features in, normalized features out."""
        if self.kind == "instance":
            return nn.InstanceNorm(
                epsilon=NORM_EPSILON, use_bias=False, use_scale=False, use_fast_variance=False
            )(x)
        return nn.BatchNorm(
            use_running_average=not train,
            axis_name=parallel.axis(),  # statistics of the global batch
            momentum=0.9,
            epsilon=NORM_EPSILON,
            scale_init=nn.initializers.ones if self.initial == "pytorch" else _around_one,
            use_fast_variance=False,
        )(x)


def _around_one(key: Key[Array, ""], shape: Any, dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)
