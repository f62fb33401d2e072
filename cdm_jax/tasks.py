"""What a slice gives and what is wanted of it: a fixed task, or whatever is missing.

A fixed task has sources and other modalities as targets, alike in every slice. Of an any-to-any
task every modality is both: each slice draws which ones it gives (its pattern), the others are
hidden behind the background, and the loss counts those that are hidden and known in truth.

With context a network sees the neighbors of a slice too: their sources are further channels behind
the slice's own (`data/neighbors.py`). Targets are the slice's own.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped, UInt16
from ml_collections import ConfigDict

from cdm_jax import draws
from cdm_jax.errors import UserError

BACKGROUND = -1.0  # of the networks' range
PATTERNS = 1  # folds a step's key, or a slice's, into that of patterns
_INTENSITIES = 1  # folds a batch's key into that of gains and gammas
JOIN = "+"  # between the sources of a pattern's name, such as "t1+t2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Modalities in and out.

    Attributes:
      sources: what a slice gives, or may give.
      targets: what is wanted, or may be; the sources themselves of an any-to-any task.
      favored: of an any-to-any task, the sources of the pattern that is drawn more often.
      share: how often that is.
      gain: standard deviation of the logarithm of the factor by which each source of a training
        slice is multiplied. Targets stay as they are: nothing tells a network how they vary.
      gamma: that of the power to which it is raised.
      context: neighbors to each side of a slice whose sources are seen too.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    favored: tuple[str, ...] = ()
    share: float = 0.0
    gain: float = 0.0
    gamma: float = 0.0
    context: int = 0

    @property
    def is_any(self) -> bool:
        """Whether it is any-to-any."""
        return self.sources == self.targets

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of a stored slice, in order."""
        return self.sources if self.is_any else self.sources + self.targets

    def patterns(self) -> tuple[tuple[str, ...], ...]:
        """Every choice of sources that leaves something to synthesize, the smallest first."""
        if not self.is_any:
            return (self.sources,)
        sizes = range(1, len(self.sources))
        return tuple(itertools.chain(*(itertools.combinations(self.sources, n) for n in sizes)))

    def batch(
        self, stored: Mapping[str, Array], key: Key[Array, "*keys"], training: bool = False
    ) -> dict[str, Array]:
        """A stored batch as methods see it.

        Args:
          stored: "images", uint16 [b, h, w, modality]; "mirrored", which slices are mirrored left
            to right; of an any-to-any task "known", which modalities each slice's subject has;
            with context "neighbors", the sources of the slices beside each.
          key: draws the patterns, and gains and gammas; of the batch, or of each slice.
          training: whether the sources' intensities vary by gain and gamma.

        Returns:
          "source", the slice's own first, and "target" in [-1, 1]; of an any-to-any task also
          "weight" [b, target]: 1 of what is hidden and known, else 0.
        """
        floats = _floats(stored["images"], stored["mirrored"])
        seen = floats[..., : len(self.sources)]
        if self.context:
            beside = _floats(stored["neighbors"], stored["mirrored"])
            seen = jnp.concatenate([seen, beside], axis=-1)
        if training and (self.gain or self.gamma):
            seen = self._vary(seen, jax.random.fold_in(key, _INTENSITIES))
        if not self.is_any:
            return {"source": seen, "target": floats[..., len(self.sources) :]}
        given = self._draw(stored["known"], key)
        return {
            "source": hide(seen, given),
            "target": floats,
            "weight": (stored["known"] & ~given).astype(jnp.float32),
        }

    def _vary(
        self, images: Float[Array, "b h w c"], key: Key[Array, ""]
    ) -> Float[Array, "b h w c"]:
        """Each source of each slice by another gain and gamma; the background stays.

        Those of a slice are its neighbors' too, as a scanner's are of a whole volume.
        """
        spread = jnp.array([[[self.gain], [self.gamma]]])
        logarithms = spread * draws.normal(key, (images.shape[0], 2, len(self.sources)))
        logarithms = for_channels(logarithms, images.shape[-1])
        gain, gamma = jnp.moveaxis(jnp.exp(logarithms), 1, 0)[:, :, None, None]
        return 2 * jnp.clip(gain * ((images + 1) / 2) ** gamma, 0, 1) - 1

    def _draw(self, known: Bool[Array, "b m"], key: Key[Array, "*keys"]) -> Bool[Array, "b m"]:
        """Which modalities each slice gives: known ones, with a known one left to synthesize."""
        patterns = self.patterns()
        table = jnp.asarray([[name in one for name in self.sources] for one in patterns])
        others = (1 - self.share) / (len(patterns) - bool(self.favored))
        odds = [self.share if one == self.favored else others for one in patterns]
        possible = jnp.all(known[:, None] | ~table[None], axis=-1)
        possible &= jnp.any(known[:, None] & ~table[None], axis=-1)
        scores = draws.draw(key, possible.shape, jax.random.gumbel)
        scores += jnp.log(jnp.asarray(odds, jnp.float32))[None]
        return table[jnp.argmax(jnp.where(possible, scores, -jnp.inf), axis=-1)]


