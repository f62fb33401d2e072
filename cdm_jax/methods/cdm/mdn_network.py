"""MDN's network (Fig. 3a): decoupling linear layers, towers of residual blocks, and their join."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from cdm_jax.nn.embeddings import sinusoidal


class Layer(nn.Module):
    """LayerNorm, SiLU and a linear layer: what every part of a residual block is made of."""

    features: int
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b _"]) -> Float[Array, "b {self.features}"]:
        """Vectors in, vectors out; with `zero` the linear layer starts at zero."""
        initial = nn.initializers.zeros if self.zero else nn.linear.default_kernel_init
        return nn.Dense(self.features, kernel_init=initial)(nn.silu(nn.LayerNorm()(x)))


class ResidualBlock(nn.Module):
    """Input layer, timestep layer (and source layer), output layer, beside a residual."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b w"], time: Float[Array, "b e"], context: Float[Array, "b c"] | None
    ) -> Float[Array, "b w"]:
        """Refines x given the embedded timestep and, where there is one, the encoded source."""
        width = x.shape[-1]
        h = Layer(width, name="input")(x) + Layer(width, name="timestep")(time)
        if context is not None:
            h += Layer(width, name="source")(context)
        return x + Layer(width, zero=True, name="output")(h)


class Denoiser(nn.Module):
    """Decoupling linear layers, towers of residual blocks, and the join.

    Attributes:
      representation_width: length of y.
      num_modalities: number of target modalities.
      width: features of a tower.
      blocks: residual blocks of a tower.
      decouple: "streams": one linear layer and one tower a modality, joined at the end;
        "merged": one linear layer a modality, summed into one tower;
        "none": one linear layer, one tower (the ablation M2).
    """

    representation_width: int
    num_modalities: int
    width: int
    blocks: int
    decouple: str

    def _tower(self, x: Array, time: Array, context: Array | None, name: str) -> Array:
        for block in range(self.blocks):
            x = ResidualBlock(name=f"{name}_block_{block}")(x, time, context)
        return x

    @nn.compact
    def __call__(
        self, y_t: Float[Array, "b d"], t: Int[Array, "b"], context: Float[Array, "b c"] | None
    ) -> Float[Array, "b d"]:
        """The prediction for y_t at timestep t."""
        time = sinusoidal(t, self.width).astype(y_t.dtype)
        time = nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(time)))
        names = [f"modality_{m}" for m in range(self.num_modalities)]
        if self.decouple == "none":
            return self._output(self._tower(self._enter(y_t, "all"), time, context, "all"))
        if self.decouple == "merged":
            merged = jnp.sum(jnp.stack([self._enter(y_t, name) for name in names]), axis=0)
            return self._output(self._tower(merged, time, context, "all"))
        streams = [self._tower(self._enter(y_t, name), time, context, name) for name in names]
        return self._output(jnp.concatenate(streams, axis=-1))

    def _enter(self, y_t: Array, name: str) -> Array:
        return nn.Dense(self.width, name=f"{name}_decouple")(y_t)

    def _output(self, x: Array) -> Array:
        return Layer(self.representation_width, zero=True, name="output")(x)
