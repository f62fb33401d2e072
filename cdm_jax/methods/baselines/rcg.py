"""RCG, representation-conditioned generation (Li et al. 2024), with its ADM pixel generator.

A representation is sampled by the RDM, and an image is sampled given that representation. No source
image enters: what comes out is a random brain, to be compared with those that know the patient.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from cdm_jax import draws
from cdm_jax.diffusion.ddim import Predict
from cdm_jax.methods.base import (
    Batch,
    Keys,
    Metrics,
    Model,
    Samples,
    Sources,
    State,
    apply,
    gradient_step,
    new_state,
)
from cdm_jax.methods.baselines import rdm
from cdm_jax.methods.baselines.diffusion import Diffusion, create_network, create_sampler
from cdm_jax.methods.cdm.mdn import MDN
from cdm_jax.methods.settings import build


@dataclasses.dataclass(frozen=True, kw_only=True)
class RCG(Diffusion):
    """The pixel generator, given y instead of the sources, as a training stage and a "translator".

    Attributes:
      rdm: the stage that samples y.
      condition_dropout: probability that a learned null replaces y in training.
    """

    rdm: MDN
    condition_dropout: float

    depends_on = ("mrm", "rdm")

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters beside the frozen MRM and RDM."""
        width, x = self.rdm.representation.representation_width, batch["target"]
        t, y = jnp.zeros(len(x), jnp.int32), jnp.zeros((len(x), width))
        params = {"network": self.network.init(key, x, t, y)["params"], "null": jnp.zeros(width)}
        return new_state(params, self.optimizer, averaged=bool(self.average_decay), frozen=frozen)

    def _predict(self, params: Any, given: Array, **options: Any) -> Predict:
        return lambda x_t, t: apply(self.network, params["network"], x_t, t, given, **options)

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of denoising the targets given their own representation, or the null."""
        null_key, loss_key, dropout_key = jax.random.split(key, 3)
        truth = self.rdm.representation.represent(state.frozen["mrm"], batch)
        null = functools.partial(jax.random.bernoulli, p=self.condition_dropout)
        dropped = draws.draw(null_key, (len(truth), 1), null)

        def loss(params: Any) -> tuple[Array, Metrics]:
            y = jnp.where(dropped, params["null"][None], truth)
            predict = self._predict(params, y, train=True, rngs={"dropout": dropout_key})
            return self._loss(predict, batch, loss_key), {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def translate(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Samples:
        """Images of any brains: only the number and size of the sources count."""
        y_key, noise_key = draws.split(key)
        y = self.rdm.samples(model["frozen"]["rdm"], sources, y_key, num_samples)

        def one(given: tuple[Array, Array]) -> Array:
            y, key = given
            return self._sample(self._predict(model["params"], y), sources, key)

        return jax.lax.map(one, (y, draws.split(noise_key, num_samples)))

    def facts(self) -> dict[str, str]:
        """How it is sampled."""
        return {"sampler": f"{self.sampler}; of y: {self.rdm.sampler}"}


def create(config: Any) -> RCG:
    """The system described by `config[config.stage]`, over the RDM of `config.rdm`.

    Raises:
      UserError: options or sizes that do not fit.
    """
    return build(
        RCG,
        config[config.stage],
        network=create_network(config),
        rdm=rdm.create(config, "rdm"),
        sampler=create_sampler(config),
    )
