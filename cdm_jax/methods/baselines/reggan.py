"""RegGAN (Kong et al. 2021): a registration accounts for targets that lie a little aside.

The targets correct the generator after a second network has laid its images on them. NC+R is that
alone; C+R adds a generator in the other direction and the cycle.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Batch, Metrics, Model, State, apply
from cdm_jax.methods.baselines.adversarial import (
    Adversarial,
    Images,
    empty_pool,
    exchange_kinds,
    least_squares,
    score,
)
from cdm_jax.methods.baselines.reggan_network import (
    RandomAffine,
    RegistrationNetwork,
    smoothness,
    warp,
)
from cdm_jax.methods.settings import build, check_least, check_size
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.nn.resnet import ResNetGenerator

KINDS = ("source", "target")  # of images; NC+R makes targets alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegGAN(Adversarial):
    """A generator and a registration network, which learn together, and a discriminator.

    Attributes:
      network: source images to target images.
      to_source: the generator of the other direction in C+R, None in NC+R.
      registration: the displacement between synthetic and true targets; only training needs it.
      discriminator: of target images, and with other parameters of source images in C+R.
      correction_weight: of the distance between displaced syntheses and targets.
      smoothness_weight: of the displacement's squared slopes.
      cycle_weight: of the distance between images and what both generators in turn make of them.
      misalignment: moves sources and targets in training, each by itself.
      pool: past synthetic images of each kind that the discriminators are shown in C+R.
    """

    network: nn.Module
    to_source: nn.Module | None
    registration: nn.Module
    discriminator: nn.Module
    correction_weight: float
    smoothness_weight: float
    cycle_weight: float
    misalignment: RandomAffine
    pool: int

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh networks, with empty pools in C+R."""
        keys = jax.random.split(key, 5)
        source, target = batch["source"], batch["target"]
        generator = {
            "network": self.network.init(keys[0], source)["params"],
            "registration": self.registration.init(keys[1], target, target)["params"],
        }
        discriminator = {"target": self.discriminator.init(keys[2], target)["params"]}
        memory: dict[str, Any] = {}
        if self.to_source:
            generator["to_source"] = self.to_source.init(keys[3], target)["params"]
            discriminator["source"] = self.discriminator.init(keys[4], source)["params"]
            memory = {kind: empty_pool(self.pool, batch[kind]) for kind in KINDS}
        params = {"generator": generator, "discriminator": discriminator}
        return self.start(params, memory=memory)

    def _misalign(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Sources and targets as two scans that were never registered."""
        keys = zip(KINDS, jax.random.split(key), strict=True)
        return {kind: self.misalignment(kind_key, batch[kind]) for kind, kind_key in keys}

    def _score(self, params: PyTree, images: Float[Array, "b h w _"]) -> Float[Array, " b"]:
        """One score for each image: the mean over its patches."""
        return score(self.discriminator, params, images).mean(axis=(1, 2, 3))

    def _synthesize(self, params: PyTree, batch: Batch) -> dict[str, Float[Array, "b h w _"]]:
        """What the generators make of a batch, by the kind of images that it is."""
        synthetic = {"target": apply(self.network, params["network"], batch["source"])}
        if self.to_source:
            synthetic["source"] = apply(self.to_source, params["to_source"], batch["target"])
        return synthetic

    def _generator_loss(
        self, params: PyTree, discriminator: PyTree, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[Images, Metrics]]:
        """The weighted sum, the synthetic images, and the parts without their weights."""
        synthetic = self._synthesize(params, batch)
        displacement = apply(
            self.registration, params["registration"], synthetic["target"], batch["target"]
        )
        parts = {
            "adversarial": jnp.zeros(()),
            "correction": jnp.abs(warp(synthetic["target"], displacement) - batch["target"]).mean(),
            "smoothness": smoothness(displacement),
        }
        for kind, images in synthetic.items():
            parts["adversarial"] += least_squares(self._score(discriminator[kind], images), True)
        loss = parts["adversarial"] + self.correction_weight * parts["correction"]
        loss += self.smoothness_weight * parts["smoothness"]
        if self.to_source:
            back = self._synthesize(params, synthetic)
            source, target = (jnp.abs(back[kind] - batch[kind]).mean() for kind in KINDS)
            parts["cycle"] = source + target
            loss += self.cycle_weight * parts["cycle"]
        return loss, (synthetic, parts)

    def _discriminator_loss(
        self, params: PyTree, batch: Batch, shown: Images
    ) -> tuple[Float[Array, ""], None]:
        """Losses on real and on synthetic images, not halved, over all kinds."""
        loss = jnp.zeros(())
        for kind, images in shown.items():
            loss += least_squares(self._score(params[kind], batch[kind]), True)
            loss += least_squares(self._score(params[kind], images), False)
        return loss, None

    def _show(
        self, state: State, batch: Batch, synthetic: Images, key: Key[Array, ""]
    ) -> tuple[State, Images]:
        """The images that the discriminators are to see.

        The official code makes new ones after the generator's step in NC+R; in C+R it takes those
        from before it, through the pools.
        """
        if not self.to_source:
            return state, self._synthesize(state.params["generator"], batch)
        memory, shown = exchange_kinds(state.memory, synthetic, key)
        return state.replace(memory=memory), shown

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """A step of generators and registration on moved images, then one of discriminators."""
        move_key, pool_key = jax.random.split(key)
        moved = self._misalign(batch, move_key)
        discriminator = state.params["discriminator"]
        state, loss, (synthetic, metrics) = self.update_network(
            state, "generator", lambda params: self._generator_loss(params, discriminator, moved)
        )
        state, shown = self._show(state, moved, synthetic, pool_key)
        state, discriminator_loss, _ = self.update_network(
            state, "discriminator", lambda params: self._discriminator_loss(params, moved, shown)
        )
        metrics |= {"loss": loss, "discriminator_loss": discriminator_loss}
        return state.replace(step=state.step + 1), metrics

    def generate(self, model: Model, sources: Float[Array, "b h w s"]) -> Float[Array, "b h w t"]:
        """Source images to target images, both in [-1, 1]; nothing is registered."""
        return apply(self.network, model["params"]["generator"]["network"], sources)


def create(config: Any) -> RegGAN:
    """The stage described by `config[config.stage]`.

    Raises:
      UserError: a size or a number that does not fit.
    """
    check_size(config, 4)
    stage, section, size = config.stage, config[config.stage], config.data.size
    check_least(stage, section, blocks=1, pool=1)
    scales = len(section.registration)
    if not scales or size >> scales < 2:
        raise UserError(
            f"{stage}.registration has {scales} scales: use between 1 and "
            f"{size.bit_length() - 2} at {size} pixels, so that two are left at the bottom"
        )
    to_source, to_target = (
        ResNetGenerator(section.width, section.blocks, len(modalities), initial="pytorch")
        for modalities in (config.data.sources, config.data.targets)
    )
    return build(
        RegGAN,
        section,
        network=to_target,
        to_source=to_source if section.cycle else None,
        registration=RegistrationNetwork(tuple(section.registration)),
        discriminator=PatchGAN(section.width, initial="pytorch"),
        misalignment=RandomAffine(**section.misalignment),
    )
