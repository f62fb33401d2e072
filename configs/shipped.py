"""The model that ships with the package: whatever is missing, trained on no patient.

  JAX_NUM_CPU_DEVICES=2 python -m experiments.shipped

trains it by this config, on simulated patients who were each scanned by another random protocol.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "any") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    smoke = bool(values.get("smoke"))
    shipped: common.Values = {"small": True, "any": True, "length": "shipped"}
    config = common.finish(common.base(stage), shipped | values)
    if not smoke:
        config = _at_length(common.like_shipped(config))
        config.data.size = values.get("size", config.data.size)
    if stage == "any":
        config.pipeline = ("mrm", "mdn", "cunet")
        config.evaluate.systems = ("cunet",)
    config.data.update({"name": "simulated", "test_fraction": 0.05, "validation_fraction": 0.05})
    size = config.data.size
    config.phantom = ConfigDict(  # as cdm_jax.data.dataset.random_protocols says
        {
            "num_patients": 6 if smoke else 400,
            "shape": (size, size, size * 100 // 128),
            "voxel_mm": 224 / size,
            "seed": 100,
            "layout": "brats2023",
            "protocol": "random",
            "scanner": "mixed",
            "predictable": 0.5,
        }
    )
    return config


def _at_length(config: ConfigDict) -> ConfigDict:
    """What a long training on simulated patients changes."""
    config.data.favored_share = 0.35
    # A patient's files may have been through any processing, and what is made of them has not.
    config.data.augment.update({"gain": 0.05, "gamma": 0.15})
    config.cunet.condition_dropout = 0.5  # its syntheses take the learned null, see `null_y`
    config.cunet.average_decay = 0.998
    config.cunet.optimizer.learning_rate = 2e-3
    config.cunet.train.update({"validate_every": 1000, "checkpoint_every": 500})
    return config
