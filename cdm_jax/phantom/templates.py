"""The MNI152 tissue maps that every simulated patient is deformed from."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Templates:
    """Maps of the average brain, values in [0, 1], on one 1 mm grid in MNI space (RAS).

    Attributes:
        brain: Whether a voxel lies in the brain, 0 or 1, slightly smoothed.
        gray: Probability of gray matter.
        white: Probability of white matter.
        origin_mm: MNI coordinates of voxel (0, 0, 0).
        white_positions_mm: MNI coordinates of the voxels that are surely cerebral white matter.
    """

    brain: Float[np.ndarray, "x y z"]
    gray: Float[np.ndarray, "x y z"]
    white: Float[np.ndarray, "x y z"]
    origin_mm: Float[np.ndarray, "3"]
    white_positions_mm: Float[np.ndarray, "m 3"]

    def sample(
        self, volume: Float[np.ndarray, "x y z"], positions_mm: Float[np.ndarray, "*n 3"]
    ) -> Float[np.ndarray, "*n"]:
        """Reads one of the maps at MNI coordinates, by linear interpolation; 0 outside."""
        coordinates = np.moveaxis(positions_mm - self.origin_mm, -1, 0)
        return ndimage.map_coordinates(volume, coordinates, order=1)


@functools.lru_cache(maxsize=2)
def load_templates(voxel_mm: float) -> Templates:
    """Loads the maps packaged with nilearn, smoothed for sampling at `voxel_mm`; kept in memory.

    Source: ICBM 2009a nonlinear symmetric (Fonov et al. 2011), as shipped by nilearn.

    Raises:
        UserError: If nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError(
            "the phantom needs the brain maps of nilearn: run pip install cdm_jax[demo]"
        ) from error
    mask = datasets.load_mni152_brain_mask(resolution=1)
    gray = datasets.load_mni152_gm_template(resolution=1)
    white = datasets.load_mni152_wm_template(resolution=1)
    blur = functools.partial(ndimage.gaussian_filter, sigma=0.35 * voxel_mm)
    origin = mask.affine[:3, 3]
    certain = np.argwhere(white.get_fdata(dtype=np.float32) > 0.7) + origin
    return Templates(
        brain=blur(mask.get_fdata(dtype=np.float32)),
        gray=blur(gray.get_fdata(dtype=np.float32)),
        white=blur(white.get_fdata(dtype=np.float32)),
        origin_mm=origin,
        white_positions_mm=certain[certain[:, 2] > -20],  # Above the cerebellum and brain stem.
    )
