"""RCG, representation-conditioned generation (Li et al. 2024), with its ADM pixel generator.

A representation is sampled by the RDM, and an image is sampled given that representation. No source
image enters: what comes out is a random brain, to be compared with those that know the patient.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from cdm_jax import draws
from cdm_jax.diffusion.ddim import DDIM
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
from cdm_jax.methods.baselines import rdm
from cdm_jax.methods.baselines.diffusion import (
    Predict,
    create_network,
    create_sampler,
    denoising_loss,
)
from cdm_jax.methods.cdm.mdn import MDN
from cdm_jax.nn.adm import ADM
from cdm_jax.optim import average_decay, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RCG(Translator):
    """The pixel generator as a training stage, and RCG as a "translator".

    Attributes:
      network: from (x_t, t, y) to its prediction.
      rdm: the stage that samples y.
      optimizer: of all parameters.
      average_decay: decay of the moving average of parameters, 0 for none.
      sampler: DDIM of pixels, with the schedule of training.
      condition_dropout: probability that a learned null replaces y in training.
    """

    network: ADM
    rdm: MDN
    optimizer: optax.GradientTransformation
    average_decay: float
    sampler: DDIM
    condition_dropout: float

    depends_on = ("mrm", "rdm")
    stochastic = True

    @property
    def validation_passes(self) -> int:
        """One for each step of the sampler."""
        return self.sampler.num_steps

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters beside the frozen MRM and RDM."""
        width, x = self.rdm.representation.representation_width, batch["target"]
        t, y = jnp.zeros(len(x), jnp.int32), jnp.zeros((len(x), width))
        params = {"network": self.network.init(key, x, t, y)["params"], "null": jnp.zeros(width)}
        return new_state(params, self.optimizer, averaged=bool(self.average_decay), frozen=frozen)

    def _predict(self, params: Any, y: Float[Array, "b d"], **options: Any) -> Predict:
        return lambda x_t, t: apply(self.network, params["network"], x_t, t, y, **options)

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of denoising the targets given their own representation, or the null."""
        null_key, loss_key, dropout_key = jax.random.split(key, 3)
        truth = self.rdm.representation.represent(state.frozen["mrm"], batch["target"])
        null = functools.partial(jax.random.bernoulli, p=self.condition_dropout)
        dropped = draws.draw(null_key, (len(truth), 1), null)

        def loss(params: Any) -> tuple[Array, Metrics]:
            y = jnp.where(dropped, params["null"][None], truth)
            predict = self._predict(params, y, train=True, rngs={"dropout": dropout_key})
            return denoising_loss(predict, self.sampler, batch["target"], loss_key), {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def translate(
        self,
        model: Model,
        sources: Float[Array, "b h w s"],
        key: Key[Array, "*keys"],
        num_samples: int,
    ) -> Float[Array, "k b h w t"]:
        """Images of any brains: only the number and size of the sources count."""
        y_key, noise_key = draws.split(key)
        y = self.rdm.samples(model["frozen"]["rdm"], sources, y_key, num_samples)
        shape = (*sources.shape[:3], self.network.outputs)

        def one(given: tuple[Array, Array]) -> Array:
            y, key = given
            noise_key, step_key = draws.split(key)
            noise = draws.normal(noise_key, shape)
            return self.sampler.sample(self._predict(model["params"], y), noise, step_key)

        return jax.lax.map(one, (y, draws.split(noise_key, num_samples)))

    def facts(self) -> dict[str, str]:
        """How it is sampled."""
        return {"sampler": f"{self.sampler}; of y: {self.rdm.sampler}"}


def create(config: Any) -> RCG:
    """The system described by `config[config.stage]`, over the RDM of `config.rdm`.

    Raises:
      UserError: options or sizes that do not fit.
    """
    section = config[config.stage]
    return RCG(
        network=create_network(config),
        rdm=rdm.create(config, "rdm"),
        optimizer=make_optimizer(section.optimizer, section.train.num_steps),
        average_decay=average_decay(section),
        sampler=create_sampler(config),
        condition_dropout=section.condition_dropout,
    )
