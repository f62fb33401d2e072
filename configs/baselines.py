"""The sections of the systems that the paper compares CDM with: their official settings.

At paper scale, loss weights, optimizers, rates and the share of steps at a constant rate are those
of the official code. What is not: every system trains for the paper's 100 epochs at 12 slices a
device instead of its own length and batch size (official rates are not rescaled, also not RDM's,
which is stated for batches of 512), with flips and no other augmentation unless it is part of the
method; the moving average of Diffusion has a warm-up, which the official code has not; RDM's last
sampling step returns the estimate of y itself, where the official one keeps the noise of the first
timestep. `SMALL` holds what shrinks for a CPU at 64x64, where schedules and clipping are not the
official ones either (`configs.common.shrink`); `SMOKE` makes seconds of it.
"""

from ml_collections import ConfigDict

from configs.lengths import optimizer, training


def _gan(method: str, **settings) -> ConfigDict:
    """An adversarial system: Adam 2e-4 with beta_1 = 0.5, falling to zero in its second half."""
    official = {
        "learning_rate": 2e-4,
        "betas": (0.5, 0.999),
        "weight_decay": 0.0,
        "schedule": "linear_decay",
    }
    changes = settings.pop("optimizer", {})
    return ConfigDict(
        {
            "method": f"baselines.{method}",
            "width": 64,
            **settings,
            "train": training(),
            "optimizer": optimizer(**(official | changes)),
        }
    )


def pix2pix() -> ConfigDict:
    """Isola et al. 2017: UNet of eight halvings, 70x70 PatchGAN, 100 L1."""
    return _gan("pix2pix", halvings=8, dropout=0.5, l1_weight=100.0)


def cyclegan() -> ConfigDict:
    """Zhu et al. 2017: two ResNet-9, two PatchGANs, cycle 10, identity 5, a pool of 50."""
    return _gan(
        "cyclegan",
        blocks=9,
        cycle_weight=10.0,
        identity_weight=5.0,
        pool=50,
        unpaired=True,  # targets are of other slices than the sources
    )


def gcgan() -> ConfigDict:
    """Fu et al. 2019: one generator, geometry consistency 20, identity 5, a pool of 50 each."""
    return _gan(
        "gcgan",
        blocks=9,
        geometry_weight=20.0,
        identity_weight=5.0,
        pool=50,
        unpaired=True,  # targets are of other slices than the sources
    )


def cut() -> ConfigDict:
    """Park et al. 2020: anti-aliased ResNet-9, PatchNCE over five layers and on the targets."""
    return _gan(
        "cut",
        blocks=9,
        projection=256,
        patches=256,
        temperature=0.07,
        contrast_weight=1.0,
        unpaired=True,  # targets are of other slices than the sources
    )


def reggan() -> ConfigDict:
    """Kong et al. 2021: NC+R, which has no cycle."""
    return _gan(
        "reggan",
        blocks=9,
        registration=(32, 64, 64, 64, 64, 64, 64),
        correction_weight=20.0,
        smoothness_weight=10.0,
        misalignment={"degrees": 1.0, "shift": 0.02, "scale": 0.02},
        optimizer={"learning_rate": 1e-4, "schedule": "constant"},
    )


def resvit_cnn() -> ConfigDict:
    """Dalmaz et al. 2022, first stage: the network without its transformer."""
    return _gan("resvit", **_resvit(transformer=False))


def resvit() -> ConfigDict:
    """Dalmaz et al. 2022, second stage: with the shared transformer, from the first one's weights.

    `resvit.pretrained` is the path of the public R50+ViT-B_16 .npz; without it the transformer
    starts from random weights, and the run says so.
    """
    config = _gan("resvit", optimizer={"learning_rate": 1e-3}, **_resvit(transformer=True))
    config.train.num_epochs //= 2  # officially 50 after the first stage's 100
    return config


def _resvit(*, transformer: bool) -> dict:
    return {
        "transformer": transformer,  # whether this is the second stage
        "blocks": 9,
        "transformer_blocks": (1, 6),
        "hidden": 768,
        "layers": 12,
        "heads": 12,
        "dropout": 0.1,
        "l1_weight": 100.0,
        "pretrained": "",
    }


def _unet() -> dict:
    """The guided-diffusion UNet with 192 channels (311 million parameters).

    `attention` names sides of feature maps in pixels, for images of `data.size`.
    """
    return {
        "width": 192,
        "multipliers": (1, 1, 2, 2, 4, 4),
        "blocks": 2,
        "attention": (32, 16, 8),
        "heads": 4,
        "resblock_updown": True,
        "dropout": 0.0,
        "remat": True,  # 30 GiB a step instead of 74; norms and attention are computed twice
    }


