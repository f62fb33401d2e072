"""What all configs share: the paper's settings, the small ones, and the argument after the colon.

`--config=configs/brats.py:cunet,size=128` calls `get_config("cunet,size=128")`: a stage, then
values.

Stages of CDM:
  mrm        the representation model
  mdn        the diffusion over representations
  cunet      the synthesis conditioned on them
  mdn_joint  M2's diffusion: no decoupling, as many parameters (Table III)
  segmenter  the judge of syntheses: all modalities to a tumor's regions (not in the paper)

Systems, each trained with all its stages in order and then evaluated:
  cdm        mrm, mdn, cunet, and m1 to compare with
  any        the same for whatever is missing: any modalities in, the others out
  m1         the plain UNet: C-UNet without the condition (Table III)
  m1_1x1     M1 with the Condition Embedding's 1x1 branch kept: the same capacity
  m2         the condition without decoupling (Table III)
  pix2pix, cyclegan, gcgan, cut, reggan, resvit, diffusion, rcg (configs/baselines.py)
  all        every one of them

Values: `size` (pixels), `seed`, `any` (for a stage alone: whatever is missing), `small` (networks
and schedule for a CPU), `length` (of that schedule, see configs/lengths.py), `finetune` (go on from
the shipped model, in batches of which half is simulated), `smoke` (seconds; for tests).
"""

import difflib

from ml_collections import ConfigDict

from configs import baselines, cdm, lengths

# Stages that are not systems.
PARTS = ("mrm", "mdn", "mdn_joint", "cunet", "resvit_cnn", "rdm", "segmenter")
SYSTEMS = {
    "cdm": ("mrm", "mdn", "cunet", "m1"),
    "any": ("mrm", "mdn", "cunet", "m1"),
    "m1": ("m1",),
    "m1_1x1": ("m1_1x1",),
    "m2": ("mrm", "mdn_joint", "m2"),
    **{
        name: baselines.STAGES.get(name, (name,))
        for name in baselines.SECTIONS
        if name not in PARTS
    },
}
SYSTEMS["all"] = tuple(dict.fromkeys(stage for stages in SYSTEMS.values() for stage in stages))
STAGES = (*PARTS, *SYSTEMS)
CUNETS = ("cunet", "m1", "m1_1x1", "m2")
Values = dict[str, int | bool | str]
TRUTH = {"true": True, "1": True, "false": False, "0": False}


def parse(argument: str) -> tuple[str, Values]:
    """Splits "cdm,size=64,small" into a stage and typed values.

    Raises:
      ValueError: unknown stage or value, or a value of the wrong type.
    """
    stage, *pairs = [part.strip() for part in argument.split(",")]
    if stage not in STAGES:
        nearest = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ValueError(f"unknown stage '{stage}'{hint}: allowed are {', '.join(STAGES)}")
    kinds = {"size": int, "seed": int, "length": str}
    kinds |= dict.fromkeys(("small", "smoke", "any", "finetune"), bool)
    values: Values = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise ValueError(f"unknown value '{key}': allowed are {', '.join(kinds)}")
        if kinds[key] is bool and (text or "true").lower() in TRUTH:
            values[key] = TRUTH[(text or "true").lower()]
        elif kinds[key] is int and text.isdigit():
            values[key] = int(text)
        elif key == "length":
            if text not in lengths.SMALL:
                raise ValueError(f"unknown length '{text}': allowed are {', '.join(lengths.SMALL)}")
            values[key] = text
        else:
            raise ValueError(f"'{pair}' should be {key}=<{kinds[key].__name__}>")
    return stage, values


