"""Where a training starts from: parameters of a finished run, or of the shipped model."""

import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from cdm_jax import checkpoint, shipped
from cdm_jax.errors import UserError
from cdm_jax.methods.base import Model, State


def find_initial(source: str, stage: str) -> Model | None:
    """Parameters and statistics to start a stage from.

    Args:
      source: "" for none, "shipped", or the folder of a run, whose best checkpoint is taken.
      stage: to be trained.

    Raises:
      UserError: there is no such stage.
    """
    if not source:
        return None
    if source == shipped.NAME:
        return shipped.load_stage(stage)
    model, _ = checkpoint.load_model(pathlib.Path(source).expanduser() / stage)
    return model


def start_from(state: State, found: Model, source: str) -> State:
    """A fresh state with the parameters that were found, each in the place of its own.

    Statistics are taken over where the state has the same ones; what a stage measures when it ends
    is measured again.

    Raises:
      UserError: the networks differ.
    """
    if differing := _differences(state.params, found["params"]):
        raise UserError(
            f"init_from={source} has other networks ({'; '.join(differing[:3])}): use the config "
            "that it was trained by, or for the shipped model the value 'finetune', such as "
            "--config=configs/brats.py:any,finetune"
        )
    state = state.replace(params=_placed(state.params, found["params"]))
    if state.average:
        state = state.replace(average=_placed(state.average, found["params"]))
    if not _differences(state.statistics, found["statistics"]):
        state = state.replace(statistics=_placed(state.statistics, found["statistics"]))
    return state


def _placed(like: PyTree, values: PyTree) -> PyTree:
    """Arrays of the host on the devices, as other arrays are; the two never share memory."""

    def place(leaf: Any, value: Any) -> jax.Array:
        value = np.asarray(value, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: value[part])

    return jax.tree.map(place, like, values)


def _differences(ours: PyTree, found: PyTree) -> list[str]:
    """Arrays that only one of two trees has, or that have another shape."""
    here, there = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (ours, found))
    )
    return [
        f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