def diffusion() -> ConfigDict:
    """Dhariwal & Nichol 2021 with the sources concatenated; noise-prediction, DDIM as CDM's.

    128 channels: `diffusion.width=128`, `diffusion.attention="(16,8)"`,
    `diffusion.resblock_updown=false`. 64 channels: `diffusion.width=64`,
    `diffusion.attention="(16,)"`.
    """
    return ConfigDict(
        {
            "method": "baselines.diffusion",
            **_unet(),
            "prediction": "noise",
            "schedule": "linear",  # of the noise: "linear" or "scaled_linear"
            "num_timesteps": 1000,  # T
            "average_decay": 0.9999,
            "num_samples": 1,  # that an evaluation draws: each takes a pass of the UNet a step
            "train": training(),
            "optimizer": optimizer(weight_decay=0.0),
        }
    )


def rdm() -> ConfigDict:
    """Li et al. 2024, first part: the diffusion over the frozen MRM encoder's y, unconditional."""
    return ConfigDict(
        {
            "method": "baselines.rdm",
            "width": 1536,
            "blocks": 12,
            "time_width": 256,
            "num_timesteps": 1000,  # T
            "schedule": "scaled_linear",  # of the noise
            "sampler": {"num_steps": 250, "eta": 1.0, "grid": "stride"},  # as `sampler`, of y
            "average_decay": 0.9999,
            "train": training(best_by="loss"),
            "optimizer": optimizer(learning_rate=5.12e-4, weight_decay=0.01, decay="decoupled"),
        }
    )


def rcg() -> ConfigDict:
    """Li et al. 2024, second part: pixels from a sampled y (the ADM variant), no source image."""
    return ConfigDict(
        {
            "method": "baselines.rcg",
            **_unet(),
            "condition_dropout": 0.1,
            "prediction": "noise",
            "schedule": "linear",  # of the noise: "linear" or "scaled_linear"
            "num_timesteps": 1000,  # T
            "average_decay": 0.9999,
            "num_samples": 1,  # that an evaluation draws: each takes a pass of the UNet a step
            "train": training(),
            "optimizer": optimizer(weight_decay=0.0),
        }
    )


SECTIONS = {
    section.__name__: section
    for section in (pix2pix, cyclegan, gcgan, cut, reggan, resvit_cnn, resvit, diffusion, rdm, rcg)
}
STAGES = {"resvit": ("resvit_cnn", "resvit"), "rcg": ("mrm", "rdm", "rcg")}  # of more than one

_SMALL_RESVIT = {"width": 16, "hidden": 96, "layers": 2, "heads": 4}
_SMALL_UNET = {  # a pass costs as much as C-UNet's
    "width": 16,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "attention": (16,),
    "heads": 2,
    "resblock_updown": False,
    "remat": False,  # these fit anywhere
    "average_decay": 0.99,
}
SMALL: dict[str, dict] = {
    "pix2pix": {"width": 32, "halvings": 6},
    "cyclegan": {"width": 16, "blocks": 6},
    "gcgan": {"width": 16, "blocks": 6},
    "cut": {"width": 16, "blocks": 6, "projection": 64},
    "reggan": {"width": 16, "blocks": 6, "registration": (16, 32, 32, 32, 32)},
    "resvit_cnn": _SMALL_RESVIT,
    "resvit": _SMALL_RESVIT,
    "diffusion": _SMALL_UNET,
    "rdm": {"width": 256, "blocks": 4, "time_width": 64, "average_decay": 0.99},
    "rcg": _SMALL_UNET,
}
# Of small networks on batches of eight; the official rate is of batches of 256. On the phantom's
# validation patients 2e-3 was better than that rate.
SMALL_RATES = {"diffusion": 2e-3, "rcg": 2e-3}

_SMOKE_RESVIT = {"width": 4, "hidden": 16, "layers": 1, "heads": 2}
_SMOKE_UNET = {"width": 8, "multipliers": (1, 2), "attention": (16,), "heads": 1}
SMOKE: dict[str, dict] = {
    "pix2pix": {"width": 4, "halvings": 5},
    "cyclegan": {"width": 4, "blocks": 1, "pool": 4},
    "gcgan": {"width": 4, "blocks": 1, "pool": 4},
    "cut": {"width": 4, "blocks": 5, "projection": 8, "patches": 16},
    "reggan": {"width": 4, "blocks": 1, "registration": (4, 8)},
    "resvit_cnn": _SMOKE_RESVIT,
    "resvit": _SMOKE_RESVIT,
    "diffusion": _SMOKE_UNET,
    "rdm": {"width": 32, "blocks": 1, "time_width": 16, "sampler": {"num_steps": 4}},
    "rcg": _SMOKE_UNET,
}
