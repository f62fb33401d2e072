"""C-UNet, the cross-conditioned UNet (section II-B, Fig. 3b), and its ablation M1.

A UNet from source to target modalities whose encoder takes the representation y of the targets at
every scale through a Condition Embedding. Without the condition it is the plain UNet M1. Either may
have a head for the ends of a predictive interval beside its mean (not in the paper).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Num

from cdm_jax import draws, parallel
from cdm_jax.errors import UserError
from cdm_jax.methods.base import (
    Batch,
    Keys,
    Metrics,
    Model,
    Prediction,
    Samples,
    Sources,
    State,
    Translate,
    Translator,
    apply,
    gradient_step,
    in_brain,
    new_state,
    to_unit_range,
    weight_of,
)
from cdm_jax.methods.cdm.cunet_network import CUNet
from cdm_jax.methods.cdm.mdn import MDN
from cdm_jax.methods.cdm.mdn import create as create_mdn
from cdm_jax.methods.settings import build, check_choice, check_quantiles, check_removed
from cdm_jax.optim import make_optimizer
from cdm_jax.tasks import given_in, task_of, with_pattern

OPTIONS = {
    "encoder": ("hybrid", "printed"),
    "condition": ("on", "none", "keep_1x1"),
    "training_y": ("noised", "encoder", "sampled"),
    "loss": ("mse", "l2norm"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossConditioned(Translator):
    """C-UNet as a training stage, and CDM as a translator.

    Attributes:
      network: the UNet.
      mdn: the MDN stage that makes representations, or None without a condition.
      mdn_stage: its name in the config, such as "mdn".
      optimizer: of all parameters.
      average_decay: decay of the moving average of parameters, 0 for none.
      loss: "mse" (the text) or "l2norm" (the unsquared norm that Eq. 4 prints, of each slice's
        targets).
      training_y: what C-UNet is given in training: the "encoder"'s y of the true targets (which
        no patient with missing targets has), the MDN's "sampled" y, or "noised": the encoder's y
        with noise of the error that MDN makes on patients it never saw.
      null_y: whether synthesis takes the learned null instead of a y that MDN samples, which makes
        a plain UNet of it.
      error_scale: factor on that error. The noise is drawn apart from the encoder's y, so that a
        noised y tells of the true targets; a sample, given the sources, tells nothing of them.
        Above 1 C-UNet trusts y less than the size of MDN's error would allow.
      noise: deviation of white noise added to the encoder's y (not where it is "noised" already).
      condition_dropout: probability that a learned null replaces y.
      num_sources: source modalities; the neighbors' channels, if any, come behind the slice's own.
      any_to_any: whether any modality may be missing; all are then synthesized.
    """

    network: CUNet
    mdn: MDN | None
    mdn_stage: str
    optimizer: optax.GradientTransformation
    average_decay: float
    loss: str
    training_y: str
    error_scale: float
    noise: float
    condition_dropout: float
    num_sources: int
    any_to_any: bool = False
    null_y: bool = False

    @property
    def depends_on(self) -> tuple[str, ...]:
        """MRM and MDN, or nothing without the condition."""
        return ("mrm", self.mdn_stage) if self.mdn else ()

    @property
    def stochastic(self) -> bool:
        """Whether two keys give two results."""
        return self.mdn is not None and not self.null_y

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Levels of the two ends that `predict` gives beside the mean, where it gives them."""
        return self.network.quantiles

    def own(self, sources: Num[Any, "b h w s"]) -> Num[Any, "b h w _"]:
        """The slices' own sources, without those of neighbors."""
        return sources[..., : self.num_sources]

    def init(self, key: Key[Array, ""], batch: Batch, frozen: Model) -> State:
        """Fresh parameters beside the frozen MRM and MDN."""
        params, y = {}, None
        if self.mdn:
            width = self.mdn.representation.representation_width
            params["null"] = jnp.zeros(width)
            y = jnp.zeros((batch["source"].shape[0], width))
        params["network"] = self.network.init(key, self._inputs(batch["source"]), y)["params"]
        return new_state(params, self.optimizer, averaged=bool(self.average_decay), frozen=frozen)

    def _training_y(
        self, frozen: Model, params: Any, batch: Batch, key: Key[Array, ""]
    ) -> Float[Array, "b d"] | None:
        """The representation of one training batch, by the chosen recipe."""
        if self.mdn is None:
            return None
        sample_key, _, noise_key, null_key = jax.random.split(key, 4)
        if self.training_y == "sampled":
            sampled = self.mdn.sample(frozen[self.mdn_stage], batch["source"], sample_key)
            y = jax.lax.stop_gradient(sampled)
        else:
            truth = self.mdn.representation.represent(frozen["mrm"], batch)
            noise = draws.normal(noise_key, truth.shape)
            y = truth + self.noise * noise
            if self.training_y == "noised":
                factor = frozen[self.mdn_stage]["statistics"]["error_factor"]
                y = truth + self.error_scale * noise @ factor.T
        null = functools.partial(jax.random.bernoulli, p=self.condition_dropout)
        dropped = draws.draw(null_key, (len(y), 1), null)
        return jnp.where(dropped, params["null"][None], y)

    def update(self, state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        """One step of regression of the targets (Eq. 4), and of the head's ends in the brain.

        With a head, the loss and the norm of the gradient that are logged are those of both.
        """
        truth, weight = batch["target"], batch.get("weight")

        def loss(params: Any) -> tuple[Array, Metrics]:
            """Of the parameters alone, with its parts."""
            y = self._training_y(state.frozen, params, batch, key)
            painted = self._paint({"params": params}, batch["source"], y, bool(self.quantiles))
            if not self.quantiles:
                return synthesis_loss(painted, truth, self.loss, weight), {}
            # The background, where every end is the mean, would outweigh what there is to learn.
            counted = in_brain(self.own(batch["source"])) * weight_of(batch)[:, None, None]
            pinball = pinball_loss(painted[1:], truth, self.quantiles, counted)
            return synthesis_loss(painted[0], truth, self.loss, weight) + pinball, {}

        return gradient_step(state, loss, self.optimizer, self.average_decay)

    def _paint(
        self, model: Model, sources: Array, y: Array | None, with_ends: bool = False
    ) -> Float[Array, "*three b h w t"]:
        """Target images; with ends the mean, the lower and the upper ones."""
        params = model["params"]["network"]
        return apply(self.network, params, self._inputs(sources), y, with_ends)

    def _inputs(self, sources: Array) -> Array:
        """What the network sees of the sources: in an any-to-any task also which are given."""
        return with_pattern(sources, given_in(self.own(sources))) if self.any_to_any else sources

    def translate(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Samples:
        """Sources to targets, once for each of `num_samples` sampled representations.

        Without a condition, or with the learned null, there is one translation (k = 1).
        """
        return self._samples(model, sources, key, num_samples)

    def predict(self, model: Model, sources: Sources, key: Keys, num_samples: int) -> Prediction:
        """As the base class says; each sampled representation has ends of its own."""
        if not self.quantiles:
            return super().predict(model, sources, key, num_samples)
        drawn = to_unit_range(self._samples(model, sources, key, num_samples, with_ends=True))
        return {name: drawn[:, place] for place, name in enumerate(("mean", "lower", "upper"))}

    def _samples(
        self, model: Model, sources: Array, key: Keys, num_samples: int, with_ends: bool = False
    ) -> Float[Array, "k *three b h w t"]:
        if self.mdn is None:
            return self._paint(model, sources, None, with_ends)[None]
        if self.null_y:
            return self._paint(model, sources, _null(model, len(sources)), with_ends)[None]
        y = self.mdn.samples(model["frozen"][self.mdn_stage], sources, key, num_samples)
        return jax.lax.map(lambda one: self._paint(model, sources, one, with_ends), y)

    def audits(self, num_samples: int) -> dict[str, Translate]:
        """The condition audit: what C-UNet does when it is given another representation.

        `mean_representation`: the mean of the MDN's samples; `oracle`: the encoder's, of the true
        targets (a leak, an upper bound); `null`: the learned null; `mean`: the training mean (zero
        for a standardized y); `shuffled`: sampled for the sources of another patient, which the
        batch holds under "other".
        """
        if self.mdn is None:
            return {}
        mdn, stage = self.mdn, self.mdn_stage

        def given(represent: Callable[[Model, Batch, Array], Array]) -> Translate:
            return lambda model, batch, key: self._paint(
                model, batch["source"], represent(model, batch, key)
            )

        def sampled_mean(model: Model, batch: Batch, key: Array) -> Array:
            drawn = mdn.samples(model["frozen"][stage], batch["source"], key, num_samples)
            return drawn.mean(axis=0)

        representations = {
            "mean_representation": sampled_mean,
            "oracle": lambda model, batch, _: mdn.representation.represent(
                model["frozen"]["mrm"], batch
            ),
            "null": lambda model, batch, _: _null(model, len(batch["source"])),
            "mean": lambda model, batch, _: 0 * _null(model, len(batch["source"])),
            "shuffled": lambda model, batch, key: mdn.sample(
                model["frozen"][stage], batch["other"], key
            ),
        }
        return {name: given(represent) for name, represent in representations.items()}

    def facts(self) -> dict[str, str]:
        """How representations are sampled, if they are, and which quantiles are given."""
        facts = {"sampler": str(self.mdn.sampler)} if self.mdn and not self.null_y else {}
        if self.quantiles:
            facts["quantiles"] = ", ".join(f"{level:g}" for level in self.quantiles)
        return facts

    def limits(self) -> list[str]:
        """That an audit is no result."""
        if not self.mdn:
            return []
        return [
            "The row `oracle` is a leak: it is given an encoding of the true targets, which no "
            "patient who lacks them has. The honest row is the one with the system's bare name.",
            *super().limits(),
        ]


def _null(model: Model, number: int) -> Float[Array, "b d"]:
    value = model["params"]["null"]
    return jnp.broadcast_to(value[None], (number, len(value)))


def synthesis_loss(
    synthesis: Float[Array, "b h w t"],
    truth: Float[Array, "b h w t"],
    kind: str,
    weight: Float[Array, "b t"] | None = None,
) -> Float[Array, ""]:
    """The distance of a synthesis to the truth (Eq. 4), of a kind in `OPTIONS["loss"]`.

    `weight` is how much each target of each slice counts; all alike where it is None.
    """
    difference = synthesis - truth
    if weight is not None:  # as if the batch were of what counts alone
        total = parallel.mean(weight.sum()) / weight.size
        difference *= jnp.sqrt(weight / jnp.maximum(total, 1e-6))[:, None, None]
    if kind == "l2norm":
        return jnp.mean(jnp.sqrt(jnp.sum(difference**2, axis=(1, 2, 3)) + 1e-12))
    return jnp.mean(difference**2)


def pinball_loss(
    ends: Float[Array, "q b h w t"],
    truth: Float[Array, "b h w t"],
    quantiles: tuple[float, ...],
    weight: Float[Array, "b h w t"],
) -> Float[Array, ""]:
    """The loss that the quantiles of the truth minimize (Koenker and Bassett 1978), a level an end.

    An end e of level q costs q (truth - e) where the truth is above it, and (1 - q) (e - truth)
    where it is below. `weight` is how much each pixel counts: of what counts it is the mean.
    """
    above = truth[None] - ends
    levels = jnp.array(quantiles)[:, None, None, None, None]
    costs = jnp.maximum(levels * above, (levels - 1) * above) * weight[None]
    total = parallel.mean(weight.sum()) * len(quantiles)
    return costs.sum() / jnp.maximum(total, 1e-6)


def check_unet(config: Any) -> None:
    """Refuses a size that cannot be halved often enough, or groups that do not divide the features.

    Raises:
      UserError: as said.
    """
    section = config[config.stage]
    halvings = len(section.features) - 2
    if halvings < 1:
        raise UserError(
            f"{config.stage}.features {tuple(section.features)} are too few: give the channels of "
            "two scales or more, then those of the last decoder stage"
        )
    if config.data.size % 2**halvings:
        raise UserError(
            f"data.size {config.data.size} cannot be halved {halvings} times: use a multiple of "
            f"{2**halvings} or fewer {config.stage}.features"
        )
    if section.groups < 1 or any(channels % section.groups for channels in section.features):
        raise UserError(
            f"{config.stage}.groups {section.groups} do not divide all of {config.stage}.features "
            f"{tuple(section.features)}: use a common divisor of them"
        )


def create(config: Any) -> CrossConditioned:
    """The stage described by `config[config.stage]`: a C-UNet or one of its ablations.

    Raises:
      UserError: an option that does not exist or is gone, a size that cannot be halved often
        enough, or groups that do not divide the features.
    """
    section = config[config.stage]
    for name, allowed in OPTIONS.items():
        check_choice(config.stage, section, name, allowed)
    if section.get("null_y") and not section.condition_dropout:
        raise UserError(
            f"{config.stage}.null_y takes a null that was trained: raise "
            f"--config.{config.stage}.condition_dropout, for example to 0.1"
        )
    check_removed(config.stage, section, condition_decoder=False, fusion="add")
    check_quantiles(config.stage, section)
    check_unet(config)
    network = build(CUNet, section, num_targets=len(config.data.targets))
    return build(
        CrossConditioned,
        section,
        network=network,
        optimizer=make_optimizer(section.optimizer, section.train.num_steps),
        mdn=create_mdn(config, section.mdn_stage) if section.condition == "on" else None,
        num_sources=len(config.data.sources),
        any_to_any=task_of(config.data).is_any,
    )
