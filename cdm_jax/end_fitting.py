"""Trains the small network that predicts the ends of intervals around corrected means.

What it is for and how it is evaluated: `data/ends.py`. It learns from training patients, by the
pinball loss (Koenker and Bassett 1978) at the levels of the quantile head. Validation patients have
no part in it, so that they can calibrate the result.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from cdm_jax.data.ends import UNIT, Ends, Scan
from cdm_jax.methods.base import apply

# With fewer, a quantile head's own ends stay: on the phantom's validation patients their pinball
# loss was below that of a network of 24 scans, and above that of one of 48.
LEAST_SCANS = 48
WIDTHS = (32, 32)
STEPS, BATCH, RATE = 1500, 8192, 3e-3


class EndNetwork(nn.Module):
    """The network of `data.ends.Ends`, for standardized values of each voxel."""

    @nn.compact
    def __call__(self, known: Float[Array, "voxel k"]) -> Float[Array, "voxel 2"]:
        """The distances to the lower and upper end."""
        for width in WIDTHS:
            known = nn.relu(nn.Dense(width)(known))
        return UNIT * nn.softplus(nn.Dense(2)(known))


def fit_ends(scans: Sequence[Scan], levels: Sequence[float]) -> Ends | None:
    """Fits the distances to scans, each of which counts alike.

    Args:
        scans: of training patients, see `data.ends.scans_of`.
        levels: shares of the truth that are to lie below the lower and below the upper end.

    Returns:
        None of fewer than `LEAST_SCANS`.
    """
    if len(scans) < LEAST_SCANS:
        return None
    known = np.concatenate([values for values, _ in scans])
    off = np.concatenate([truth - values[:, 0] for values, truth in scans])
    weight = np.concatenate([np.full(truth.size, 1 / truth.size) for _, truth in scans])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation[deviation == 0] = 1
    distances = np.stack([-off, off], axis=-1)
    shares = (1 - levels[0], levels[1])  # of each distance that lie below its end
    told = ((known - mean) / deviation, distances, shares, weight / weight.sum())
    found = _trained(*(jnp.asarray(one, jnp.float32) for one in told))
    trained = jax.tree.map(lambda values: np.asarray(values, np.float64), found)
    kernel, bias = (trained["Dense_0"][name] for name in ("kernel", "bias"))
    kernel = kernel / deviation[:, None]  # so that the network takes the values as they are
    trained["Dense_0"] = {"kernel": kernel, "bias": bias - mean @ kernel}
    layers = (trained[f"Dense_{number}"] for number in range(len(WIDTHS) + 1))
    return Ends(
        layers=[{name: values.tolist() for name, values in layer.items()} for layer in layers],
        lowest=known.min(axis=0).tolist(),
        highest=known.max(axis=0).tolist(),
        scans=len(scans),
    )


@jax.jit
def _trained(
    known: Float[Array, "voxel k"],
    distances: Float[Array, "voxel 2"],
    shares: Float[Array, "2"],
    weight: Float[Array, " voxel"],
) -> dict[str, Any]:
    """The parameters that the pinball loss asks for; `weight` is how often a voxel is drawn."""
    network = EndNetwork()
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, STEPS))
    first, *keys = jax.random.split(jax.random.key(0), STEPS + 1)

    def loss(params: Any, chosen: Any) -> Array:
        above = distances[chosen] - apply(network, params, known[chosen])
        return jnp.maximum(shares[None] * above, (shares - 1)[None] * above).mean()

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        params, state = carry
        chosen = jax.random.choice(key, len(known), (BATCH,), p=weight)
        updates, state = optimizer.update(jax.grad(loss)(params, chosen), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = network.init(first, known[:1])["params"]
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.stack(keys))
    return dict(params)
