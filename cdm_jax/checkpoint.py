"""All that touches Orbax: saving, resuming, and loading a finished model on any device.

A checkpoint holds the state, the position of the data iterator and the whole config, so that a run
continues exactly and a model can be rebuilt without the code that trained it. None of it depends on
the devices and processes that wrote it.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Model, State

FOLDER = "checkpoints"
FORMAT = 2  # raise it when a change makes earlier checkpoints or their configs unreadable
MODEL_FIELDS = ("params", "average", "statistics", "frozen")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a checkpoint says of itself.

    Attributes:
      config: the whole config of the run, with the number of steps resolved.
      batch_size: slices in a global batch.
      split: hash of the patients' split, so that no test patient slips into a comparison.
      scales: median intensity scale of each modality over the training subjects, by which
        synthesized targets are written.
    """

    config: ConfigDict
    batch_size: int
    split: str
    scales: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "format": FORMAT,
            "config": plain(self.config),
            "batch_size": self.batch_size,
            "split": self.split,
            "scales": dict(self.scales),
        }


class Checkpoints:
    """The checkpoints of one stage; a context that waits for writes to end.

    Args:
      folder: of the stage; created when something is saved.
      keep: how many of the latest checkpoints stay.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self._folder = (folder / FOLDER).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: State, batches: Any, provenance: Provenance) -> None:
        """Writes a checkpoint in the background; training may go on and donate its state.

        Args:
          step: updates done.
          state: of the run.
          batches: Grain's iterator; its position is the same in all processes.
          provenance: of the run.
        """
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": state},
            custom_metadata=provenance.to_json() | {"position": batches.get_state()},
            force=True,
        )

    def restore(self, abstract: State, batches: Any) -> State:
        """The newest state, placed as `abstract` says; moves `batches` to its position."""
        restored = self._checkpointer.load_checkpointables(self.latest_step, {"state": abstract})
        batches.set_state(_metadata(self._folder / str(self.latest_step))["position"])
        return restored["state"]


def _steps(stage_folder: pathlib.Path) -> list[int]:
    folder = stage_folder / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def latest_step(stage_folder: pathlib.Path) -> int | None:
    """The step of a stage's newest checkpoint, None where there is none."""
    return max(_steps(stage_folder), default=None)


def plain(config: Any) -> Any:
    """A config as JSON types; `to_config` turns it back."""
    if isinstance(config, ConfigDict):
        return {key: plain(value) for key, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def to_config(tree: Any) -> Any:
    """The config that `plain` wrote down; lists become tuples again."""
    if isinstance(tree, dict):
        return ConfigDict({key: to_config(value) for key, value in tree.items()})
    return tuple(tree) if isinstance(tree, list) else tree


def _newest(stage_folder: pathlib.Path) -> pathlib.Path | None:
    steps = _steps(stage_folder)
    return (stage_folder / FOLDER / str(steps[-1])).absolute() if steps else None


def _metadata(step_folder: pathlib.Path) -> dict[str, Any]:
    """What was written beside a checkpoint's arrays."""
    metadata: Any = ocp.metadata(step_folder, checkpointable_name="state")
    return metadata.custom_metadata


def provenance(stage_folder: pathlib.Path) -> Provenance | None:
    """What a stage's newest checkpoint says of itself, None where there is none.

    Raises:
      UserError: another version wrote it, in another form.
    """
    newest = _newest(stage_folder)
    if newest is None:
        return None
    saved = _metadata(newest)
    if saved.get("format") != FORMAT:
        raise UserError(
            f"{newest} was written by another version, whose checkpoints this one cannot read "
            f"(format {saved.get('format', 'unnamed')}, here {FORMAT}): use that version, or train "
            "the stage anew in another --workdir"
        )
    return Provenance(
        config=to_config(saved["config"]),
        batch_size=saved["batch_size"],
        split=saved["split"],
        scales=saved["scales"],
    )


def finished(stage_folder: pathlib.Path) -> bool:
    """Whether the stage has trained for all its steps (the last checkpoint closes a run)."""
    saved = provenance(stage_folder)
    if saved is None:
        return False
    return _steps(stage_folder)[-1] >= saved.config[saved.config.stage].train.num_steps


def load_model(stage_folder: pathlib.Path) -> tuple[Model, Provenance]:
    """Loads what inference needs from a stage's newest checkpoint, whatever devices wrote it.

    Args:
      stage_folder: such as `runs/brats/cunet`.

    Returns:
      The model as NumPy arrays (see `methods.base.model_of`) and where it comes from.

    Raises:
      UserError: no checkpoint there.
    """
    newest, saved = _newest(stage_folder), provenance(stage_folder)
    if newest is None or saved is None:
        raise UserError(f"no checkpoint in {stage_folder / FOLDER}: train this stage first")
    shapes = _shapes(newest)
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded: Any = ocp.load(newest, wanted, checkpointable_name="state")
    return _model(loaded), saved


def model_shapes(stage_folder: pathlib.Path) -> Model:
    """The shapes of what `load_model` loads, without reading any array."""
    newest = _newest(stage_folder)
    if newest is None:
        raise UserError(f"no checkpoint in {stage_folder / FOLDER}: train this stage first")
    return _model(_shapes(newest))


def _shapes(step_folder: pathlib.Path) -> dict[str, Any]:
    tree: Any = ocp.metadata(step_folder, checkpointable_name="state").metadata
    return {
        name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree[name])
        for name in MODEL_FIELDS
    }


def _model(fields: Mapping[str, Any]) -> Model:
    params = fields["average"] or fields["params"]
    return {"params": params, "statistics": fields["statistics"], "frozen": fields["frozen"]}


def differences(ours: ConfigDict, saved: ConfigDict, sections: Sequence[str]) -> list[str]:
    """Keys of these sections whose values differ, as "key: saved -> ours"."""
    found = []
    for section in sections:
        new, old = _flat(plain(ours[section]), section), _flat(plain(saved[section]), section)
        found += [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted(new.keys() | old.keys())
            if new.get(key) != old.get(key)
        ]
    return found


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}").items()}
