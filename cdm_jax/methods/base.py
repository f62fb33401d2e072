"""What every system has in common: its state, its base class, and one gradient step.

A system is a frozen dataclass of networks and numbers; all that changes is in its `State`, a plain
pytree. The loop, the evaluation and the synthesis know systems by the base class alone.
"""

import abc
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from cdm_jax import parallel
from cdm_jax.methods.settings import check_task
from cdm_jax.optim import moving_average
from cdm_jax.precision import with_precision

Batch = Mapping[str, Num[Array, "b ..."]]  # "source", "target"; any-to-any "weight": `tasks.Task`
Batches = Callable[[], Iterable[Batch]]  # one pass over slices
Keys = Key[Array, "*keys"]  # one for all slices of a batch, or one for each
Sources = Float[Array, "b h w s"]  # in [-1, 1]; the neighbors', if seen, behind the slice's own
Samples = Float[Array, "k b h w t"]  # k translations of the same sources
Prediction = dict[str, Samples]  # "mean", and where they are predicted "lower" and "upper" ends
Metrics = dict[str, Float[Array, "..."]]  # numbers, or one for each target modality
Values = dict[str, Float[Array, "b *values"]]  # of each slice
Measured = Mapping[str, Float[np.ndarray, "n ..."]]  # `Values` of all slices
Summary = dict[str, Any]  # numbers of NumPy, or one for each target modality
Pictures = dict[str, Float[Array, "b h w *modalities"]]  # in [0, 1]
Model = dict[str, Any]  # what inference needs of a system: params, statistics, frozen stages
Translate = Callable[[Model, Batch, Keys], Float[Array, "b h w t"]]


class State(flax.struct.PyTreeNode):
    """All that a run changes and a checkpoint holds.

    Attributes:
      step: number of updates done, an int32 scalar.
      params: what is trained, a nested dict.
      optimizer: the optimizer's state, or those of generator and discriminator.
      average: exponential moving average of `params`, or an empty dict.
      frozen: `{stage: Model}` of the stages that this one builds on, so that a checkpoint is whole.
      statistics: arrays that inference needs and no gradient moves: running means of BatchNorm,
        or what `finish` measured over the training set.
      memory: what only training carries along, such as a pool of past images.
    """

    # Types are loose since JAX and Orbax make states of shapes and of other placeholders as well.
    step: Any
    params: PyTree
    optimizer: PyTree
    average: PyTree = flax.struct.field(default_factory=dict)
    frozen: PyTree = flax.struct.field(default_factory=dict)
    statistics: PyTree = flax.struct.field(default_factory=dict)
    memory: PyTree = flax.struct.field(default_factory=dict)


def model_of(state: State) -> Model:
    """The part of a state that inference needs: averaged parameters where there are any."""
    params = state.average or state.params
    return {"params": params, "statistics": state.statistics, "frozen": state.frozen}


class Method(abc.ABC):
    """A system: pure functions of its state. `create(config)` in its module makes it."""

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Stages whose finished models `init` takes."""
        return ()

    @property
    def paired(self) -> bool:
        """Whether it trains on pairs, or on sources and targets of different slices."""
        return True

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """A fresh state for batches of this shape, over the models of `depends_on`."""

    @abc.abstractmethod
    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One training step: the new state and scalars to log."""

    @property
    def validation_passes(self) -> int:
        """How often `validate` applies the network to a slice, about; a training step counts 3."""
        return 1

    @abc.abstractmethod
    def validate(self, model: Model, batch: Batch, keys: Keys) -> tuple[Values, Pictures]:
        """What is measured of each slice of unseen patients, and rows of pictures.

        Args:
          model: as `model_of` gives it.
          batch: slices.
          keys: of each slice, so that its values depend on no other.
        """

    def summarize(self, values: Measured, patients: Int[np.ndarray, "n"]) -> Summary:
        """Validation metrics, by default the means of `values`, as `validate` returns them.

        `patients` holds the number of each slice's patient.
        """
        return {name: each.mean(axis=0) for name, each in values.items()}

    def finish(
        self, state: State, train: Batches, validation: Batches, key: Key[Array, ""]
    ) -> State:
        """Measures what later stages need, once, after the last step; by default nothing."""
        return state

    def facts(self) -> dict[str, str]:
        """What its model card says beside what all have in common: name to text."""
        return {}

    def limits(self) -> list[str]:
        """Sentences of its model card on what it cannot do."""
        return []


