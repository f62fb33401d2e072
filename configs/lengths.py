"""How long a stage trains and by what optimiser: the parts that every section has."""

from ml_collections import ConfigDict


def training(**changes) -> ConfigDict:
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


def optimizer(**changes) -> ConfigDict:
    """Adam 1e-4 with a "decay rate" of 1e-5, read as PyTorch's coupled weight decay."""
    return ConfigDict(
        {
            "learning_rate": 1e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 1e-5,
            "decay": "coupled",
            "schedule": "constant",
            "decay_from": 0.5,  # share of the run after which "linear_decay" begins
            "warmup_steps": 0,
            "clip": 0.0,
            "accumulate": 1,  # batches whose mean gradient makes one update
        }
        | changes
    )
