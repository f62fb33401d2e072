"""How long a stage trains and by what optimizer: the parts that every section has."""

from ml_collections import ConfigDict

IMAGES = "images"  # every stage that makes images
# It learns fifteen tasks, one for each choice of modalities: with 1000 steps it found nothing in T1
# and T2.
SEGMENTER = (4000, 16)
# What `small` networks train on a CPU, by the value `length` of a config: steps, and slices a batch
# and device. "study" is that of the tables. "demo" takes batches of 4, which teach C-UNet more a
# slice, on two devices: XLA computes norms and activations on one core a device. "real" is of two
# patients, who are learned by heart soon.
SMALL = {
    "small": {"mrm": (400, 16), "mdn": (500, 32), "segmenter": SEGMENTER, IMAGES: (1300, 8)},
    "study": {"mrm": (400, 16), "mdn": (500, 32), "segmenter": SEGMENTER, IMAGES: (1000, 8)},
    "demo": {"mrm": (400, 8), "mdn": (500, 16), IMAGES: (1400, 2)},
    "shipped": {"mrm": (400, 8), "mdn": (400, 16), IMAGES: (10000, 2)},
    "finetune": {"mrm": (100, 16), "mdn": (100, 32), IMAGES: (500, 8)},
    "real": {"mrm": (200, 16), "mdn": (150, 32), IMAGES: (400, 8)},
}


def small(length: str, stage: str) -> dict[str, int]:
    """Steps and batch of a stage in one of `SMALL`."""
    lengths = SMALL[length]
    steps, batch = lengths.get(stage.removesuffix("_joint"), lengths[IMAGES])
    return {"num_steps": steps, "batch_size_per_device": batch}


def training(**changes) -> ConfigDict:
    """How long a stage trains. `num_steps` 0 means: as many as `num_epochs` take."""
    return ConfigDict(
        {
            "batch_size_per_device": 12,  # slices that one device works on in a step
            "num_epochs": 100,  # passes over the training slices, where num_steps is 0
            "num_steps": 0,  # length of the training; 0: as many steps as num_epochs take
            "log_every": 50,  # steps between lines of metrics.jsonl
            "validate_every": 2_000,  # steps between validations
            "checkpoint_every": 2_000,  # steps between checkpoints
            "best_by": "psnr_brain",  # validation metric of the checkpoint to keep as the best
            "non_finite": "stop",  # at a loss or parameter that is not finite; or "skip" that step
            "patience": 0,  # validations without a better one that end the training; 0: none do
        }
        | changes
    )


def optimizer(**changes) -> ConfigDict:
    """Adam 1e-4 with a "decay rate" of 1e-5, read as PyTorch's coupled weight decay."""
    return ConfigDict(
        {
            "learning_rate": 1e-4,  # the highest of the run
            "betas": (0.9, 0.999),  # of Adam's two moments
            "weight_decay": 1e-5,  # the paper's "decay rate"
            "decay": "coupled",  # added to the gradient (PyTorch's Adam), or "decoupled" (AdamW)
            "schedule": "constant",  # or "cosine", or "linear_decay" to zero
            "decay_from": 0.5,  # share of the run after which "linear_decay" begins
            "warmup_steps": 0,  # steps over which the rate rises from zero
            "clip": 0.0,  # bound of the gradient's global norm; 0: none
            "accumulate": 1,  # batches whose mean gradient makes one update
        }
        | changes
    )
