"""MRM, the modality-specific representation model (section II-A, Eq. 1).

A vision transformer sees the target modalities with patches hidden in each modality independently,
and learns to restore them. Its pooled tokens of the unmasked images are the representation y that
MDN learns to sample and C-UNet takes as its condition.
"""

import dataclasses
import math
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
    Batches,
    Keys,
    Measured,
    Method,
    Metrics,
    Model,
    Pictures,
    State,
    Summary,
    Values,
    apply,
    gradient_step,
    new_state,
    to_unit_range,
)
from cdm_jax.methods.cdm.mrm_network import FeatureDecoder, FeatureEncoder, MaskedAutoencoder
from cdm_jax.methods.settings import build, check_choice, check_least, check_removed
from cdm_jax.nn.vit import from_patches, to_patches
from cdm_jax.tasks import BACKGROUND

LOSSES = ("mse", "l2norm")


def random_mask(
    key: Key[Array, "*keys"], batch: int, rows: int, columns: int, num_modalities: int, ratio: float
) -> Bool[Array, "b rows columns m"]:
    """Hides ceil(ratio * cells) cells of each image and modality, drawn independently."""
    noise = draws.draw(key, (batch, num_modalities, rows * columns), jax.random.uniform)
    ranks = jnp.argsort(jnp.argsort(noise, axis=-1), axis=-1)
    hidden = ranks < math.ceil(ratio * rows * columns)
    return hidden.reshape(batch, num_modalities, rows, columns).transpose(0, 2, 3, 1)


