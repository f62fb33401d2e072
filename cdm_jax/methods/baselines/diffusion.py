"""Conditional diffusion of pixels (Dhariwal & Nichol 2021): ADM with the sources concatenated.

The noised targets and the sources enter the UNet as channels of one image, as the low-resolution
image does in the publication's upsamplers. Sampling takes as many passes of the UNet as CDM's
takes of its small MDN, by the same DDIM. The variance is not learned: DDIM makes no use of it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from cdm_jax import draws
from cdm_jax.diffusion.ddim import DDIM
from cdm_jax.diffusion.process import PREDICTIONS, corrupt, training_target
from cdm_jax.diffusion.schedule import alpha_bar, sampling_timesteps
from cdm_jax.errors import UserError
from cdm_jax.methods.base import (
    Batch,
    Metrics,
    Model,
    State,
    Translator,
    apply,
    gradient_step,
    new_state,
)
from cdm_jax.nn.adm import ADM, attention_levels
from cdm_jax.optim import average_decay, make_optimizer

Predict = Callable[[Float[Array, "b h w t"], Int[Array, "b"]], Float[Array, "b h w t"]]


def denoising_loss(
    predict: Predict, sampler: DDIM, images: Float[Array, "b h w t"], key: Key[Array, ""]
) -> Float[Array, ""]:
    """Mean squared error of a prediction at one uniform timestep an image (Ho et al. 2020, Eq. 14).

    Args:
      predict: the network, from (x_t, t) to what `sampler.prediction` names.
      sampler: its schedule is that of training.
      images: x_0 in [-1, 1].
      key: drives timesteps and noise.
    """
    time_key, noise_key = jax.random.split(key)
    table = jnp.asarray(sampler.alpha_bar, jnp.float32)
    timesteps = functools.partial(jax.random.randint, minval=0, maxval=table.shape[0])
    t = draws.draw(time_key, images.shape[:1], timesteps)
    noise = draws.normal(noise_key, images.shape)
    prediction = predict(corrupt(images, noise, table[t]), t)
    return jnp.mean(
        (prediction - training_target(sampler.prediction, images, noise, table[t])) ** 2
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(Translator):
    """The system.

    Attributes:
      network: from (x_t and the sources, t) to its prediction.
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

    def _predict(self, params: Any, sources: Float[Array, "b h w s"], **options: Any) -> Predict:
        def predict(x_t: Array, t: Array) -> Array:
            x = jnp.concatenate([x_t, sources], axis=-1)
            return apply(self.network, params, x, t, **options)

        return predict

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of denoising the targets."""
        loss_key, dropout_key = jax.random.split(key)

        def loss(params: Any) -> tuple[Array, Metrics]:
            rngs = {"dropout": dropout_key}
            predict = self._predict(params, batch["source"], train=True, rngs=rngs)
            return denoising_loss(predict, self.sampler, batch["target"], loss_key), {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def translate(
        self,
        model: Model,
        sources: Float[Array, "b h w s"],
        key: Key[Array, "*keys"],
        num_samples: int,
    ) -> Float[Array, "k b h w t"]:
        """Independent samples given the sources, one after the other: one fills a device."""
        predict = self._predict(model["params"], sources)
        shape = (*sources.shape[:3], self.network.outputs)

        def one(key: Array) -> Array:
            noise_key, step_key = draws.split(key)
            return self.sampler.sample(predict, draws.normal(noise_key, shape), step_key)

        return jax.lax.map(one, draws.split(key, num_samples))

    def facts(self) -> dict[str, str]:
        """How it is sampled."""
        return {"sampler": str(self.sampler)}


def create_network(config: Any) -> ADM:
    """The UNet of `config[config.stage]` for the target modalities and size of `config.data`.

    Its `attention` holds sides of feature maps in pixels, for images of `data.size`: (32, 16, 8) at
    256 pixels are the levels of an eighth to a thirty-second of the resolution, and at 128 pixels
    those of a quarter to a sixteenth.

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
    return ADM(
        outputs=len(config.data.targets),
        width=section.width,
        multipliers=multipliers,
        blocks=section.blocks,
        attention=attention,
        heads=section.heads,
        resblock_updown=section.resblock_updown,
        dropout=section.dropout,
        remat=section.remat,
    )


def create_sampler(config: Any) -> DDIM:
    """CDM's DDIM with the schedule of `config[config.stage]`; x_0 stays within [-1, 1].

    Raises:
      UserError: a prediction, a schedule or a number of steps that does not exist.
    """
    section = config[config.stage]
    if section.prediction not in PREDICTIONS:
        raise UserError(
            f"unknown {config.stage}.prediction '{section.prediction}': allowed are "
            f"{', '.join(PREDICTIONS)}"
        )
    sampling_timesteps(section.num_timesteps, config.sampler.num_steps, config.sampler.grid)
    return DDIM(
        alpha_bar=tuple(alpha_bar(section.schedule, section.num_timesteps).tolist()),
        num_steps=config.sampler.num_steps,
        eta=config.sampler.eta,
        grid=config.sampler.grid,
        prediction=section.prediction,
        clip=1.0,
    )


def create(config: Any) -> Diffusion:
    """The system described by `config[config.stage]`.

    Raises:
      UserError: options or sizes that do not fit.
    """
    section = config[config.stage]
    return Diffusion(
        network=create_network(config),
        optimizer=make_optimizer(section.optimizer, section.train.num_steps),
        average_decay=average_decay(section),
        sampler=create_sampler(config),
    )
