"""RDM, the representation diffusion model of RCG (Li et al. 2024), over the frozen MRM's y.

Unconditional: a sample is the representation of some brain. The publication's y is that of a
network pretrained on natural images, standardized slice by slice; here it is CDM's own, so that the
two differ in what is done with it alone. The last DDIM step goes to alpha_bar = 1, as in Song et
al. 2021; the official code stops at that of the first timestep.
"""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, Int

from cdm_jax.diffusion.ddim import make_sampler
from cdm_jax.methods.base import Method
from cdm_jax.methods.cdm import mdn, mrm
from cdm_jax.methods.settings import build
from cdm_jax.nn.adm import Linear
from cdm_jax.nn.embeddings import sinusoidal


def zero_linear(features: int) -> nn.Dense:
    """A linear layer that starts as zero."""
    return nn.Dense(features, kernel_init=nn.initializers.zeros)


class ResidualBlock(nn.Module):
    """LayerNorm, SiLU and linear twice beside a residual, timestep and context added in between."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b w"], time: Float[Array, "b e"], context: Float[Array, "b c"] | None
    ) -> Float[Array, "b w"]:
        """Refines x given the embedded timestep and, where there is one, a context."""
        width = x.shape[-1]
        h = Linear(width)(nn.silu(nn.LayerNorm()(x))) + Linear(width)(nn.silu(time))
        if context is not None:
            h += Linear(width)(nn.silu(context))
        return x + zero_linear(width)(nn.silu(nn.LayerNorm()(h)))


class SimpleMLP(nn.Module):
    """The network.

    Attributes:
      representation_width: length of y.
      width: features of the residual blocks, and of the sinusoids of the timestep.
      blocks: residual blocks.
      time_width: features of the embedded timestep.
    """

    representation_width: int
    width: int
    blocks: int
    time_width: int

    @nn.compact
    def __call__(
        self,
        y_t: Float[Array, "b d"],
        t: Int[Array, "b"],
        context: Float[Array, "b c"] | None = None,
    ) -> Float[Array, "b d"]:
        """The prediction for y_t at timestep t."""
        time = nn.silu(Linear(self.time_width)(sinusoidal(t, self.width).astype(y_t.dtype)))
        time = Linear(self.time_width)(time)
        x = Linear(self.width)(y_t)
        for _ in range(self.blocks):
            x = ResidualBlock()(x, time, context)
        return zero_linear(self.representation_width)(nn.silu(nn.LayerNorm()(x)))


class RDM(mdn.MDN):
    """MDN's stage, of whose samples nobody asks how far they may be trusted."""

    # Thousands of samples of 250 steps, as MDN measures them, would take longer than training.
    finish = Method.finish


def create(config: Any, stage: str = "") -> RDM:
    """The stage of this name (by default the config's own), over the y of `config.mrm`.

    It differs from CDM's MDN in its network, its schedule, its sampler and in seeing no patient.

    Raises:
      UserError: options or sizes that do not fit.
    """
    section = config[stage or config.stage]
    representation = mrm.create(config)
    width = representation.representation_width
    return build(
        RDM,
        section,
        representation=representation,
        denoiser=build(SimpleMLP, section, representation_width=width),
        encoder=None,
        sampler=make_sampler(section.sampler, section, prediction="x0"),
        augmentation=None,
        num_samples=config.evaluate.num_samples,
        num_sources=len(config.data.sources),
    )
