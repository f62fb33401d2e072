"""A trained any-to-any system as a translator of one pattern: some modalities in, the others out.

Evaluation and synthesis then need to know of fixed tasks alone.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Metrics, Model, Prediction, State, Translate, Translator
from cdm_jax.tasks import BACKGROUND


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern(Translator):
    """The system for one pattern.

    Attributes:
      system: any-to-any, over all modalities.
      modalities: their names, in the system's order.
      sources: those that are given.
      targets: those that are wanted, none of them among the sources.
    """

    system: Translator
    modalities: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def stochastic(self) -> bool:
        """Whether two keys give two results."""
        return self.system.stochastic

    def _placed(
        self, images: Float[Array, "b h w _"], names: tuple[str, ...]
    ) -> Float[Array, "b h w _"]:
        """Images of some modalities among all, the others behind the background.

        Each slice, those of neighbors behind the first, gets its place for every modality.
        """
        hidden = jnp.full(images.shape[:-1], BACKGROUND, images.dtype)
        placed = []
        for first in range(0, images.shape[-1], len(names)):
            found = {name: images[..., first + n] for n, name in enumerate(names)}
            placed += [found.get(name, hidden) for name in self.modalities]
        return jnp.stack(placed, axis=-1)

    def own(self, sources: Num[Any, "b h w s"]) -> Num[Any, "b h w _"]:
        """The slices' own sources, without those of neighbors."""
        return sources[..., : len(self.sources)]

    def _wanted(self, images: Float[Array, "*b h w m"]) -> Float[Array, "*b h w t"]:
        return images[..., jnp.array([self.modalities.index(name) for name in self.targets])]

    def translate(
        self,
        model: Model,
        sources: Float[Array, "b h w s"],
        key: Key[Array, "*keys"],
        num_samples: int,
    ) -> Float[Array, "k b h w t"]:
        """As the system does, of the wanted modalities alone."""
        placed = self._placed(sources, self.sources)
        return self._wanted(self.system.translate(model, placed, key, num_samples))

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Those of the system."""
        return self.system.quantiles

    def predict(
        self,
        model: Model,
        sources: Float[Array, "b h w s"],
        key: Key[Array, "*keys"],
        num_samples: int,
    ) -> Prediction:
        """As the system does, of the wanted modalities alone."""
        placed = self._placed(sources, self.sources)
        predicted = self.system.predict(model, placed, key, num_samples)
        return {name: self._wanted(images) for name, images in predicted.items()}

    def audits(self, num_samples: int) -> dict[str, Translate]:
        """Those of the system."""

        def restricted(audit: Translate) -> Translate:
            return lambda model, batch, key: self._wanted(audit(model, self._batch(batch), key))

        return {name: restricted(audit) for name, audit in self.system.audits(num_samples).items()}

    def _batch(self, batch: Batch) -> Batch:
        """A batch of the fixed task as the any-to-any system takes it."""
        wanted = jnp.array([float(name in self.targets) for name in self.modalities])
        number = batch["source"].shape[0]
        placed = {
            "source": self._placed(batch["source"], self.sources),
            "target": self._placed(batch["target"], self.targets),
            "weight": jnp.broadcast_to(wanted[None], (number, len(self.modalities))),
        }
        if "other" in batch:
            placed["other"] = self._placed(batch["other"], self.sources)
        return placed

    def facts(self) -> dict[str, str]:
        """Those of the system."""
        return self.system.facts()

    def limits(self) -> list[str]:
        """Those of the system."""
        return self.system.limits()

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Refused: the system is trained for all patterns."""
        raise NotImplementedError("a pattern is not trained by itself")

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """Refused: the system is trained for all patterns."""
        raise NotImplementedError("a pattern is not trained by itself")


def for_pattern(
    system: Translator,
    modalities: tuple[str, ...],
    sources: tuple[str, ...],
    targets: tuple[str, ...],
) -> Pattern:
    """The system for a pattern, its modalities in the system's order.

    Raises:
      UserError: nothing is given, nothing is wanted, or the system does not know a modality.
    """
    if unknown := [name for name in (*sources, *targets) if name not in modalities]:
        raise UserError(
            f"{', '.join(unknown)} is no modality of this system: it knows {', '.join(modalities)}"
        )
    if not sources or not targets or set(sources) & set(targets):
        raise UserError(
            f"from {', '.join(sources) or 'nothing'} to {', '.join(targets) or 'nothing'}: give at "
            "least one modality, and leave at least one other to synthesize"
        )
    return Pattern(
        system=system,
        modalities=modalities,
        sources=tuple(name for name in modalities if name in sources),
        targets=tuple(name for name in modalities if name in targets),
    )