class RegionFinder(Method):
    """A system that finds regions in images of which some may be missing."""

    @abc.abstractmethod
    def segment(
        self, model: Model, sources: Sources, given: Bool[Array, "b s"]
    ) -> Float[Array, "b h w region"]:
        """The probability of each region, never above that of the one around it.

        Args:
          model: as `model_of` gives it.
          sources: images in [-1, 1]; those that are not given may hold anything.
          given: which modalities each slice has.
        """


class Translator(Method):
    """A system that makes target images from source images."""

    @property
    def stochastic(self) -> bool:
        """Whether two keys give two results."""
        return False

    def own(self, sources: Num[Any, "b h w s"]) -> Num[Any, "b h w _"]:
        """The slices' own sources, without those of neighbors, which only some systems see."""
        return sources

    @abc.abstractmethod
    def translate(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Samples:
        """Independent translations of the same sources, in [-1, 1].

        Args:
          model: as `model_of` gives it.
          sources: images in [-1, 1].
          key: drives the samples.
          num_samples: k; of a deterministic system there is one translation (k = 1).
        """

    def synthesize(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Samples:
        """As `translate`, in [0, 1]."""
        return to_unit_range(self.translate(model, sources, key, num_samples))

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Levels of the two ends that `predict` gives beside the mean, where it gives them."""
        return ()

    def predict(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Prediction:
        """As `synthesize`, under "mean", and the ends of predictive intervals around each sample.

        A system without `quantiles` has no ends. With them, lower <= mean <= upper; they are as
        trained, not calibrated (`cdm_jax/calibration.py`).
        """
        return {"mean": self.synthesize(model, sources, key, num_samples)}

    def audits(self, num_samples: int) -> dict[str, Translate]:
        """Further named ways to translate that an evaluation shows beside the honest one."""
        return {}

    def limits(self) -> list[str]:
        """What the samples, where there are several, do not show."""
        if not self.stochastic:
            return []
        return [
            "The deviation of the samples shows what the sampler varies, which is not everything "
            "that may be wrong."
        ]

    def validate(self, model: Model, batch: Batch, keys: Keys) -> tuple[Values, Pictures]:
        """Errors of one translation, and sources, truth and synthesis side by side.

        As at inference, the synthesis is 0 outside the sources' brain. Values of a slice: "loss",
        the mean squared error; "psnr" of its whole frame, NaN where the truth is empty, as the
        convention `paper` has it; "brain_error", the sum of squared errors in the brain, and
        "brain_pixels".
        """
        own = self.own(batch["source"])
        brain = in_brain(own)
        counted = weight_of(batch)
        prediction = self.synthesize(model, batch["source"], keys, 1)[0] * brain
        source, truth = to_unit_range(own), to_unit_range(batch["target"])
        square = (prediction - truth) ** 2
        error = square.mean(axis=(1, 2))
        shown = jnp.any(truth > 0, axis=(1, 2)) & (counted > 0)
        values = {
            "loss": jnp.sum(error * counted, axis=-1) / jnp.sum(counted, axis=-1),
            "psnr": jnp.where(shown, -10 * jnp.log10(jnp.maximum(error, 1e-10)), jnp.nan),
            "brain_error": jnp.sum(square * brain, axis=(1, 2)) * counted,
            "brain_pixels": jnp.sum(brain, axis=(1, 2)) * counted,
        }
        return values, {"source": source, "truth": truth, "synthesis": prediction}

    def summarize(self, values: Measured, patients: Int[np.ndarray, "n"]) -> Summary:
        """Mean loss, and two PSNR of each target in dB.

        Both are means over patients: "psnr" of whole frames, averaged over a patient's slices;
        "psnr_brain" of a patient's whole brain. The range is 1, the truth's 99.5th percentile.
        """
        of_patients = [
            {name: each[patients == one].astype(np.float64) for name, each in values.items()}
            for one in np.unique(patients)
        ]
        with warnings.catch_warnings():  # what nobody lacks in any pattern drawn is not a number
            warnings.simplefilter("ignore", RuntimeWarning)
            psnr = [np.nanmean(own["psnr"], axis=0) for own in of_patients]
            errors = [own["brain_error"].sum(axis=0) for own in of_patients]
            brain = [
                e / own["brain_pixels"].sum(axis=0)
                for e, own in zip(errors, of_patients, strict=True)
            ]
            return {
                "loss": values["loss"].mean(),
                "psnr": np.nanmean(psnr, axis=0),
                "psnr_brain": np.nanmean(-10 * np.log10(np.maximum(brain, 1e-10)), axis=0),
            }


def create(config: Any) -> Method:
    """Builds the system of the config's stage: `config[stage].method` names its module.

    Raises:
      UserError: settings that do not fit, or a compared system for an any-to-any task or with
        context.
    """
    check_task(config)
    name = config[config.stage].method
    method = importlib.import_module(f"cdm_jax.methods.{name}").create(config)
    return with_precision(method, config.precision, config.matmul_precision)


def to_model_range(stored: Num[Array, "b h w m"]) -> Float[Array, "b h w m"]:
    """Stored uint16 in [0, 65535] to the networks' range [-1, 1]."""
    return stored.astype(jnp.float32) * (2 / 65535) - 1


def to_unit_range(images: Float[Array, "..."]) -> Float[Array, "..."]:
    """The networks' range [-1, 1] to clipped intensities in [0, 1]."""
    return jnp.clip((images + 1) / 2, 0, 1)


def weight_of(batch: Batch) -> Float[Array, "b t"]:
    """How much each target of each slice counts: all alike, but in an any-to-any task."""
    if "weight" in batch:
        return batch["weight"]
    return jnp.ones((batch["target"].shape[0], batch["target"].shape[-1]))


def in_brain(sources: Float[Array, "b h w s"]) -> Bool[Array, "b h w 1"]:
    """Where any source in [-1, 1] is above the background: outside, every synthesis is set to 0.

    This is a choice of this package, for every system alike, in inference and validation. It is in
    neither the paper nor the official code of the compared systems.
    """
    return jnp.any(sources > -1, axis=-1, keepdims=True)


def apply(module: nn.Module, params: PyTree, *inputs: Any, **options: Any) -> Any:
    """The module's output for these parameters; modules here return arrays and nothing beside."""
    return module.apply({"params": params}, *inputs, **options)


def new_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    averaged: bool,
    frozen: Model,
    statistics: Model | None = None,
) -> State:
    """A state at step 0 for a system with one optimizer."""
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer.init(params),
        average=jax.tree.map(jnp.array, params) if averaged else {},
        frozen=frozen,
        statistics=statistics or {},
    )


def value_and_gradient(
    loss: Callable[[PyTree], tuple[Float[Array, ""], Any]], params: PyTree
) -> tuple[Float[Array, ""], Any, PyTree]:
    """The value of `loss(params) -> (loss, anything)`, that second thing, and the gradient.

    Value and gradient are those of the global batch, on however many devices it is; the second
    thing is left as it is.
    """
    (value, extra), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    value, gradient = parallel.mean((value, gradient))
    return value, extra, gradient


def gradient_step(
    state: State,
    loss: Callable[[PyTree], tuple[Float[Array, ""], Metrics]],
    optimizer: optax.GradientTransformation,
    decay: float,
) -> tuple[State, Metrics]:
    """One step of one optimizer on `loss(params) -> (loss, metrics)`, and the moving average."""
    value, metrics, gradient = value_and_gradient(loss, state.params)
    changes, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, changes)
    average = moving_average(state.average, params, state.step, decay) if decay else {}
    state = state.replace(
        step=state.step + 1, params=params, optimizer=optimizer_state, average=average
    )
    return state, metrics | {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
