"""UPenn-GBM: T1, T2 -> T1c, T2f as in Table II of the paper.

  python -m cdm_jax.main --config=configs/upenn_gbm.py:cdm --config.data.root=<folder> --workdir=runs/upenn_gbm

The folder holds one folder a patient (`BraTS-GLI-00000-000/...-t1n.nii.gz`) at any depth; the names
of BraTS 2018 to 2021 work as well. The paper's row is 31.92 dB, .941, .0117 on average over targets,
under an unnamed convention. It trained 100 epochs of about 9 500 steps of 12 a stage on A100s;
this schedule has not been run to its end by the authors of this code, who state no number for it.
`configs/upenn_gbm.py:cdm,small` trains small networks at 64x64 on a CPU.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    config = common.base(stage)
    config.data.name = "upenn_gbm"
    return common.finish(config, values)
