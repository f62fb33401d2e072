"""Anti-aliased changes of resolution (Zhang 2019), as CUT's networks use them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _filter(
    x: Float[Array, "b h w c"], taps: tuple[int, ...], *, stride: int = 1, dilation: int = 1
) -> Float[Array, "b _ _ c"]:
    """Each channel by itself with the outer product of the taps, which sum to `dilation`."""
    line = np.array(taps) / sum(taps) * dilation
    channels = x.shape[-1]
    kernel = jnp.asarray(np.outer(line, line), x.dtype)[..., None, None]
    return jax.lax.conv_general_dilated(
        x,
        jnp.tile(kernel, (1, 1, 1, channels)),
        window_strides=(stride, stride),
        padding=((0, 0), (0, 0)),
        lhs_dilation=(dilation, dilation),
        feature_group_count=channels,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def blur_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Half the resolution: [1, 2, 1] in both directions, every other pixel, edges reflected."""
    return _filter(
        jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"), (1, 2, 1), stride=2
    )


def blur_upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Twice the resolution: zeros between pixels, then [1, 3, 3, 1] twice, edges repeated."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return _filter(padded, (1, 3, 3, 1), dilation=2)