def _floats(
    images: UInt16[Array, "b h w c"], mirrored: Bool[Array, "b"]
) -> Float[Array, "b h w c"]:
    """Stored images in [-1, 1], some of them mirrored left to right."""
    images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return images.astype(jnp.float32) * (2 / 65535) - 1


def for_channels(
    values: Shaped[Array, "*lead m"], channels: int
) -> Shaped[Array, "*lead {channels}"]:
    """Values of modalities for all channels of these: of a slice and, where seen, its neighbors."""
    modalities = values.shape[-1]
    return values if modalities == channels else jnp.tile(values, channels // modalities)


def hide(images: Float[Array, "b h w c"], given: Bool[Array, "b m"]) -> Float[Array, "b h w c"]:
    """Images in [-1, 1], with what is not given behind the background in every slice."""
    return jnp.where(for_channels(given, images.shape[-1])[:, None, None], images, BACKGROUND)


def given_in(sources: Float[Array, "b h w m"]) -> Bool[Array, "b m"]:
    """Which modalities a slice gives: those of which anything is above the background.

    The sources are the slice's own, without neighbors.
    """
    return jnp.any(sources > BACKGROUND, axis=(1, 2))


def with_pattern(
    images: Float[Array, "b h w c"], given: Bool[Array, "b m"]
) -> Float[Array, "b h w c+m"]:
    """Images, hidden where they are not given, and a channel a modality: 1 if given, else -1."""
    channels = jnp.where(given, 1.0, -1.0)[:, None, None]
    hidden, shape = hide(images, given), (*images.shape[:-1], given.shape[-1])
    return jnp.concatenate([hidden, jnp.broadcast_to(channels, shape)], axis=-1)


def task_of(data: ConfigDict) -> Task:
    """The task of a config's section `data`."""
    return Task(
        sources=tuple(data.sources),
        targets=tuple(data.targets),
        favored=tuple(data.favored),
        share=data.favored_share,
        gain=data.augment.gain,
        gamma=data.augment.gamma,
        context=data.get("context", 0),  # former versions' config has none
    )


def parse_pattern(name: str, modalities: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sources and targets of a pattern such as "t1+t2".

    Raises:
      UserError: an unknown modality, or none or all of them.
    """
    sources = tuple(name.split(JOIN))
    if unknown := [one for one in sources if one not in modalities]:
        raise UserError(
            f"pattern '{name}': {', '.join(unknown)} is not among {', '.join(modalities)}"
        )
    targets = tuple(one for one in modalities if one not in sources)
    if not targets:
        raise UserError(f"pattern '{name}' gives all modalities: leave one out")
    return tuple(one for one in modalities if one in sources), targets
