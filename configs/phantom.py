"""Simulated patients: everything runs on a laptop, with no data to ask for.

  python -m cdm_jax.main --config=configs/phantom.py:cdm --workdir=runs/phantom

The patients are made on first use. With the default, small networks all stages and the evaluation
take about ten minutes on two cores; docs/studies shows tables.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    config = common.finish(common.base(stage), {"small": True} | values)
    config.data.name = "phantom"
    size = config.data.size
    config.phantom = ConfigDict(
        {
            "num_patients": 6 if values.get("smoke") else 80,
            "shape": (size, size, size * 3 // 4),
            "voxel_mm": 192 / size,
            "seed": 0,
            "layout": "brats2023",
            "protocol": "fixed",
            "scanner": "mixed",
            "predictable": 0.0,
        }
    )
    return config
