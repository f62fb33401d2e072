"""A small UNet that segments a tumor from whichever modalities there are: a judge of syntheses.

Not in the paper. Trained with modalities left out at random, it needs no synthesis where some are
missing, and so says what a synthesis is worth: `experiments/segmenter.py` gives it the truth, a
synthetic image, or nothing. The network is that of M1; targets are the nested regions of BraTS.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from cdm_jax import draws, parallel
from cdm_jax.errors import UserError
from cdm_jax.methods.base import (
    Batch,
    Keys,
    Measured,
    Metrics,
    Model,
    Pictures,
    RegionFinder,
    Sources,
    State,
    Summary,
    Values,
    apply,
    gradient_step,
    new_state,
    to_unit_range,
)
from cdm_jax.methods.cdm.cunet import check_unet
from cdm_jax.methods.cdm.cunet_network import CUNet
from cdm_jax.methods.settings import build
from cdm_jax.tasks import with_pattern

REGIONS = ("whole_tumor", "tumor_core", "enhancing_tumor")  # as `cdm_jax.data.labels` has them
Regions = Float[Array, "b h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter(RegionFinder):
    """The segmenter.

    Attributes:
      network: from the modalities and which of them are given to a logit for each region.
      optimizer: of all parameters.
      average_decay: decay of the moving average of parameters, 0 for none.
      modality_dropout: probability that a modality of a training slice is left out; one of them
        always stays.
    """

    network: CUNet
    optimizer: optax.GradientTransformation
    average_decay: float
    modality_dropout: float

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters."""
        given = jnp.ones((batch["source"].shape[0], batch["source"].shape[-1]), bool)
        params = self.network.init(key, with_pattern(batch["source"], given), None)["params"]
        return new_state(params, self.optimizer, averaged=bool(self.average_decay), frozen=frozen)

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step on slices of which some modalities are left out."""
        inputs, truth = self._dropped(batch["source"], key), regions_of(batch["target"])

        def loss(params: Any) -> tuple[Array, Metrics]:
            return segmentation_loss(apply(self.network, params, inputs, None), truth), {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def _dropped(self, sources: Array, keys: Keys) -> Float[Array, "b h w _"]:
        """What the network sees of modalities of which some, but never all, are left out."""
        number = (sources.shape[0], sources.shape[-1])
        luck = draws.draw(keys, number, jax.random.uniform)
        luckiest = luck == luck.max(axis=-1, keepdims=True)
        return with_pattern(sources, (luck >= self.modality_dropout) | luckiest)

    def segment(self, model: Model, sources: Sources, given: Bool[Array, "b s"]) -> Regions:
        """As the base class says, of `REGIONS`."""
        logits = apply(self.network, model["params"], with_pattern(sources, given), None)
        return nested(logits)

    def validate(self, model: Model, batch: Batch, keys: Keys) -> tuple[Values, Pictures]:
        """Loss and voxels of each region, of slices that lack modalities as in training.

        Values of a slice: "loss", and for each region "common", "found" and "true" pixels.
        """
        inputs, truth = self._dropped(batch["source"], keys), regions_of(batch["target"])
        logits = apply(self.network, model["params"], inputs, None)
        found = (nested(logits) >= 0.5).astype(jnp.float32)
        values = {
            "loss": jax.vmap(lambda one, own: segmentation_loss(one[None], own[None]))(
                logits, truth
            ),
            "common": (found * truth).sum(axis=(1, 2)),
            "found": found.sum(axis=(1, 2)),
            "true": truth.sum(axis=(1, 2)),
        }
        shown = {"truth": truth.mean(axis=-1), "segmentation": found.mean(axis=-1)}
        return values, {"source": to_unit_range(batch["source"]), **shown}

    def summarize(self, values: Measured, patients: Int[np.ndarray, "n"]) -> Summary:
        """Mean loss, and Dice over all slices of a patient, averaged over patients and regions.

        As in BraTS, a region that is neither there nor found has a Dice of 1.
        """
        sums = {
            name: np.stack([values[name][patients == one].sum(axis=0) for one in set(patients)])
            for name in ("common", "found", "true")
        }
        total = sums["found"] + sums["true"]
        dice = np.where(total > 0, 2 * sums["common"] / np.maximum(total, 1), 1).mean(axis=0)
        each = {f"dice_{name}": value for name, value in zip(REGIONS, dice, strict=True)}
        return {"loss": values["loss"].mean(), "dice": dice.mean(), **each}

    def facts(self) -> dict[str, str]:
        """Which regions it finds, and how often it lacked a modality."""
        return {
            "regions": ", ".join(REGIONS),
            "modality dropout": f"{self.modality_dropout:g}",
        }

    def limits(self) -> list[str]:
        """What it is for."""
        return ["It judges syntheses, alike for all of them; better segmenters are trained in 3D."]


def regions_of(target: Float[Array, "b h w 1"]) -> Regions:
    """Masks, 0 or 1, of `REGIONS` from the depth that is stored, in [-1, 1]."""
    depth = to_unit_range(target) * len(REGIONS)
    return jnp.concatenate([depth > n + 0.5 for n in range(len(REGIONS))], -1).astype(jnp.float32)


def nested(logits: Regions) -> Regions:
    """Probabilities of which none is above that of the region around it."""
    return jax.lax.cummin(jax.nn.sigmoid(logits), axis=3)


def segmentation_loss(logits: Regions, truth: Regions) -> Float[Array, ""]:
    """Cross entropy of all pixels, and for each region 1 - soft Dice over the whole batch.

    Over the batch and not slice by slice, so that what is found in slices without a tumor counts
    (nnU-Net's `batch_dice`). One pixel is added to all counts, for batches that have none.
    """
    entropy = optax.sigmoid_binary_cross_entropy(logits, truth).mean()
    probability = jax.nn.sigmoid(logits)
    counts = (probability * truth, probability + truth)
    sums = parallel.mean([count.sum(axis=(0, 1, 2)) for count in counts])
    common, both = (parallel.num_parts() * own for own in sums)  # of the global batch
    return entropy + (1 - (2 * common + 1) / (both + 1)).mean()


def create(config: Any) -> Segmenter:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: targets other than the segmentation, a probability that is none, or sizes that do
        not fit the network.
    """
    section = config[config.stage]
    if tuple(config.data.targets) != ("segmentation",):
        raise UserError(
            f"{config.stage} learns segmentations, not {', '.join(config.data.targets)}: use "
            f"--config=<file>.py:{config.stage}, which sets data.targets"
        )
    if not 0 <= section.modality_dropout < 1:
        raise UserError(
            f"{config.stage}.modality_dropout {section.modality_dropout} is no probability below "
            "1: use 0 to leave out no modality"
        )
    check_unet(config)
    network = build(
        CUNet,
        section,
        num_targets=len(REGIONS),
        encoder="hybrid",
        condition="none",
        residual=True,
        source_skip=True,
    )
    return build(Segmenter, section, network=network)
