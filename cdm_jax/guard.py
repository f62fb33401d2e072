"""Training that meets numbers which are not finite: it stops at that step, or skips and counts it.

The device keeps a running mean of a flag beside those of the metrics, so that nothing is asked of
it between logs, validations and checkpoints, of which none uses a state that is not finite.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from clu.metrics import Average
from jaxtyping import Array, Bool

from cdm_jax.errors import UserError
from cdm_jax.methods.base import Metrics, State

FINITE = "finite_steps"  # among the running means; where it is missing, nothing is guarded
MODES = ("stop", "skip")

Totals = dict[str, Average]


def is_skipping(train: Any) -> bool:
    """Whether a stage's section `train` asks to skip what is not finite.

    Raises:
      UserError: it asks for something else.
    """
    if train.non_finite not in MODES:
        raise UserError(f"train.non_finite='{train.non_finite}': use {' or '.join(MODES)}")
    return train.non_finite == "skip"


def merged(
    before: State, after: State, totals: Totals, metrics: Metrics, *, skip: bool
) -> tuple[State, Totals]:
    """The state and running means after a step, from those before it and its metrics; pure.

    With `skip`, a step that is not finite changes nothing but the step's number.
    """
    means = {name: totals[name].merge(Average.from_model_output(v)) for name, v in metrics.items()}
    if FINITE not in totals:
        return after, means
    finite, mean = is_finite((metrics, after.params)), totals[FINITE]
    if not skip:  # only steps before the first bad one count
        counted = finite & (mean.total == mean.count)
        return after, means | {FINITE: mean.merge(Average.from_model_output(1.0 * counted))}
    kept = before.replace(step=after.step)
    state, means = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (after, means),
        (kept, {name: totals[name] for name in means}),
    )
    return state, means | {FINITE: mean.merge(Average.from_model_output(1.0 * finite))}


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all floats of a tree are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def check(
    totals: Totals,
    step: int,
    *,
    skip: bool,
    stage: str,
    subjects: Callable[[int], Sequence[str]],
    saved: int | None,
) -> Mapping[str, int]:
    """Asks the device whether the steps since the last log were finite.

    `step` is the last one in the running means; with `skip`, those that were not finite changed
    nothing. `subjects` names those whose slices a step saw, `saved` the newest checkpoint's step.

    Returns:
      What to log beside the means: how many steps were skipped, if any may be.

    Raises:
      UserError: there was a step that was not finite; or none of them was finite.
    """
    mean = jax.device_get(totals[FINITE])
    good, steps = int(mean.total), int(mean.count)
    if skip and good:
        return {"skipped": steps - good}
    if good == steps:
        return {}
    first = step - steps + good + 1
    what = f"all {steps} steps up to {step} were skipped" if skip else "nothing of it is saved"
    kept = "there is no checkpoint yet" if saved is None else f"the last good checkpoint is {saved}"
    raise UserError(
        f"{stage}: the loss, the gradient or a parameter is not finite at step {first} (slices of "
        f"{', '.join(subjects(first))}): {what}, {kept}. Lower {stage}.optimizer.learning_rate or "
        f"set {stage}.optimizer.clip, look at these subjects by `cdm-jax doctor`, or skip such "
        f"steps by --config.{stage}.train.non_finite=skip"
    )
