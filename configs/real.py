"""A handful of real patients of mixed layouts, one left out, with small networks on a CPU.

  python -m cdm_jax.main --config=configs/real.py:cdm --config.data.root=<folder>
    --config.data.test_patients="('BraTS-GLI-00001',)"

`data.patterns` shows how files of any name are found: alternatives are parted by "|", and a pattern
without "{subject}" means that a subject is the folder that holds the file. On four patients (two of
BraTS, one of TCGA-LGG, one with multiple sclerosis), each left out once, the record is
`experiments/results/real_leave_one_out.json`, made by `python -m experiments.real`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "cdm") -> ConfigDict:
    """The config of a stage, see `configs/common.py` for what the argument may hold."""
    stage, values = common.parse(argument)
    values = {"small": True} | values
    if values["small"]:
        values.setdefault("length", "real")
    config = common.finish(common.base(stage), values)
    config.data.update({"name": "real", "validation_fraction": 0.3})
    config.data.patterns = ConfigDict(
        {
            "t1": "*-t1n.nii.gz|*_t1.nii.gz|*_t1_bet.nii.gz|T1.nii.gz",
            "t1c": "*-t1c.nii.gz|*_t1ce.nii.gz|*_t1c_bet.nii.gz|T1POST.nii.gz",
            "t2": "*-t2w.nii.gz|*_t2.nii.gz|*_t2_bet.nii.gz|T2.nii.gz",
            "t2f": "*-t2f.nii.gz|*_flair.nii.gz|*_fla_bet.nii.gz|FLAIR.nii.gz",
            "segmentation": "*-seg.nii.gz",
        }
    )
    if values["small"] and not values.get("smoke"):
        for name in common.SYSTEMS["all"]:
            config[name].optimizer.learning_rate = min(2e-3, config[name].optimizer.learning_rate)
    return config
