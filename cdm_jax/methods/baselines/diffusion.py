"""Conditional diffusion of pixels (Dhariwal & Nichol 2021): ADM with the sources concatenated.

The noised targets and the sources enter the UNet as channels of one image, as the low-resolution
image does in the publication's upsamplers. Sampling takes as many passes of the UNet as CDM's
takes of its small MDN, by the same DDIM. The variance is not learned: DDIM makes no use of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from cdm_jax import draws
from cdm_jax.diffusion.ddim import DDIM, Predict, make_sampler
from cdm_jax.diffusion.process import PREDICTIONS
from cdm_jax.errors import UserError
from cdm_jax.methods.base import (
    Batch,
    Keys,
    Metrics,
    Model,
    Samples,
    Sources,
    State,
    Translator,
    apply,
    gradient_step,
    new_state,
)
from cdm_jax.methods.settings import build, check_choice
from cdm_jax.nn.adm import ADM, attention_levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(Translator):
    """The system.

    Attributes:
      network: from (x_t and what is given, t) to its prediction.
      optimizer: of all parameters.
      average_decay: decay of the moving average of parameters, 0 for none.
      sampler: DDIM with the schedule of training.
    """

    network: ADM
    optimizer: optax.GradientTransformation
    average_decay: float
    sampler: DDIM

    stochastic = True

    @property
    def validation_passes(self) -> int:
        """One for each step of the sampler."""
        return self.sampler.num_steps

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters."""
        x = jnp.concatenate([batch["target"], batch["source"]], axis=-1)
        params = self.network.init(key, x, jnp.zeros(len(x), jnp.int32))["params"]
        return new_state(params, self.optimizer, averaged=bool(self.average_decay), frozen={})

    def _predict(self, params: Any, given: Array, **options: Any) -> Predict:
        def predict(x_t: Array, t: Array) -> Array:
            x = jnp.concatenate([x_t, given], axis=-1)
            return apply(self.network, params, x, t, **options)

        return predict

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of denoising the targets."""
        loss_key, dropout_key = jax.random.split(key)

        def loss(params: Any) -> tuple[Array, Metrics]:
            rngs = {"dropout": dropout_key}
            predict = self._predict(params, batch["source"], train=True, rngs=rngs)
            return self._loss(predict, batch, loss_key), {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def _loss(self, predict: Predict, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        errors, _ = self.sampler.errors(predict, batch["target"], key)
        return jnp.mean(errors**2)

    def translate(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Samples:
        """Independent samples given the sources, one after the other: one fills a device."""
        predict = self._predict(model["params"], sources)
        keys = draws.split(key, num_samples)
        return jax.lax.map(lambda key: self._sample(predict, sources, key), keys)

    def _sample(self, predict: Predict, sources: Sources, key: Keys) -> Float[Array, "b h w t"]:
        noise_key, step_key = draws.split(key)
        noise = draws.normal(noise_key, (*sources.shape[:3], self.network.outputs))
        return self.sampler.sample(predict, noise, step_key)

    def facts(self) -> dict[str, str]:
        """How it is sampled."""
        return {"sampler": str(self.sampler)}


def create_network(config: Any) -> ADM:
    """The UNet of `config[config.stage]` for the target modalities and size of `config.data`.

    Its `attention` holds sides of feature maps in pixels, see `attention_levels`.

    Raises:
      UserError: a size, a side or a number of heads that does not fit.
    """
    section = config[config.stage]
    multipliers = tuple(section.multipliers)
    attention = attention_levels(config.data.size, len(multipliers), section.attention)
    for level in (*attention, len(multipliers) - 1):  # the middle has the last level's channels
        channels = multipliers[level] * section.width
        if section.heads < 1 or channels % section.heads:
            raise UserError(
                f"{config.stage}.heads {section.heads} do not divide {channels} channels: use "
                f"a divisor of {config.stage}.width {section.width}"
            )
    return build(ADM, section, outputs=len(config.data.targets), attention=attention)


def create_sampler(config: Any) -> DDIM:
    """CDM's DDIM with the schedule of `config[config.stage]`; x_0 stays within [-1, 1].

    Raises:
      UserError: a prediction, a schedule or a number of steps that does not exist.
    """
    section = config[config.stage]
    check_choice(config.stage, section, "prediction", PREDICTIONS)
    return make_sampler(config.sampler, section, prediction=section.prediction, clip=1.0)


def create(config: Any) -> Diffusion:
    """The system described by `config[config.stage]`.

    Raises:
      UserError: options or sizes that do not fit.
    """
    section = config[config.stage]
    network, sampler = create_network(config), create_sampler(config)
    return build(Diffusion, section, network=network, sampler=sampler)