def _data() -> dict[str, object]:
    """The section of the patients."""
    return {
        "name": "",  # of the data set, for records and model cards
        "root": "",  # folder of the patients, at any depth
        "sources": ("t1", "t2"),  # modalities that a patient has
        "targets": ("t1c", "t2f"),  # modalities to synthesize; the sources: any missing one
        "favored": (),  # where any may be missing, sources of a pattern drawn more often
        "favored_share": 0.0,  # how often that is
        "context": 0,  # neighbors to each side of a slice, seen as further sources; paper: none
        "copies": (),  # source shown by the "copy" row for each target; (): by name
        "patterns": ConfigDict(),  # modality -> names of its files; empty: known layouts
        "size": 256,  # rows and columns of a slice in the model's frame, in pixels
        "minimum_brain": 0.01,  # share of a slice's square that brain must cover to train
        "flips": True,  # whether half of the training slices are mirrored left to right
        # Standard deviations of the logarithms of a training slice's gain and gamma, one
        # of each source.
        "augment": {"gain": 0.0, "gamma": 0.0},
        # Simulated patients of random protocols to train on beside the real ones: how many,
        # and the share of them in each batch, about.
        "simulated": {"patients": 0, "share": 0.0},
        "split_file": "",  # where the split is kept; empty: <workdir>/split.json
        "split_seed": 0,  # decides which patients are in which part
        "test_fraction": 0.3,  # share of the patients to test on
        "validation_fraction": 0.1,  # share of the other patients to validate on
        "test_patients": (),  # names of the patients to test on, instead of a share
        "exclude": (),  # names of patients to leave out, such as another set's duplicates
        "cache": "",  # folder of prepared slices; empty: <workdir>/cache
        "num_workers": 0,  # processes that prepare and score patients; 0: one a core
        "read_threads": 4,  # that read training batches, a process; 0: one a CPU core
    }


def base(stage: str) -> ConfigDict:
    """The paper's setting: T1, T2 -> T1c, T2f at 256x256, batch 12 a device, 100 epochs."""
    return ConfigDict(
        {
            "stage": stage,  # what to train: a stage, or a system with all its stages
            "seed": 0,  # of parameters, training draws and samples
            "init_from": "",  # what parameters start from: a finished run's folder, or "shipped"
            "precision": "float32",  # in which networks compute: "float32" or "bfloat16"
            "matmul_precision": "default",  # the device's; or "tensorfloat32", "float32"
            "volume_scale": True,  # whether the scale of whole predicted volumes is corrected
            "parallel": "jit",  # how devices share the work: "jit", "pmap" or "fsdp"
            "data": _data(),
            "pipeline": SYSTEMS.get(stage, ()),  # stages to train in order, then evaluate
            "mrm": cdm.mrm(),
            "mdn": cdm.mdn(),
            "mdn_joint": cdm.mdn(decouple="none", width=732),
            "cunet": cdm.cunet(),
            "m1": cdm.cunet(condition="none"),
            "m1_1x1": cdm.cunet(condition="keep_1x1"),
            "m2": cdm.cunet(mdn_stage="mdn_joint"),
            "segmenter": cdm.segmenter(),
            **{name: section() for name, section in baselines.SECTIONS.items()},
            "sampler": {
                "num_steps": 30,  # N of DDIM
                "eta": 0.0,  # 0: deterministic given the first noise; 1: DDPM's variance
                "grid": "ends",  # which timesteps are visited: "ends" or "stride"
            },
            "validation": {
                "share": 0.1,  # of the training's time that validating may take, about
            },
            "evaluate": {
                "part": "test",  # of the split: "test" or "validation"
                "systems": _translators(stage),  # stages to score
                "rows": (),  # to score, such as ("cunet", "cunet/mean_of_8"); (): all
                "patterns": (),  # where any may be missing: sources to score from, such as "t1+t2"
                "reference": "cunet" if stage == "all" else "m1",  # row to test the others against
                "conventions": ("paper", "volume"),  # metric conventions, by name
                "num_samples": 8,  # K of the row mean_of_K
                "batch_size": 12,  # slices a call and device
            },
            "checkpoint": {
                "keep": 2,  # how many of the latest checkpoints stay
                "use": "best",  # which one others take: "best" in validation, or "last"
            },
            "profile": {
                "first_step": 0,  # where a trace by XLA's profiler begins
                "num_steps": 0,  # how many steps it covers; 0: no trace
            },
        }
    )


def _translators(stage: str) -> tuple[str, ...]:
    """The systems that an evaluation of this stage scores."""
    stages = SYSTEMS.get(stage, SYSTEMS["cdm"])
    return tuple(name for name in stages if name == "cunet" or name not in PARTS)


