"""What all configs share: the paper's settings, the small ones, and the argument after the colon.

`--config=configs/brats.py:cunet,size=128` calls `get_config("cunet,size=128")`: a stage, then
values.

Stages:
  mrm     the representation model
  mdn     the diffusion over representations
  cunet   the synthesis conditioned on them
  m1      the plain UNet: C-UNet without the condition (Table III)
  cdm     mrm, mdn, cunet and m1 in order, then the evaluation

Values: `size` (pixels), `seed`, `small` (networks and schedule for a CPU), `smoke` (seconds; for
tests).
"""

from ml_collections import ConfigDict

STAGES = ("mrm", "mdn", "cunet", "m1", "cdm")
TRUTH = {"true": True, "1": True, "false": False, "0": False}


def parse(argument: str) -> tuple[str, dict[str, int | bool]]:
    """Splits "cdm,size=64,small" into a stage and typed values.

    Raises:
      ValueError: unknown stage or value, or a value of the wrong type.
    """
    stage, *pairs = [part.strip() for part in argument.split(",")]
    if stage not in STAGES:
        raise ValueError(f"unknown stage '{stage}': allowed are {', '.join(STAGES)}")
    kinds = {"size": int, "seed": int, "small": bool, "smoke": bool}
    values: dict[str, int | bool] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise ValueError(f"unknown value '{key}': allowed are {', '.join(kinds)}")
        if kinds[key] is bool and (text or "true").lower() in TRUTH:
            values[key] = TRUTH[(text or "true").lower()]
        elif kinds[key] is int and text.isdigit():
            values[key] = int(text)
        else:
            raise ValueError(f"'{pair}' should be {key}=<{kinds[key].__name__}>")
    return stage, values


def _training(**changes) -> ConfigDict:
    """How long a stage trains. `num_steps` 0 means: as many as `num_epochs` take."""
    return ConfigDict(
        {
            "batch_size_per_device": 12,
            "num_epochs": 100,
            "num_steps": 0,
            "log_every": 50,
            "validate_every": 2_000,
            "checkpoint_every": 2_000,
        }
        | changes
    )


def _optimizer(**changes) -> ConfigDict:
    """Adam 1e-4 with a "decay rate" of 1e-5, read as PyTorch's coupled weight decay."""
    return ConfigDict(
        {
            "learning_rate": 1e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 1e-5,
            "decay": "coupled",
            "schedule": "constant",
            "warmup_steps": 0,
            "clip": 0.0,
        }
        | changes
    )


def _mrm() -> ConfigDict:
    """SimMIM's ViT-S/16 with cells of 32 pixels, 60 % hidden."""
    return ConfigDict(
        {
            "method": "cdm.mrm",
            "patch": 16,
            "width": 384,
            "depth": 12,
            "heads": 6,
            "mask_cell": 32,
            "mask_ratio": 0.6,
            "mask_fill": "token",
            "loss": "mse",
            "foreground_only": False,
            "joint": True,
            "pool": 1,
            "normalisation": "zscore",
            "average_decay": 0.0,
            "train": _training(),
            "optimizer": _optimizer(),
        }
    )


def _mdn() -> ConfigDict:
    """Two streams of four blocks over y, conditioned on the sources."""
    return ConfigDict(
        {
            "method": "cdm.mdn",
            "condition": "source",
            "decouple": "streams",
            "width": 512,
            "blocks": 4,
            "prediction": "x0",
            "schedule": "linear",
            "num_timesteps": 1000,
            "average_decay": 0.999,
            "encoder": {"features": (32, 64, 128, 256, 256), "width": 384, "dropout": 0.3},
            "augmentation": {"shift": 8, "gain": 0.1, "noise": 0.05},
            "train": _training(),
            "optimizer": _optimizer(),
        }
    )


