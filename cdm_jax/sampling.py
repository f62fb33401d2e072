"""What a system makes of whole subjects: mean, deviation and predicted ends on the native grid."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from cdm_jax import checkpoint, inference
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.native import NativeImages, read_native
from cdm_jax.data.prepare import Description, to_native
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.metrics.conformal import Predicted

Volume = Float[np.ndarray, "z y x"]


def slices_per_call(samples: int) -> int:
    """Slices a call and device: fewer when each is drawn several times, to bound the memory."""
    return max(1, 16 // samples)


def statistics(method: base.Translator, samples: int) -> inference.Compute:
    """Means over samples, of images and of any ends; of several samples their standard deviation.

    All are in [0, 1]. The mean of ends is the interval whose quantiles are the samples' mean ones.
    """

    def sample(model: base.Model, batch: base.Batch, key: Array) -> inference.Outputs:
        drawn = method.predict(model, batch["source"], key, samples)
        means = {name: images.mean(axis=0) for name, images in drawn.items()}
        return means | {"deviation": drawn["mean"].std(axis=0)} if samples > 1 else means

    return sample


def check_uncertain(stage_folder: pathlib.Path, samples: int) -> None:
    """Refuses a stage that says nothing of its error, by predicted ends or by samples that differ.

    Raises:
      UserError: no checkpoint there; or no ends, and a deterministic system or fewer than two
        samples.
    """
    saved = checkpoint.provenance(stage_folder)
    if saved is None:
        raise UserError(f"no checkpoint in {stage_folder}: train this stage first")
    method = base.create(saved.config)
    # A stage that makes no images, such as mrm, does not say whether it is stochastic.
    if getattr(method, "quantiles", ()):
        return
    if not getattr(method, "stochastic", False):
        raise UserError(
            f"{stage_folder.name} is deterministic: it has no samples whose deviation could say "
            "anything of its error; calibrate a system that samples, such as cunet, or one that "
            "was trained with quantiles, such as --config.m1.quantiles='(0.05,0.95)'"
        )
    if samples < 2:
        raise UserError(f"--samples={samples} has no deviation: give 2 or more, for example 8")


def load_uncertain(stage_folder: pathlib.Path, samples: int) -> inference.System:
    """Loads a stage that says something of its error; raises as `check_uncertain`."""
    check_uncertain(stage_folder, samples)
    return inference.load_system(stage_folder, slices_per_call(samples))


def different_samples(system: inference.System, samples: int) -> int:
    """Of so many samples those that can differ: at most one of a deterministic system."""
    return samples if system.method.stochastic else min(samples, 1)


def predicted(images: Mapping[str, Volume]) -> Predicted:
    """The mean and how far a system says that it is off, from what `SubjectSampler.draw` gives.

    By the ends that it predicts, where it does, else by its samples' deviation.
    """
    mean = images["mean"]
    if "lower" not in images:
        return Predicted(mean=mean, below=images["deviation"], above=images["deviation"])
    # Resampling to the native grid may move an end beyond the mean where an edge is sharp.
    return Predicted(
        mean=mean,
        below=np.maximum(mean - images["lower"], 0),
        above=np.maximum(images["upper"] - mean, 0),
    )


class SubjectSampler:
    """A system that draws so many samples of each prepared subject, compiled once.

    The batch size of a call follows from the samples.
    """

    def __init__(self, system: inference.System, samples: int):
        batch_size = slices_per_call(samples) * jax.local_device_count()
        self.system = dataclasses.replace(system, batch_size=batch_size)
        self.samples = samples
        self._compiled = self.system.compile(statistics(system.method, samples))

    def volumes(
        self, stored: Mapping[str, inference.Slices], key: Key[Array, ""]
    ) -> dict[str, Float[np.ndarray, "slice h w t"]]:
        """Samples slices, as `System.volumes` takes them: "mean" and what else `draw` gives."""
        return self.system.volumes(self._compiled, stored, key)

    def draw(
        self, subject: Description, slices: inference.Slices, brain: Bool[np.ndarray, "z y x"]
    ) -> dict[str, dict[str, Float[np.ndarray, "z y x"]]]:
        """Samples a subject.

        Args:
          subject: what is known of the slices; its name decides the draws.
          slices: stored, the sources first.
          brain: of the sources on the native grid.

        Returns:
          Target -> "mean" of the samples; where the system predicts them, the "lower" and "upper"
          ends as trained; of several samples their "deviation" (divided by their number). On the
          native grid in [0, 1].
        """
        config = self.system.provenance.config
        key = inference.subject_key(config.seed, subject.subject_id)
        stored = {"source": self.system.sources_of(np.asarray(slices), subject.slice_indices)}
        outputs = self.volumes(stored, key)
        return {
            target: {
                name: to_native(subject, images[..., t], brain) for name, images in outputs.items()
            }
            for t, target in enumerate(config.data.targets)
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What a system makes of one target of one subject beside the truth.

    Attributes:
      truth: by its own intensity rule, on the native grid in [0, 1].
      predicted: the mean and how far it may be off, on the same grid in the same unit.
      deviation: of the samples, divided by their number; None of a single one.
    """

    truth: Volume
    predicted: Predicted
    deviation: Volume | None


def draw_beside_truth(
    sampler: SubjectSampler, subject: PreparedSubject, files: Subject
) -> tuple[NativeImages, dict[str, Drawn]]:
    """What `synthesize` would make of a subject, beside what was acquired.

    Of a system without predicted ends two samples or more are drawn.

    Returns:
      What was acquired, and the truth of each target with what is made of it.
    """
    native = read_native(files, subject.sources, subject.sources + subject.targets)
    drawn = sampler.draw(subject, subject.slices, native.brain)
    return native, {
        target: Drawn(
            truth=native.images[target],
            predicted=predicted(drawn[target]),
            deviation=drawn[target].get("deviation"),
        )
        for target in subject.targets
    }
