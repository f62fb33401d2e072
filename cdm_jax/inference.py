"""A trained system on whole volumes: compiled once, in batches of one size.

Each process computes its own subjects on its own devices and needs no other.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt16
from ml_collections import ConfigDict

from cdm_jax import checkpoint, parallel
from cdm_jax.data.correction import Correction, read_correction
from cdm_jax.data.neighbors import with_neighbors
from cdm_jax.data.pipeline import padded_batches
from cdm_jax.methods import base
from cdm_jax.pattern import for_pattern
from cdm_jax.tasks import task_of

Outputs = dict[str, Float[Array, "b h w t"]]
Compute = Callable[[base.Model, base.Batch, Key[Array, "*keys"]], Outputs]
Slices = UInt16[np.ndarray, "slice h w _"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A trained translator with its model on every device of this process.

    Attributes:
      method: the pure functions.
      model: parameters and statistics.
      provenance: config, split and intensity scales of its training, and what corrects whole
        volumes.
      fingerprint: hash of the model's values and of this correction.
      batch_size: slices a call, over these devices.
    """

    method: base.Translator
    model: base.Model
    provenance: checkpoint.Provenance
    fingerprint: str
    batch_size: int

    def compile(self, compute: Compute) -> Compute:
        """Compiles `compute` for stored slices; pixels of pure background stay 0.

        The compiled function has the name of `compute`, by which profiles and logs list it.

        Args:
          compute: from (model, batch in [-1, 1], key or keys) to named images in [0, 1].
        """

        def run(model: base.Model, stored: Mapping[str, Array], key: Array) -> Outputs:
            """What `compute` makes of stored slices, 0 in the background."""
            batch = {name: base.to_model_range(slices) for name, slices in stored.items()}
            own = self.method.own(stored["source"])
            brain = jnp.any(own > 0, axis=-1, keepdims=True)
            outputs = compute(model, batch, key)
            return {name: image * brain for name, image in outputs.items()}

        run.__name__ = getattr(compute, "__name__", run.__name__)  # a partial has none
        return jax.jit(run)

    def sources_of(self, slices: Slices, slice_indices: Sequence[int]) -> Slices:
        """A subject's stored slices as this system takes them: their sources and neighbors'.

        Args:
          slices: all of them, the sources first among their modalities.
          slice_indices: z index of each.
        """
        data = self.provenance.config.data
        own = slices[..., : len(data.sources)]
        return with_neighbors(own, slice_indices, task_of(data).context)

    def put(self, stored: Mapping[str, Slices], keys: Key[Array, "slice"]) -> tuple[Any, Any]:
        """A batch and its slices' keys, shared out over this process's devices."""
        return jax.device_put((stored, keys), parallel.sharded(parallel.local_mesh()))

    def volumes(
        self, compiled: Compute, stored: Mapping[str, Slices], key: Key[Array, ""]
    ) -> dict[str, Float[np.ndarray, "slice h w t"]]:
        """The named outputs of a compiled function for every slice of a subject, corrected.

        Outputs beside one called "mean" count as belonging to it, see `correction.apply`.

        Args:
          compiled: as `compile` returns it.
          stored: "source", as `sources_of` gives it, and whatever else the function takes; slices
            in order.
          key: of this subject; each slice folds in its number.
        """
        parts = []
        for number, (batch, valid) in enumerate(padded_batches(stored, self.batch_size)):
            keys = slice_keys(key, number * self.batch_size, self.batch_size)
            outputs = compiled(self.model, *self.put(batch, keys))
            parts.append({name: np.asarray(image)[:valid] for name, image in outputs.items()})
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        sources, targets = self.method.own(stored["source"]), self.provenance.config.data.targets
        return self.provenance.correction.apply(found, sources, targets)


def load_system(
    stage_folder: pathlib.Path,
    batch_size_per_device: int,
    sampler: ConfigDict | None = None,
    which: str = "best",
) -> System:
    """Loads a finished stage that translates, such as `runs/brats/cunet`, on any device.

    Args:
      stage_folder: holds the checkpoints.
      batch_size_per_device: slices a call and device.
      sampler: steps, eta and grid of DDIM; those of its training's config where None.
      which: the checkpoint, see `checkpoint.load_model`.

    Raises:
      UserError: no checkpoint there, or no such choice.
    """
    model, provenance = checkpoint.load_model(stage_folder, which)
    correction = read_correction(stage_folder, fingerprint(model)) or Correction()
    provenance = dataclasses.replace(provenance, correction=correction)
    if sampler is not None:
        config = provenance.config.copy_and_resolve_references()
        config.sampler = sampler
        provenance = dataclasses.replace(provenance, config=config)
    return system_of(model, provenance, batch_size_per_device)


def system_of(
    model: base.Model, provenance: checkpoint.Provenance, batch_size_per_device: int
) -> System:
    """A system of these arrays on the devices of this process."""
    return System(
        method=base.create(provenance.config),  # type: ignore[arg-type]
        model=jax.device_put(model, parallel.replicated(parallel.local_mesh())),
        provenance=provenance,
        fingerprint=fingerprint(model, provenance.correction),
        batch_size=batch_size_per_device * jax.local_device_count(),
    )


def uncorrected(system: System) -> System:
    """The same system with volumes as its network predicts them."""
    provenance = dataclasses.replace(system.provenance, correction=Correction())
    return dataclasses.replace(system, provenance=provenance)


def is_any_to_any(system: System) -> bool:
    """Whether a system takes any modalities and makes the others."""
    return task_of(system.provenance.config.data).is_any


def restricted(system: System, sources: Sequence[str], targets: Sequence[str]) -> System:
    """An any-to-any system for one pattern, as the fixed task's system that it then is.

    Raises:
      UserError: see `pattern.for_pattern`.
    """
    config = system.provenance.config.copy_and_resolve_references()
    method = for_pattern(system.method, tuple(config.data.sources), tuple(sources), tuple(targets))
    config.data.update({"sources": method.sources, "targets": method.targets})
    provenance = dataclasses.replace(system.provenance, config=config)
    return dataclasses.replace(system, method=method, provenance=provenance)


@functools.partial(jax.jit, static_argnames="number")
def slice_keys(
    key: Key[Array, ""], start: int | Int[Array, ""], number: int
) -> Key[Array, "{number}"]:
    """A key for each of `number` slices of a subject, from slice `start` on."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, start + jnp.arange(number))


def fingerprint(model: base.Model, correction: Correction | None = None) -> str:
    """Hash of a model's values, and of what corrects its volumes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    if correction:
        digest.update(json.dumps(correction.to_json(), sort_keys=True).encode())
    return digest.hexdigest()[:12]


def subject_key(seed: int, subject_id: str) -> Any:
    """A key of this subject alone: results do not depend on the order of a cohort."""
    digest = hashlib.sha256(subject_id.encode()).digest()
    return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "little"))