def shrink(config: ConfigDict, length: str = "small") -> ConfigDict:
    """Networks and schedules with which all stages train on two CPU cores in minutes at 64x64."""
    config.data.size = 64
    config.mrm.update({"patch": 8, "width": 128, "depth": 4, "heads": 4, "mask_cell": 8})
    for name, width in (("mdn", 256), ("mdn_joint", 354)):
        config[name].update({"width": width, "blocks": 2})
        config[name].encoder.update({"features": (16, 32, 64, 64), "width": 128})
        config[name].augmentation.update({"shift": 2})
        _lengthen(config[name], lengths.small(length, name), 1e-3)
    for name in CUNETS:
        config[name].update({"features": (32, 32, 64, 128, 32), "average_decay": 0.99})
        _lengthen(config[name], lengths.small(length, name), 4e-3)
    _lengthen(config.mrm, lengths.small(length, "mrm"), 1e-3)
    config.segmenter.update({"features": (32, 32, 64, 128, 32), "average_decay": 0.99})
    _lengthen(config.segmenter, lengths.small(length, "segmenter"), 4e-3)
    for name in baselines.SECTIONS:
        section = config[name]
        section.update(baselines.SMALL.get(name, {}))
        # As many slices as C-UNet sees. The GANs' official rate is of one slice: at eight, it is
        # multiplied by the square root of eight. Not official, alike for all: a rate that falls to
        # zero in the second half (RegGAN's, Diffusion's and RCG's are constant), a warm-up, and
        # gradients clipped to a norm of 1 (no GAN clips).
        official = section.optimizer.learning_rate * 8**0.5
        rate = baselines.SMALL_RATES.get(name, official)
        _lengthen(section, lengths.small(length, name), rate)
        section.optimizer.schedule = "linear_decay"
    return config


def _lengthen(section: ConfigDict, length: dict[str, int], rate: float) -> None:
    section.train.update(length | {"validate_every": 200, "checkpoint_every": 200})
    section.optimizer.update(
        {"learning_rate": rate, "schedule": "cosine", "warmup_steps": 20, "clip": 1.0}
    )


def like_shipped(config: ConfigDict) -> ConfigDict:
    """Gives a small config the networks of the shipped model, at 128x128."""
    config.data.size = 128
    config.mrm.mask_cell = 16
    config.mdn.augmentation.shift = 4
    for name in CUNETS:
        # What is as large as the image costs most.
        config[name].update({"features": (16, 48, 96, 128, 192, 16), "average_decay": 0.995})
        config[name].optimizer.update({"learning_rate": 3e-3, "warmup_steps": 50})
        config[name].train.validate_every = 400
    # A sampled y tells nothing that the sources do not, and costs accuracy from T1 and T2.
    config.cunet.null_y = True
    return config


def finetune(config: ConfigDict) -> ConfigDict:
    """Goes on from the shipped model so that it is not forgotten: low rates, half simulated."""
    config = like_shipped(shrink(config, "finetune"))
    config.init_from = "shipped"
    config.data.augment.update({"gain": 0.1, "gamma": 0.2})
    config.data.simulated.update({"patients": 60, "share": 0.5})
    config.pipeline = ("mrm", "mdn", "cunet") if config.stage == "any" else config.pipeline
    config.evaluate.systems = ("cunet",)
    for name in ("mrm", "mdn", "cunet"):
        config[name].optimizer.learning_rate *= 0.2
        config[name].train.validate_every = 100
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """The smallest networks that still have every part, for a few steps."""
    config = shrink(config)
    config.data.size = 32
    config.mrm.update({"width": 32, "depth": 1, "heads": 2})
    for name in ("mdn", "mdn_joint"):
        config[name].update({"width": 32, "blocks": 1})
        config[name].encoder.update({"features": (8, 8), "width": 16})
    config.sampler.num_steps = 4
    config.evaluate.num_samples = 2
    for name in (*CUNETS, "segmenter"):
        config[name].update({"features": (8, 16, 8)})
    for name, changes in baselines.SMOKE.items():
        config[name].update(changes)
    for name in (*SYSTEMS["all"], "segmenter"):
        changes = {"num_steps": 4, "batch_size_per_device": 4, "log_every": 2}
        config[name].train.update(changes | {"validate_every": 2, "checkpoint_every": 2})
    return config


def finish(config: ConfigDict, values: Values) -> ConfigDict:
    """Applies the values after the stage: `small` and `smoke` first, then single settings."""
    if values.get("smoke"):
        config = smoke(config)
    elif values.get("finetune"):
        config = finetune(config)
    elif values.get("small"):
        config = shrink(config, str(values.get("length", "small")))
    elif "length" in values:
        raise ValueError("'length' is of small networks: add 'small'")
    if values.get("any") or values.get("finetune") or config.stage == "any":
        config.data.update(cdm.ANY)
        config.evaluate.patterns = cdm.PATTERNS
    if config.stage == "segmenter":
        config.data.update(cdm.LABELED)
    config.data.size = values.get("size", config.data.size)
    config.seed = values.get("seed", config.seed)
    return config
