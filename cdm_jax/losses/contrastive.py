"""What contrastive translation asks: that a patch can be told by the one it was made from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def patch_nce(
    queries: Float[Array, "b n f"], keys: Float[Array, "b n f"], temperature: float
) -> Float[Array, ""]:
    """Cross-entropy of finding each query's own key among all of its image (Park et al. 2020).

    Args:
      queries: codes of places of synthesized images, of unit length.
      keys: codes of the same places of the inputs, of unit length; no gradient reaches them.
      temperature: divides the similarities.
    """
    similarity = jnp.einsum("bnf,bmf->bnm", queries, jax.lax.stop_gradient(keys)) / temperature
    own = jnp.diagonal(similarity, axis1=1, axis2=2)
    return jnp.mean(jax.nn.logsumexp(similarity, axis=2) - own)
