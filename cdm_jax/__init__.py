"""CDM: a cross-conditioned diffusion model that synthesizes missing brain-MRI modalities.

`cdm_jax.load(folder).synthesize(images)` is the Python API (`cdm_jax/api.py`), `cdm-jax --help` the
command line.
"""

import os
import typing

if typing.TYPE_CHECKING:
    from cdm_jax.api import TrainedModel

__version__ = "0.1.0"


def load(folder: str | os.PathLike[str] | None = None, checkpoint: str = "best") -> "TrainedModel":
    """Loads a trained system, or the model that ships with the package: see `cdm_jax.api.load`."""
    from cdm_jax import api  # here, so that `import cdm_jax` does not wait for JAX

    return api.load(folder, checkpoint)
