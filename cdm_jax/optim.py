"""Optimizers and the exponential moving average, from a stage's config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from cdm_jax.errors import UserError

SCHEDULES = ("constant", "cosine", "linear_decay")
DECAYS = ("coupled", "decoupled")


def _schedule(config: Any, num_steps: int) -> optax.Schedule:
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule not in SCHEDULES:
        raise UserError(f"unknown schedule '{config.schedule}': allowed are {', '.join(SCHEDULES)}")
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, num_steps - warmup))
    else:  # constant, then linearly to zero (Isola et al. 2017: from half of the run)
        constant = int((num_steps - warmup) * config.decay_from)
        falling = max(1, num_steps - warmup - constant)
        main = optax.linear_schedule(peak, 0.0, falling, transition_begin=constant)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def make_optimizer(config: Any, num_steps: int) -> optax.GradientTransformation:
    """Adam as the paper states it: rate 1e-4, "decay rate" 1e-5.

    Args:
      config: `learning_rate`, `betas`, `weight_decay`, `decay`, `schedule`, `decay_from`,
        `warmup_steps`, `clip`, `accumulate`.
        `decay` is "coupled" (L2 added to the gradient: what PyTorch's Adam does, the paper's
        framework) or "decoupled" (AdamW); `clip` bounds the gradient's global norm, 0 is off.
        `accumulate` above 1 makes one update of the mean gradient of that many batches.
      num_steps: length of the run, for the schedules that end with it.

    Raises:
      UserError: unknown schedule or decay.
    """
    if config.decay not in DECAYS:
        raise UserError(f"unknown decay '{config.decay}': allowed are {', '.join(DECAYS)}")
    if config.accumulate < 1:
        raise UserError(f"optimizer.accumulate is {config.accumulate}: use 1 or more")
    rate = _schedule(config, num_steps // config.accumulate)
    b1, b2 = config.betas
    if config.decay == "decoupled":
        adam = optax.adamw(rate, b1, b2, weight_decay=config.weight_decay)
    else:
        adam = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.adam(rate, b1, b2))
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), adam) if config.clip else adam
    if config.accumulate == 1:
        return clipped
    return optax.MultiSteps(clipped, config.accumulate).gradient_transformation()


def average_decay(section: Any) -> float:
    """The decay of a stage's moving average for each batch, given that for each update."""
    return section.average_decay ** (1 / section.optimizer.accumulate)


def moving_average(ema: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """Exponential moving average of parameters, with a warm-up so that early steps do not linger.

    The decay in force at step n is min(decay, (1 + n) / (10 + n)). The official code of ADM has no
    such warm-up, that of RCG has.
    """
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, ema, params)
