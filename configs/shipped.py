"""The model that ships with the package: whatever is missing, trained on no patient.

  python -m experiments.shipped

trains it by this config, on simulated patients who were each scanned by another random protocol.
The frame is between that of BraTS (240 mm) and that of images cropped to the head.
"""

from ml_collections import ConfigDict

from configs import common


FEATURES = (16, 48, 96, 128, 192, 16)  # of C-UNet; what is as large as the image costs most


def networks(config: ConfigDict) -> None:
    """Gives a small config's stages the shipped model's networks."""
    config.mrm.mask_cell = 16
    config.mdn.augmentation.shift = 4
    for name in common.CUNETS:
        config[name].update({"features": FEATURES, "average_decay": 0.995})
        config[name].optimizer.update({"learning_rate": 3e-3, "warmup_steps": 50})
        config[name].train.validate_every = 400


def get_config(argument: str = "any") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    size = int(values.get("size", 32 if values.get("smoke") else 128))
    values = {"small": True, "any": True, "length": "shipped"} | values | {"size": size}
    config = common.finish(common.base(stage), values)
    if not values.get("smoke"):
        networks(config)
    if stage == "any":
        config.pipeline = ("mrm", "mdn", "cunet")
        config.evaluate.systems = ("cunet",)
    config.data.update({"name": "simulated", "test_fraction": 0.05, "validation_fraction": 0.05})
    config.data.augment.update({"gain": 0.1, "gamma": 0.2})
    config.phantom = ConfigDict(
        {
            "num_patients": 6 if values.get("smoke") else 400,
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
