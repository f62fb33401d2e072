"""A second cohort of simulated patients: UPenn-GBM's layout, other patients, another scanner.

  python -m cdm_jax.main --config=configs/phantom_upenn.py:cdm --workdir=runs/phantom_upenn

What UPenn-GBM is to BraTS2023 in the paper (Table II): T1 is prepared by an inversion like T1c, and
half of the variance of a tumor's local enhancement shows on T1 and T2, as part of it does in real
patients. The rest is as in configs/phantom.py.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    config = phantom.get_config(argument)
    config.data.name = "phantom_upenn"
    config.phantom.update(
        {"layout": "upenn_gbm", "seed": 1, "scanner": "mprage", "predictable": 0.5}
    )
    return config
