"""MDN, the modality-decoupled diffusion network (section II-A, Fig. 3a).

A light diffusion model over the representation y of MRM. One linear layer a target modality
decouples the noised y_t; residual blocks of perceptrons restore y_0; DDIM samples it.

As the paper prints it, nothing of the patient enters (`condition="none"`): a sample is the code of
some brain, independent of the one at hand. `condition="source"` lets every block see an encoding
of the source modalities, which is the only way that a sample can say anything about this patient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from cdm_jax import draws, parallel
from cdm_jax.diffusion.ddim import DDIM, Predict, make_sampler
from cdm_jax.diffusion.process import PREDICTIONS
from cdm_jax.methods.base import (
    Batch,
    Batches,
    Keys,
    Measured,
    Method,
    Metrics,
    Model,
    Pictures,
    Sources,
    State,
    Summary,
    Values,
    apply,
    gradient_step,
    new_state,
)
from cdm_jax.methods.cdm import mrm
from cdm_jax.methods.cdm.mdn_network import Denoiser
from cdm_jax.methods.cdm.source import SourceEncoder, disturb
from cdm_jax.methods.settings import build, check_choice
from cdm_jax.tasks import given_in, task_of, with_pattern

EXPLAINED = tuple(
    f"explained_{what}_{part}" for part in ("train", "validation") for what in ("one", "mean")
)
DECOUPLINGS = ("streams", "merged", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MDN(Method):
    """The diffusion over representations as a training stage.

    Attributes:
      representation: the MRM stage, whose y this one learns.
      denoiser: the network, from (y_t, t, the sources' code or None) to its prediction.
      encoder: the network that encodes the sources, or None for the unconditional letter.
      optimizer: of all parameters.
      average_decay: decay of the moving average of parameters, 0 for none.
      sampler: DDIM with the schedule of training.
      augmentation: strengths of the disturbances of the sources, see `source.disturb`.
      num_samples: samples averaged where a mean is measured.
      num_sources: source modalities; the neighbors' channels, if any, come behind the slice's own.
      any_to_any: whether any modality may be missing.
    """

    representation: mrm.MRM
    denoiser: nn.Module
    encoder: SourceEncoder | None
    optimizer: optax.GradientTransformation
    average_decay: float
    sampler: DDIM
    augmentation: Any
    num_samples: int
    num_sources: int
    any_to_any: bool = False

    depends_on = ("mrm",)

    @property
    def validation_passes(self) -> int:
        """Sampling takes many passes, of a network that is small beside the images' encoders."""
        return max(1, self.sampler.num_steps * self.num_samples // 100)

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters beside the frozen MRM."""
        denoiser_key, encoder_key = jax.random.split(key)
        params, context = {}, None
        if self.encoder is not None:
            inputs = self._inputs(batch["source"], batch["source"])
            params["encoder"] = self.encoder.init(encoder_key, inputs)["params"]
            context = apply(self.encoder, params["encoder"], inputs)
        b, width = len(batch["source"]), self.representation.representation_width
        y, t = jnp.zeros((b, width)), jnp.zeros(b, jnp.int32)
        params["denoiser"] = self.denoiser.init(denoiser_key, y, t, context)["params"]
        statistics = {name: jnp.zeros(()) for name in EXPLAINED}
        return new_state(
            params,
            self.optimizer,
            averaged=bool(self.average_decay),
            frozen=frozen,
            statistics=statistics | {"error_factor": jnp.zeros((width, width))},
        )

    def _encode(
        self, params: Any, sources: Sources, dropout: Key[Array, ""] | None = None
    ) -> Float[Array, "b c"] | None:
        """The sources' code, or None; with a key as in training: disturbed and with dropout."""
        if self.encoder is None:
            return None
        if dropout is None:
            return apply(self.encoder, params["encoder"], self._inputs(sources, sources))
        disturb_key, dropout_key = jax.random.split(dropout)
        disturbed = disturb(disturb_key, sources, self.augmentation, self.num_sources)
        return apply(
            self.encoder,
            params["encoder"],
            self._inputs(disturbed, sources),
            train=True,
            rngs={"dropout": dropout_key},
        )

    def _inputs(self, images: Array, sources: Array) -> Array:
        """What the encoder sees of images: in an any-to-any task also which the sources give."""
        own = sources[..., : self.num_sources]
        return with_pattern(images, given_in(own)) if self.any_to_any else images

    def _errors(
        self, params: Any, y: Float[Array, "b d"], context: Array | None, key: Keys
    ) -> dict[str, Float[Array, "b"]]:
        """L2 of each y between the prediction at a uniform timestep and its target."""
        errors = self.sampler.errors(self._predict(params, context), y, key)
        return {
            name: jnp.mean(error**2, axis=-1)
            for name, error in zip(("loss", "y_error"), errors, strict=True)
        }

    def _predict(self, params: Any, context: Array | None) -> Predict:
        return lambda y_t, t: apply(self.denoiser, params["denoiser"], y_t, t, context)

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of denoising y_t."""
        y = self.representation.represent(state.frozen["mrm"], batch)
        encode_key, loss_key = jax.random.split(key)

        def loss(params: Any) -> tuple[Array, Metrics]:
            context = self._encode(params, batch["source"], encode_key)
            errors = self._errors(params, y, context, loss_key)
            means = {name: each.mean() for name, each in errors.items()}
            return means.pop("loss"), means

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def sample(self, model: Model, sources: Sources, key: Keys) -> Float[Array, "b d"]:
        """Draws y_0 from pure noise by DDIM (Eq. 3).

        Args:
          model: of this stage: its parameters.
          sources: images in [-1, 1]; only their number matters when the condition is "none".
          key: of all sources or of each; `jax.vmap` over samples' keys encodes the sources once.
        """
        context = self._encode(model["params"], sources)
        noise_key, step_key = draws.split(key)
        noise = draws.normal(noise_key, (len(sources), self.representation.representation_width))
        return self.sampler.sample(self._predict(model["params"], context), noise, step_key)

    def samples(
        self, model: Model, sources: Sources, key: Keys, number: int
    ) -> Float[Array, "k b d"]:
        """Several independent samples for the same sources."""
        keys = draws.split(key, number)
        return jax.vmap(self.sample, in_axes=(None, None, 0))(model, sources, keys)

    def validate(self, model: Model, batch: Batch, keys: Keys) -> tuple[Values, Pictures]:
        """The loss, y, and the squared errors of one sample and of a mean of samples."""
        loss_key, sample_key = draws.split(keys)
        y = self.representation.represent(model["frozen"]["mrm"], batch)
        context = self._encode(model["params"], batch["source"])
        drawn = self.samples(model, batch["source"], sample_key, self.num_samples)
        return self._errors(model["params"], y, context, loss_key) | {
            "y": y,
            "one": jnp.sum((drawn[0] - y) ** 2, axis=-1),
            "mean": jnp.sum((drawn.mean(axis=0) - y) ** 2, axis=-1),
        }, {}

    def summarize(self, values: Measured, patients: Int[np.ndarray, "n"]) -> Summary:
        """Mean loss, and the share of y's variance that one sample and a mean of them explain."""
        spread = np.sum((values["y"] - values["y"].mean(axis=0, keepdims=True)) ** 2)
        return {name: values[name].mean() for name in ("loss", "y_error")} | {
            f"explained_{name}": 1 - values[name].sum() / np.maximum(spread, 1e-12)
            for name in ("one", "mean")
        }

    def finish(
        self, state: State, train: Batches, validation: Batches, key: Key[Array, ""]
    ) -> State:
        """Measures the error of samples on patients that MDN never saw.

        Kept as a factor F with F F^T = the second moment of (sample - y) over validation slices:
        C-UNet trains on y + F n, n ~ N(0, I), and so learns how far a sample may be trusted.
        """
        model = {"params": state.average or state.params}

        @jax.jit
        def draw(model: Model, frozen: Model, batch: Batch, key: Array) -> tuple[Array, Array]:
            y = self.representation.represent(frozen["mrm"], batch)
            return y, self.samples(model, batch["source"], key, self.num_samples)

        statistics = {}
        for name, batches in (("train", train), ("validation", validation)):
            pairs = [
                parallel.to_numpy(draw(model, state.frozen, batch, jax.random.fold_in(key, number)))
                for number, batch in enumerate(batches())
            ]
            y = jnp.concatenate([pair[0] for pair in pairs])
            drawn = jnp.concatenate([pair[1] for pair in pairs], axis=1)
            statistics[f"explained_one_{name}"] = explained_variance(y, drawn[0])
            statistics[f"explained_mean_{name}"] = explained_variance(y, drawn.mean(axis=0))
        error = np.asarray(drawn - y[None], np.float64).reshape(-1, y.shape[-1])
        power, axes = np.linalg.eigh(error.T @ error / len(error))
        factor = axes * np.sqrt(np.maximum(power, 0))[None]
        return state.replace(
            statistics=statistics | {"error_factor": jnp.asarray(factor, jnp.float32)}
        )


def explained_variance(
    truth: Float[Array, "n d"], estimate: Float[Array, "n d"]
) -> Float[Array, ""]:
    """R squared over all entries: 1 for a perfect estimate, 0 for the mean, below 0 for worse."""
    spread = jnp.sum((truth - truth.mean(axis=0, keepdims=True)) ** 2)
    return 1 - jnp.sum((truth - estimate) ** 2) / jnp.maximum(spread, 1e-12)


def create(config: Any, stage: str = "") -> MDN:
    """The stage of this name (by default the config's own), over the y of `config.mrm`.

    Raises:
      UserError: options that do not exist or do not fit together.
    """
    stage = stage or config.stage
    section = config[stage]
    check_choice(stage, section, "condition", ("source", "none"))
    check_choice(stage, section, "decouple", DECOUPLINGS)
    check_choice(stage, section, "prediction", PREDICTIONS)
    representation = mrm.create(config)
    denoiser = build(
        Denoiser,
        section,
        representation_width=representation.representation_width,
        num_modalities=len(config.data.targets),
    )
    return build(
        MDN,
        section,
        representation=representation,
        denoiser=denoiser,
        encoder=build(SourceEncoder, section.encoder) if section.condition == "source" else None,
        sampler=make_sampler(config.sampler, section, prediction=section.prediction),
        num_samples=config.evaluate.num_samples,
        num_sources=len(config.data.sources),
        any_to_any=task_of(config.data).is_any,
    )