def masked_distances(
    prediction: Float[Array, "b rows columns m p"],
    truth: Float[Array, "b rows columns m p"],
    hidden: Bool[Array, "b rows columns m"],
    kind: str,
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """Of each image, the sum of the hidden patches' distances to the truth, and their number.

    The text says L2 and mean squared error while Eq. 1 prints an unsquared norm: "mse" is the
    default, "l2norm" is what Eq. 1 prints.

    Raises:
      UserError: unknown kind.
    """
    difference = prediction - truth
    if kind == "mse":
        distance = jnp.mean(difference**2, axis=-1)
    elif kind == "l2norm":
        distance = jnp.sqrt(jnp.sum(difference**2, axis=-1) + 1e-12)
    else:
        raise UserError(f"unknown mrm.loss '{kind}': allowed are {', '.join(LOSSES)}")
    return (
        jnp.sum(distance * hidden, axis=(1, 2, 3)),
        jnp.sum(hidden, axis=(1, 2, 3), dtype=jnp.float32),
    )


def masked_loss(distances: Float[Array, "b"], numbers: Float[Array, "b"]) -> Float[Array, ""]:
    """Mean over the hidden patches R of a batch of their distance to the truth (Eq. 1)."""
    number = parallel.mean(numbers.sum())  # a device's part has its own
    return distances.sum() / jnp.maximum(number, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MRM(Method):
    """The representation model as a training stage.

    Attributes:
      network: encoder and decoder.
      optimizer: of all parameters.
      average_decay: decay of the moving average of parameters, 0 for none.
      num_targets: number of target modalities.
      size: side of the images in pixels.
      mask_cell: side of a masked cell in pixels, a multiple of the patch.
      mask_ratio: share of cells hidden in each modality.
      loss: see `masked_distances`.
    """

    network: MaskedAutoencoder
    optimizer: optax.GradientTransformation
    average_decay: float
    num_targets: int
    size: int
    mask_cell: int
    mask_ratio: float
    loss: str

    @property
    def representation_width(self) -> int:
        """Length of y."""
        return self.network.encoder.width

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters; statistics of y that change nothing until `finish` measures them."""
        params = self.network.init(key, batch["target"])["params"]
        width = self.representation_width
        statistics = {"mean": jnp.zeros(width), "deviation": jnp.ones(width)}
        return new_state(
            params,
            self.optimizer,
            averaged=bool(self.average_decay),
            frozen={},
            statistics=statistics,
        )

    def _restore(
        self, params: Any, batch: Batch, key: Keys
    ) -> tuple[tuple[Array, Array], Array, Array]:
        """`masked_distances`, restored images and mask of a batch."""
        images, weight = batch["target"], batch.get("weight")
        patch, cells = self.network.encoder.patch, self.size // self.mask_cell
        hidden = random_mask(key, images.shape[0], cells, cells, images.shape[-1], self.mask_ratio)
        repeats = self.mask_cell // patch
        hidden = jnp.repeat(jnp.repeat(hidden, repeats, axis=1), repeats, axis=2)
        counted = hidden
        if weight is not None:  # given modalities are hidden whole, and count for nothing
            missing = weight[:, None, None] > 0
            counted, hidden = hidden & missing, hidden | ~missing
        truth = to_patches(images, patch)
        restored = apply(self.network, params, images, hidden).reshape(truth.shape)
        distances = masked_distances(restored, truth, counted, self.loss)
        shown = jnp.where(hidden[..., None], restored, truth)
        return distances, from_patches(shown, patch), hidden

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of masked image modeling on the targets."""

        def loss(params: Any) -> tuple[Array, Metrics]:
            return masked_loss(*self._restore(params, batch, key)[0]), {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def validate(self, model: Model, batch: Batch, keys: Keys) -> tuple[Values, Pictures]:
        """Masked distances, and the truth beside what was hidden and what was restored."""
        (distances, numbers), restored, hidden = self._restore(model["params"], batch, keys)
        images = batch["target"]
        repeats = self.network.encoder.patch
        cover = jnp.repeat(jnp.repeat(hidden, repeats, axis=1), repeats, axis=2)
        seen = jnp.where(cover, BACKGROUND, images)
        rows = {"truth": images, "seen": seen, "restored": restored}
        pictures = {name: to_unit_range(rows[name][..., 0]) for name in rows}
        return {"distance": distances, "number": numbers}, pictures

    def summarize(self, values: Measured, patients: Int[np.ndarray, "n"]) -> Summary:
        """The loss of Eq. 1 over all slices."""
        return {"loss": values["distance"].sum() / np.maximum(values["number"].sum(), 1)}

    def _pooled(self, params: Any, batch: Batch) -> Float[Array, "b d"]:
        """Tokens of the unmasked targets, averaged over places."""
        targets, weight, hidden = batch["target"], batch.get("weight"), None
        if weight is not None:  # what is given is hidden: y is what the sources do not show
            side = self.size // self.network.encoder.patch
            shape = (len(targets), side, side, targets.shape[-1])
            hidden = jnp.broadcast_to(weight[:, None, None] == 0, shape)
        encode = MaskedAutoencoder.encode
        return apply(self.network, params, targets, hidden, method=encode).mean(axis=1)

    def represent(self, model: Model, batch: Batch) -> Float[Array, "b d"]:
        """The representation y of target images; carries no gradient.

        Each of its entries is standardized over the training slices.

        Args:
          model: of this stage.
          batch: its "target" in [-1, 1]; y does not hold modalities whose "weight", if any, is 0:
            they are given or unknown.
        """
        y = jax.lax.stop_gradient(self._pooled(model["params"], batch))
        mean, deviation = model["statistics"]["mean"], model["statistics"]["deviation"]
        return (y - mean[None]) / deviation[None]

    def finish(
        self, state: State, train: Batches, validation: Batches, key: Key[Array, ""]
    ) -> State:
        """Measures mean and deviation of each entry of y over the training slices."""
        pooled = jax.jit(self._pooled)
        params = state.average or state.params
        y = np.concatenate([parallel.to_numpy(pooled(params, batch)) for batch in train()])
        deviation = np.maximum(y.std(axis=0), 1e-6)
        return state.replace(
            statistics={"mean": jnp.asarray(y.mean(axis=0)), "deviation": jnp.asarray(deviation)}
        )


def _check(section: Any, size: int) -> None:
    """Refuses sizes that do not divide and names that do not exist."""
    check_least("mrm", section, patch=1, mask_cell=1, heads=1, width=1)
    for whole, part, names in (
        (size, section.mask_cell, "data.size by mrm.mask_cell"),
        (section.mask_cell, section.patch, "mrm.mask_cell by mrm.patch"),
        (section.width, section.heads, "mrm.width by mrm.heads"),
        (section.width, 4, "mrm.width by 4, for sines and cosines of rows and columns"),
    ):
        if whole % part:
            raise UserError(
                f"cannot divide {names}: {whole} / {part} leaves a remainder; use a multiple of "
                f"{part} or a divisor of {whole}"
            )
    check_choice("mrm", section, "loss", LOSSES)
    check_removed("mrm", section, mask_fill="token", normalization="zscore", joint=True, pool=1)


def create(config: Any) -> MRM:
    """The stage described by `config.mrm` for the modalities and size of `config.data`.

    Raises:
      UserError: an option that does not exist, or sizes that do not divide.
    """
    section, num_targets = config.mrm, len(config.data.targets)
    _check(section, config.data.size)
    decoder = FeatureDecoder(section.patch, num_targets)
    return build(
        MRM,
        section,
        network=MaskedAutoencoder(build(FeatureEncoder, section), decoder),
        num_targets=num_targets,
        size=config.data.size,
    )
