"""Stored batches of noise, for programs whose input does not matter."""

import numpy as np
from ml_collections import ConfigDict

from cdm_jax.data.pipeline import stored_sources
from cdm_jax.shapes import stored_shapes


def random_batch(config: ConfigDict, number: int) -> dict[str, np.ndarray]:
    """A stored training batch, as the input pipeline gives it."""
    draws, shapes = np.random.default_rng(0), stored_shapes(config, number)
    images = {
        name: draws.integers(1, 2**16, shapes[name].shape, np.uint16)
        for name in ("images", "neighbors")
        if name in shapes
    }
    return images | {"mirrored": draws.random(number) < 0.5}


def random_sources(config: ConfigDict, number: int) -> np.ndarray:
    """Stored sources of such a batch, as a system takes them."""
    return stored_sources(random_batch(config, number), len(config.data.sources))
