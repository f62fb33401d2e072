"""The configs that are timed, by a few numbers that a line of JSON can hold."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.networks import networks
from benchmarks.parts.pytorch import cunet_options
from cdm_jax.shapes import create, source_channels
from configs import brats, phantom

Case = dict[str, Any]
SCALES = {
    "paper": (brats, "all"),  # the paper's networks at 256x256
    "small": (phantom, "all,small"),  # those for a CPU at 64x64
    "smoke": (phantom, "all,smoke"),
}


def case(scale: str, stage: str, batch: int, **changes: Any) -> Case:
    """One to time.

    Args:
      scale: a key of `SCALES`.
      stage: of the config.
      batch: slices a call.
      changes: of the config, by names with "__" for points: `data__size=128`.
    """
    return {"scale": scale, "stage": stage, "batch": batch} | {
        "changes": {name.replace("__", "."): value for name, value in changes.items()}
    }


def config_of(case: Case) -> ConfigDict:
    """The config of a case; every device takes the case's batch."""
    module, argument = SCALES[case["scale"]]
    config = module.get_config(argument)
    config.stage = case["stage"]
    config.evaluate.batch_size = case["batch"]
    for section in config.values():
        if isinstance(section, ConfigDict) and "train" in section:
            section.train.batch_size_per_device = case["batch"]
    for name, value in case["changes"].items():  # JSON has no tuples
        config.update_from_flattened_dict({name: tuple(value) if type(value) is list else value})
    return config


def torch_options(case: Case) -> dict[str, Any]:
    """What PyTorch's process needs to know of a case: arguments of networks, the steps of DDIM."""
    config = config_of(case)
    found = {"size": config.data.size, "batch": case["batch"], "networks": {}}
    if case["stage"] in ("cunet", "m1"):
        found["networks"][case["stage"]] = cunet_options(config, case["stage"])
    if case["stage"] in ("cunet", "mdn"):
        found["networks"]["mdn"] = _mdn_options(config)
        steps = create(config, "mdn").sampler.steps()  # type: ignore[attr-defined]
        columns = (steps.timestep, steps.alpha_bar, steps.alpha_bar_next)
        found["steps"] = list(zip(*(np.asarray(c).tolist() for c in columns), strict=True))
    return found


def _mdn_options(config: ConfigDict) -> dict[str, Any]:
    """The arguments of PyTorch's `MDN`, and the "parameters" that it should have."""
    section, method = config.mdn, create(config, "mdn")
    return {
        "representation": method.representation.representation_width,  # type: ignore[attr-defined]
        "sources": source_channels(config.data),
        "targets": len(config.data.targets),
        "width": section.width,
        "blocks": section.blocks,
        "features": list(section.encoder.features),
        "context": section.encoder.width,
        "parameters": sum(network.parameters() for network in networks(config, "mdn")),
    }
