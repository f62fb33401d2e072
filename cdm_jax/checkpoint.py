"""All that touches Orbax: saving, resuming, and loading a finished model on any device.

A checkpoint holds the state, the position of the data iterator and the whole config, so that a run
continues exactly and a model can be rebuilt without the code that trained it. None of it depends on
the devices and processes that wrote it. A stage keeps its newest checkpoints, from which training
goes on, and apart from them the best one by a validation metric, which others load by default.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from cdm_jax import parallel, seals
from cdm_jax.config import plain, to_config
from cdm_jax.data.correction import Correction
from cdm_jax.data.ranges import Ranges
from cdm_jax.errors import UserError
from cdm_jax.methods.base import Model, State

FOLDER = "checkpoints"  # the newest
BEST = "best"
CHOICES = ("best", "last")
FORMAT = 3  # raise it when a change makes earlier checkpoints or their configs unreadable
_logger = logging.getLogger(__name__)
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
      ranges: what the training patients' sources look like, see `data.ranges`; empty where that was
        not measured, as in checkpoints of earlier versions.
      correction: of whole predicted volumes, see `data.correction`. It is fitted after training; a
        checkpoint's own is empty.
    """

    config: ConfigDict
    batch_size: int
    split: str
    scales: Mapping[str, float]
    ranges: Ranges = dataclasses.field(default_factory=dict)
    correction: Correction = dataclasses.field(default_factory=Correction)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "format": FORMAT,
            "config": plain(self.config),
            "batch_size": self.batch_size,
            "split": self.split,
            "scales": dict(self.scales),
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            **self.correction.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Provenance":
        """What `to_json` gave, and whatever else lies beside it."""
        return cls(
            config=to_config(content["config"]),
            batch_size=content["batch_size"],
            split=content["split"],
            scales=content["scales"],
            ranges={name: (low, high) for name, (low, high) in content.get("ranges", {}).items()},
            correction=Correction.from_json(content),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The validation that the best checkpoint of a stage did best in, after so many steps."""

    step: int
    metric: str
    value: float


class Checkpoints:
    """The checkpoints of one stage; a context that waits for writes to end.

    A damaged newest checkpoint is set aside, so that the one before is the newest. The stage's
    folder is created when something is saved, and `keep` of its latest checkpoints stay.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self._stage_folder = folder
        with parallel.first_process_first("looking for damaged checkpoints"):
            if parallel.is_first():
                _set_damaged_aside(folder)
        self._of_kind = {
            kind: _checkpointer(folder / kind, number)
            for kind, number in ((FOLDER, keep), (BEST, 1))
        }
        self._pending: dict[str, tuple[pathlib.Path, Any]] = {}  # by kind

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        for kind, checkpointer in self._of_kind.items():
            self._wait(kind)
            checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, None before the first."""
        latest = self._of_kind[FOLDER].latest
        return None if latest is None else latest.step

    @property
    def best(self) -> Best | None:
        """Which validation the best checkpoint did best in, None before the first."""
        self._wait(BEST)
        return best(self._stage_folder)

    def save(
        self, step: int, state: State, batches: Any, provenance: Provenance, finished: bool = False
    ) -> None:
        """Writes a checkpoint in the background; training may go on and donate its state.

        `step` counts the updates done. `batches` is Grain's iterator, whose position is the same in
        all processes.
        """
        self._wait(BEST)  # resuming from this step finds what was best until then
        described = {"position": batches.get_state(), "finished": finished}
        self._save(FOLDER, step, state, provenance.to_json() | described)

    def save_best(self, step: int, state: State, found: Best, provenance: Provenance) -> None:
        """Writes the best checkpoint in the background; the one before goes when it is complete.

        It has what inference needs and no more: without the optimizer, and without the parameters
        where their average is what counts. Where there is one of this step (a killed run came so
        far before), that one stays.
        """
        self._wait(BEST)
        if step in _steps(self._stage_folder, BEST):
            return
        described = {"best": dataclasses.asdict(found)}
        self._save(BEST, step, inference_part(state), provenance.to_json() | described)

    def _save(self, kind: str, step: int, state: State, metadata: Any) -> None:
        self._wait(kind)
        folder = self._stage_folder / kind / str(step)
        if parallel.is_first():
            seals.unseal(folder)
        response = self._of_kind[kind].save_checkpointables_async(
            step, {"state": state}, custom_metadata=metadata, force=True
        )
        self._pending[kind] = folder, response

    def _wait(self, kind: str) -> None:
        """Waits until the last checkpoint of a kind is complete, and seals it."""
        if kind in self._pending:
            folder, response = self._pending.pop(kind)
            response.result()
            if parallel.is_first():
                seals.seal(folder)

    def restore(self, abstract: State, batches: Any) -> State:
        """The newest state, placed as `abstract` says; moves `batches` to its position."""
        step = self.latest_step
        restored = self._of_kind[FOLDER].load_checkpointables(step, {"state": abstract})
        batches.set_state(_metadata(self._stage_folder / FOLDER / str(step))["position"])
        return restored["state"]

    def restore_best(self, abstract: State) -> State:
        """What `save_best` wrote, placed as `abstract`, an `inference_part`, says."""
        self._wait(BEST)
        saved = self._of_kind[BEST]
        return saved.load_checkpointables(saved.latest.step, {"state": abstract})["state"]


def _checkpointer(folder: pathlib.Path, keep: int) -> ocp.training.Checkpointer:
    return ocp.training.Checkpointer(
        folder.absolute(),
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
    )


def inference_part(state: State) -> State:
    """A state, or the shapes of one, without what only training needs."""
    return state.replace(optimizer={}, memory={}, params={} if state.average else state.params)


def _steps(stage_folder: pathlib.Path, kind: str = FOLDER) -> list[int]:
    folder = stage_folder / kind
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def _newest(stage_folder: pathlib.Path, kind: str = FOLDER) -> pathlib.Path | None:
    """The newest checkpoint of a kind that is not damaged; a damaged one is named in the log."""
    for step in reversed(_steps(stage_folder, kind)):
        folder = (stage_folder / kind / str(step)).absolute()
        if seals.is_intact(folder):
            return folder
        _logger.warning("%s is damaged, its files are not as they were written: not used", folder)
    return None


def _set_damaged_aside(stage_folder: pathlib.Path) -> None:
    """Moves checkpoints that are damaged and newer than any other out of the way."""
    for kind in (FOLDER, BEST):
        intact = _newest(stage_folder, kind)
        for step in _steps(stage_folder, kind):
            if intact is None or step > int(intact.name):
                place = seals.set_aside(stage_folder / kind / str(step))
                _logger.warning("moved it to %s; the one before, if any, is used", place)


def latest_step(stage_folder: pathlib.Path) -> int | None:
    """The step of a stage's newest checkpoint, None where there is none."""
    return max(_steps(stage_folder), default=None)


def _chosen(stage_folder: pathlib.Path, which: str = "last") -> pathlib.Path | None:
    """The step folder of the best checkpoint or of the last; the last where none was validated."""
    if which not in CHOICES:
        raise UserError(f"unknown checkpoint '{which}': allowed are {', '.join(CHOICES)}")
    kinds = (BEST, FOLDER) if which == "best" else (FOLDER,)
    return next(filter(None, (_newest(stage_folder, kind) for kind in kinds)), None)


@contextlib.contextmanager
def _reading(step_folder: pathlib.Path) -> Iterator[None]:
    """Names a checkpoint that cannot be read, as a damaged one that was never sealed.

    Its disk may be at fault as well, so that nobody is told to delete it.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise UserError(
            f"{step_folder} cannot be read ({str(error)[:200]}): if its disk is sound, it is "
            "damaged; move it elsewhere, so that the one before is used, or train the stage anew "
            "in another --workdir"
        ) from error


@seals.while_unchanged  # Orbax takes a third of a second
def _description(step_folder: pathlib.Path) -> Any:
    """What Orbax tells of a checkpoint without reading its arrays."""
    with _reading(step_folder):
        found: Any = ocp.metadata(step_folder.absolute(), checkpointable_name="state")
        if found.metadata is None or found.custom_metadata is None:
            raise ValueError("its description is incomplete")
    return found


def _metadata(step_folder: pathlib.Path) -> dict[str, Any]:
    """What was written beside a checkpoint's arrays."""
    saved = _description(step_folder).custom_metadata
    if saved.get("format") != FORMAT:
        raise UserError(
            f"{step_folder} was written by another version, whose checkpoints this one cannot read "
            f"(format {saved.get('format', 'unnamed')}, here {FORMAT}): use that version, or train "
            "the stage anew in another --workdir"
        )
    return saved


def best(stage_folder: pathlib.Path) -> Best | None:
    """Which validation a stage's best checkpoint did best in, None where there is none."""
    newest = _newest(stage_folder, BEST)
    return None if newest is None else Best(**_metadata(newest)["best"])


def provenance(stage_folder: pathlib.Path) -> Provenance | None:
    """What a stage's newest checkpoint says of itself, None where there is none.

    Raises:
      UserError: another version wrote it, in another form.
    """
    newest = _chosen(stage_folder)
    return None if newest is None else Provenance.from_json(_metadata(newest))


def finished(stage_folder: pathlib.Path) -> bool:
    """Whether the stage has trained to its end, by all its steps or stopped early."""
    newest = _chosen(stage_folder)
    return newest is not None and _metadata(newest)["finished"]


def load_model(stage_folder: pathlib.Path, which: str = "best") -> tuple[Model, Provenance]:
    """Loads what inference needs of a stage's checkpoint, whatever devices wrote it.

    Args:
      stage_folder: such as `runs/brats/cunet`.
      which: "best" by the validation metric of its training, or "last". Where nothing was
        validated, the best is the last.

    Returns:
      The model as NumPy arrays (see `methods.base.model_of`) and where it comes from.

    Raises:
      UserError: no checkpoint there, or no such choice.
    """
    chosen = _existing(stage_folder, which)
    saved = Provenance.from_json(_metadata(_existing(stage_folder)))
    shapes = _shapes(chosen)
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, _reading(chosen):
        loaded: Any = ocp.load(chosen, wanted, checkpointable_name="state")
    return _model(loaded), saved


def model_shapes(stage_folder: pathlib.Path) -> Model:
    """The shapes of what `load_model` loads, without reading any array."""
    return _model(_shapes(_existing(stage_folder)))


def _existing(stage_folder: pathlib.Path, which: str = "last") -> pathlib.Path:
    """As `_chosen`, but refuses a stage without checkpoints."""
    if (chosen := _chosen(stage_folder, which)) is None:
        raise UserError(f"no checkpoint in {stage_folder / FOLDER}: train this stage first")
    return chosen


def _shapes(step_folder: pathlib.Path) -> dict[str, Any]:
    tree = _description(step_folder).metadata
    return {
        name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree[name])
        for name in MODEL_FIELDS
    }


def _model(fields: Mapping[str, Any]) -> Model:
    params = fields["average"] or fields["params"]
    return {"params": params, "statistics": fields["statistics"], "frozen": fields["frozen"]}
