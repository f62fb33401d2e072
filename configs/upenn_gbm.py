"""UPenn-GBM: T1, T2 -> T1c, T2f as in Table II of the paper.

  python -m cdm_jax.main --config=configs/upenn_gbm.py:cdm --config.data.root=<folder>

The folder holds `images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_T1.nii.gz` and so on (the
NIfTI package of the collection on TCIA). BraTS 2021 and later contain patients of this collection:
never test on one what was trained on the other without taking them out (`data.exclude`).

The paper's row is 33.34 dB, .959, .0117 on average over the targets, under an unnamed
convention, after 100 epochs on A100s. This schedule has not been run to its end with this code,
which therefore states no number for it. `configs/upenn_gbm.py:cdm,small` trains small networks at
64x64 on a CPU.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    config = common.base(stage)
    config.data.name = "upenn_gbm"
    return common.finish(config, values)
