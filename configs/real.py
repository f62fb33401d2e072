"""A handful of real patients of any layout, one left out, with small networks on a CPU.

python -m cdm_jax.main --config=configs/real.py:cdm --config.data.root=<folder> \
    --config.data.test_patients='("BraTS-GLI-00001",)' --workdir=runs/real
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    config = common.finish(common.base(stage), {"small": True} | values)
    config.data.name = "real"
    return config
