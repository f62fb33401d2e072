"""The sections of CDM's own networks: the paper's settings, and what it leaves open."""

from ml_collections import ConfigDict

from configs.lengths import optimizer, training

# The task "whatever is missing": a quarter of the slices gives what the paper's patients have.
ALL = ("t1", "t1c", "t2", "t2f")
ANY = {"sources": ALL, "targets": ALL, "favored": ("t1", "t2"), "favored_share": 0.25}

# What the segmenter learns from and to.
LABELED = {"sources": ALL, "targets": ("segmentation",)}

# What the paper's patients have, all but one modality, and T1 alone.
PATTERNS = ("t1+t2", "t1+t1c+t2", "t1+t1c+t2f", "t1+t2+t2f", "t1c+t2+t2f", "t1")


def mrm() -> ConfigDict:
    """SimMIM's ViT-S/16 with cells of 32 pixels, 60 % hidden."""
    return ConfigDict(
        {
            "method": "cdm.mrm",
            "patch": 16,
            "width": 384,
            "depth": 12,
            "heads": 6,
            "mask_cell": 32,
            "mask_ratio": 0.6,
            "loss": "mse",
            "average_decay": 0.0,
            "train": training(best_by="loss"),
            "optimizer": optimizer(),
        }
    )


def mdn(**changes) -> ConfigDict:
    """Two streams of four blocks over y, conditioned on the sources."""
    return ConfigDict(
        {
            "method": "cdm.mdn",
            "condition": "source",  # what each block sees: "source", or "none" as in the paper
            "decouple": "streams",
            "width": 512,
            "blocks": 4,
            "prediction": "x0",
            "schedule": "linear",  # of the noise: "linear" or "scaled_linear"
            "num_timesteps": 1000,  # T
            "average_decay": 0.999,
            # Of the network that encodes the sources: channels, length of the code, dropout.
            "encoder": {"features": (32, 64, 128, 256, 256), "width": 384, "dropout": 0.3},
            "augmentation": {"shift": 8, "gain": 0.1, "noise": 0.05},
            "train": training(best_by="loss"),
            "optimizer": optimizer(),
        }
        | changes
    )


def cunet(**changes) -> ConfigDict:
    """The UNet of the first author's public code (MONAI's BasicUNet), conditioned."""
    return ConfigDict(
        {
            "method": "cdm.cunet",
            "mdn_stage": "mdn",  # that samples y
            "features": (64, 64, 128, 256, 512, 64),
            "encoder": "hybrid",  # what a scale is made of; Fig. 3b: "printed"
            "condition": "on",
            "residual": True,  # whether features pass by the Condition Embedding; Fig. 3b: no
            "groups": 8,
            "source_skip": True,
            "quantiles": (),  # of an interval beside the mean, such as (0.05, 0.95); paper: none
            "loss": "mse",
            "training_y": "noised",  # the y that it is trained on; Eq. 4: "encoder"
            "null_y": False,  # whether synthesis takes the learned null, not a y that MDN samples
            "error_scale": 2.0,
            "noise": 0.0,
            "condition_dropout": 0.1,
            "average_decay": 0.0,
            "train": training(),
            "optimizer": optimizer(),
        }
        | changes
    )


def segmenter() -> ConfigDict:
    """The judge of syntheses, not in the paper: M1's network, to the regions of a tumor."""
    return ConfigDict(
        {
            "method": "segmenter",
            "features": (32, 32, 64, 128, 256, 32),
            "groups": 8,
            "modality_dropout": 0.5,
            "average_decay": 0.999,
            "train": training(best_by="dice"),
            "optimizer": optimizer(learning_rate=1e-3, schedule="cosine"),
        }
    )
