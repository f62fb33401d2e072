"""What the paper's schedules cost before they have run: arithmetic on what was counted and timed.

`benchmarks.day_one` makes its sheet of it, `experiments.paper` its estimate. Operations, sizes and
peaks were counted by `benchmarks.parameters` at 256x256 in batches of `BATCH` slices, seconds of a
core were measured by `benchmarks.day_one`. No stage has trained for so long yet.
"""

import pathlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.records import read_results

MEASURED = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"
BATCH = 12  # slices a device and step, of what was counted
# Slices with any brain, and those of them that are trained on, of BraTS-GLI-00001-000 at 1 mm,
# whose volume has 155.
HEIGHT, STORED, TRAINED = 155, 137, 129
# NVIDIA's data sheet of the A100 80GB SXM: dense TF32, which float32 convolutions use by default;
# NVLink in one direction.
PEAK, SHARE = 156e12, 0.3  # of the peak, what convolutions of these widths may reach
ASSUMED = PEAK * SHARE  # operations a second of one device
NVLINK = 300e9  # bytes a second


def cohort(config: Any, subjects: int) -> dict[str, int]:
    """Subjects of each part of the split, about: patients with several scans stay together."""
    test = round(subjects * config.data.test_fraction)
    validation = round((subjects - test) * config.data.validation_fraction)
    return {"train": subjects - test - validation, "validation": validation, "test": test}


def state_bytes(config: Any, stage: str, record: Mapping[str, Any]) -> int:
    """What a stage's checkpoints take at most: the newest, and the best, which holds less.

    Args:
      config: says how many of the newest stay.
      stage: of the config.
      record: of `benchmarks.day_one`.
    """
    return record["state_bytes"][stage] * (config.checkpoint.keep + 1)


def training_steps(config: Any, stage: str, slices: int, devices: int) -> int:
    """Steps of a stage whose length is in epochs, on so many training slices."""
    train = config[stage].train
    return train.num_epochs * (slices // (train.batch_size_per_device * devices))


def exchange_seconds(parameters: int, devices: int) -> float:
    """A ring's time for the gradient of one step over NVLink, if nothing hides it."""
    return 2 * (devices - 1) / devices * 4 * parameters / NVLINK


def row_seconds(config: Any, record: Mapping[str, Any]) -> float:
    """Seconds of a core to score a row of one patient: all targets, all conventions."""
    return len(config.data.targets) * sum(record["score_core_seconds"].values())


def slice_flops(config: Any, system: str, networks: Mapping[tuple[str, str], float]) -> float:
    """Operations of all that an evaluation asks of a system for one slice."""
    section, steps, samples = config[system], config.sampler.num_steps, config.evaluate.num_samples
    if system in ("cunet", "m2"):
        mdn = section.mdn_stage
        drawn = networks[mdn, "encoder"] + steps * networks[mdn, "denoiser"]
        # K samples; again for the mean of the representations, and one of another patient.
        return (2 * samples + 1) * drawn + (samples + 5) * networks[system, "network"]
    names = ("network", "generator", "to_target")
    (one,) = (networks[system, name] for name in names if (system, name) in networks)
    if system == "diffusion":
        return section.num_samples * steps * one
    if system == "rcg":
        sampled = config.rdm.sampler.num_steps * networks["rdm", "denoiser"]
        return section.num_samples * (steps * one + sampled)
    return one


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast one device computes.

    Attributes:
      stages: operations a second in the training steps that were timed on this kind of device.
      source: where the rates come from, in words.
    """

    stages: Mapping[str, float]
    source: str

    def of(self, stage: str) -> float:
        """Operations a second of a stage: timed; or as others of this device, or as assumed."""
        return self.stages.get(stage) or statistics.median(self.stages.values() or [ASSUMED])


def rates(kind: str) -> Rates:
    """What is known of this kind of device, such as "NVIDIA A100-SXM4-80GB"."""
    path, timed = MEASURED / "accelerator.json", {}
    if path.exists() and (content := read_results(path))["device"] == kind:
        timed = {
            row["stage"]: 1e12 * row["tflop_per_second"]
            for row in content["parts"].get("steps", {}).get("rows", ())
            if row.get("precision") == "tf32" and "tflop_per_second" in row
        }
    if timed:
        return Rates(stages=timed, source=f"training steps timed on one {kind}")
    source = f"ASSUMED: {ASSUMED / 1e12:.0f} TFLOP/s a device, {SHARE:.0%} of an A100's TF32 peak"
    if "A100" not in kind:
        source += (
            f"; of {kind} nothing is known until "
            "`python -m benchmarks.accelerator --parts=peaks,steps` has run on it"
        )
    return Rates(stages={}, source=source)
