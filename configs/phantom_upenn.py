"""A second cohort of simulated patients: UPenn-GBM's layout, other patients, another scanner.

  python -m cdm_jax.main --config=configs/phantom_upenn.py:cdm --workdir=runs/phantom_upenn

What UPenn-GBM is to BraTS2023 in the paper (Table II): T1 is prepared by an inversion like T1c, and
the noise is that of real patients. The rest is as in configs/phantom.py.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    config = phantom.get_config(argument)
    config.data.name = "phantom_upenn"
    config.phantom.update({"layout": "upenn_gbm", "seed": 1, "scanner": "mprage"})
    return config