def _cunet(**changes) -> ConfigDict:
    """The UNet of the first author's public code (MONAI's BasicUNet), conditioned."""
    return ConfigDict(
        {
            "method": "cdm.cunet",
            "features": (64, 64, 128, 256, 512, 64),
            "stage": "hybrid",
            "condition": "on",
            "fusion": "add",
            "condition_decoder": False,
            "groups": 8,
            "source_skip": True,
            "loss": "mse",
            "representation": "noised",
            "sampled_share": 0.5,
            "noise": 0.0,
            "null_share": 0.1,
            "average_decay": 0.0,
            "train": _training(),
            "optimizer": _optimizer(),
        }
        | changes
    )


def base(stage: str) -> ConfigDict:
    """The paper's setting: T1, T2 -> T1c, T2f at 256x256, batch 12 a device, 100 epochs."""
    return ConfigDict(
        {
            "stage": stage,
            "seed": 0,
            "data": {
                "name": "",
                "root": "",
                "sources": ("t1", "t2"),
                "targets": ("t1c", "t2f"),
                "copies": ("t1", "t2"),  # the source that the "copy" row shows for each target
                "patterns": ConfigDict(),
                "size": 256,
                "minimum_brain": 0.01,
                "flips": True,
                "split_file": "",
                "split_seed": 0,
                "test_fraction": 0.3,
                "validation_fraction": 0.1,
                "test_patients": (),
                "exclude": (),
                "cache": "",
                "num_workers": 0,
            },
            "mrm": _mrm(),
            "mdn": _mdn(),
            "cunet": _cunet(),
            "m1": _cunet(condition="none"),
            "sampler": {"num_steps": 30, "eta": 0.0, "grid": "ends"},
            "evaluate": {
                "part": "test",
                "systems": ("cunet", "m1"),
                "reference": "m1",  # the row against which the others are tested
                "conventions": ("paper", "volume"),
                "num_samples": 8,
                "batch_size": 12,
            },
            "checkpoint": {"keep": 2},
            "profile": {"first_step": 0, "num_steps": 0},
        }
    )


def shrink(config: ConfigDict) -> ConfigDict:
    """Networks and schedules with which all stages train on two CPU cores in minutes at 64x64."""
    config.data.size = 64
    config.mrm.update({"patch": 8, "width": 128, "depth": 4, "heads": 4, "mask_cell": 8})
    config.mdn.update({"width": 256, "blocks": 2})
    config.mdn.encoder.update({"features": (16, 32, 64, 64), "width": 128})
    config.mdn.augmentation.update({"shift": 2})
    for name in ("cunet", "m1"):
        config[name].update({"features": (32, 32, 64, 128, 32)})
        config[name].average_decay = 0.99
    lengths = {"mrm": (400, 16, 1e-3), "mdn": (500, 32, 1e-3), "cunet": (1300, 8, 4e-3)}
    for name, (steps, batch, rate) in (lengths | {"m1": lengths["cunet"]}).items():
        config[name].train.update(
            {"num_steps": steps, "batch_size_per_device": batch, "validate_every": 200}
        )
        config[name].train.checkpoint_every = 200
        config[name].optimizer.update(
            {"learning_rate": rate, "schedule": "cosine", "warmup_steps": 20, "clip": 1.0}
        )
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """The smallest networks that still have every part, for a few steps."""
    config = shrink(config)
    config.data.size = 32
    config.mrm.update({"width": 32, "depth": 1, "heads": 2})
    config.mdn.update({"width": 32, "blocks": 1})
    config.mdn.encoder.update({"features": (8, 8), "width": 16})
    config.sampler.num_steps = 4
    config.evaluate.num_samples = 2
    for name in ("mrm", "mdn", "cunet", "m1"):
        changes = {"num_steps": 4, "batch_size_per_device": 4, "log_every": 2}
        config[name].train.update(changes | {"validate_every": 2, "checkpoint_every": 2})
    for name in ("cunet", "m1"):
        config[name].update({"features": (8, 8, 16, 8)})
    return config


def finish(config: ConfigDict, values: dict[str, int | bool]) -> ConfigDict:
    """Applies the values after the stage: `small` and `smoke` first, then single settings."""
    if values.get("smoke"):
        config = smoke(config)
    elif values.get("small"):
        config = shrink(config)
    config.data.size = values.get("size", config.data.size)
    config.seed = values.get("seed", config.seed)
    return config
