"""Samples of a system for whole subjects: their mean and deviation on the native grid."""

import dataclasses
import pathlib

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from cdm_jax import checkpoint, inference
from cdm_jax.data.cache import PreparedSubject
from cdm_jax.data.native import read_native
from cdm_jax.data.prepare import Description, to_native
from cdm_jax.data.subjects import Subject
from cdm_jax.errors import UserError
from cdm_jax.methods import base


def slices_per_call(samples: int) -> int:
    """Slices a call and device: fewer when each is drawn several times, to bound the memory."""
    return max(1, 16 // samples)


def mean_and_deviation(method: base.Translator, samples: int) -> inference.Compute:
    """Mean over samples, and of several their standard deviation, in [0, 1]."""

    def compute(model: base.Model, batch: base.Batch, key: Array) -> inference.Outputs:
        drawn = method.synthesize(model, batch["source"], key, samples)
        mean = {"mean": drawn.mean(axis=0)}
        return mean | {"deviation": drawn.std(axis=0)} if samples > 1 else mean

    return compute


def check_stochastic(stage_folder: pathlib.Path, samples: int) -> None:
    """Refuses a stage whose samples do not differ.

    Raises:
      UserError: no checkpoint there, a deterministic system, or fewer than two samples.
    """
    if samples < 2:
        raise UserError(f"--samples={samples} has no deviation: give 2 or more, for example 8")
    saved = checkpoint.provenance(stage_folder)
    if saved is None:
        raise UserError(f"no checkpoint in {stage_folder}: train this stage first")
    # A stage that makes no images, such as mrm, does not say whether it is stochastic.
    if not getattr(base.create(saved.config), "stochastic", False):
        raise UserError(
            f"{stage_folder.name} is deterministic: it has no samples whose deviation could say "
            "anything of its error; calibrate a system that samples, such as cunet"
        )


def load_stochastic(stage_folder: pathlib.Path, samples: int) -> inference.System:
    """Loads a stage whose samples differ; raises as `check_stochastic`."""
    check_stochastic(stage_folder, samples)
    return inference.load_system(stage_folder, slices_per_call(samples))


class SubjectSampler:
    """A system that draws so many samples of each prepared subject, compiled once.

    The batch size of a call follows from the samples.
    """

    def __init__(self, system: inference.System, samples: int):
        batch_size = slices_per_call(samples) * jax.local_device_count()
        self.system = dataclasses.replace(system, batch_size=batch_size)
        self.samples = samples
        self._compiled = self.system.compile(mean_and_deviation(system.method, samples))

    def draw(
        self, subject: Description, slices: inference.Slices, brain: Bool[np.ndarray, "z y x"]
    ) -> dict[str, dict[str, Float[np.ndarray, "z y x"]]]:
        """Samples a subject.

        Args:
          subject: what is known of the slices; its name decides the draws.
          slices: stored, the sources first.
          brain: of the sources on the native grid.

        Returns:
          Target -> "mean" of the samples, and of several their "deviation" (divided by their
          number), on the native grid in [0, 1].
        """
        config = self.system.provenance.config
        key = inference.subject_key(config.seed, subject.subject_id)
        stored = {"source": np.asarray(slices)[..., : len(config.data.sources)]}
        outputs = self.system.volumes(self._compiled, stored, key)
        return {
            target: {
                name: to_native(subject, images[..., t], brain) for name, images in outputs.items()
            }
            for t, target in enumerate(config.data.targets)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of one target of one subject beside the truth, on the native grid in [0, 1].

    Attributes:
      truth: by its own intensity rule.
      mean: of the samples.
      deviation: of the samples, divided by their number.
    """

    truth: Float[np.ndarray, "z y x"]
    mean: Float[np.ndarray, "z y x"]
    deviation: Float[np.ndarray, "z y x"]


def draw_beside_truth(
    sampler: SubjectSampler, subject: PreparedSubject, files: Subject
) -> tuple[Bool[np.ndarray, "z y x"], dict[str, Drawn]]:
    """What `synthesize` would write of a subject, beside what was acquired.

    Returns:
      The brain, and the samples, of which there are two or more, and the truth of each target.
    """
    native = read_native(files, subject.sources, subject.sources + subject.targets)
    drawn = sampler.draw(subject, subject.slices, native.brain)
    found = {t: Drawn(truth=native.images[t], **drawn[t]) for t in subject.targets}
    return native.brain, found
