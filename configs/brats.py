"""BraTS2023 glioma: T1, T2 -> T1c, T2f as in Table I of the paper.

  python -m cdm_jax.main --config=configs/brats.py:cdm --config.data.root=<folder>

The folder holds one folder a patient (`BraTS-GLI-00000-000/...-t1n.nii.gz`) at any depth; the
names of BraTS 2018 to 2021 work as well.

The paper's row is 31.92 dB, .941, .0117 on average over the targets, under an unnamed
convention, after 100 epochs on A100s. This schedule has not been run to its end with this code,
which therefore states no number for it. `configs/brats.py:cdm,small` trains small networks at
64x64 on a CPU.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    config = common.base(stage)
    config.data.name = "brats"
    return common.finish(config, values)
