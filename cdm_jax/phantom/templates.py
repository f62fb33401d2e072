"""The average brain that every simulated patient is deformed from.

Tissues come from the MNI152 tissue maps, sinuses and choroid plexus from lines.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage, special

from cdm_jax.errors import UserError

# Course of the dural sinuses and sites of the choroid plexus in MNI mm, read off the template.
_SAGITTAL_SINUS = (
    *((0, 60, 31), (0, 45, 48), (0, 29, 58), (0, 12, 66), (0, -5, 70), (0, -23, 73), (0, -41, 71)),
    *((0, -58, 63), (0, -73, 52), (0, -84, 36), (0, -94, 19), (0, -95, -2)),
)
_STRAIGHT_SINUS = ((0, -42, 8), (0, -58, 6), (0, -76, 1), (0, -94, -4))
_TRANSVERSE_SINUS = ((-62, -46, -28), (-48, -74, -22), (-24, -90, -14), (0, -94, -4))
_FAR_MM = 30.0
_CHOROID_PLEXUS = ((17, -33, 21), (22, -40, 17), (26, -42, 12), (28, -47, 10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Templates:
    """Maps of the average brain, values in [0, 1], on one 1 mm grid in MNI space (RAS).

    Attributes:
        depth: mm within the border of the brain plus 3, at most 15; 0 is 3 mm or more outside.
        ventricles: mm to the lateral ventricles below `_FAR_MM`; 0 is that or farther away.
        gray: Share of gray matter.
        white: Share of white matter; what is neither is CSF.
        sinus: Share of the dural sinuses.
        choroid: Where the choroid plexus lies in the ventricles.
        origin_mm: MNI coordinates of voxel (0, 0, 0).
        white_positions_mm: MNI coordinates of the voxels that are surely cerebral white matter.
    """

    depth: Float32[np.ndarray, "x y z"]
    ventricles: Float32[np.ndarray, "x y z"]
    gray: Float32[np.ndarray, "x y z"]
    white: Float32[np.ndarray, "x y z"]
    sinus: Float32[np.ndarray, "x y z"]
    choroid: Float32[np.ndarray, "x y z"]
    origin_mm: Float32[np.ndarray, "3"]
    white_positions_mm: Float32[np.ndarray, "m 3"]

    def sample(
        self, volume: Float32[np.ndarray, "x y z"], positions_mm: Float32[np.ndarray, "*n 3"]
    ) -> Float32[np.ndarray, "*n"]:
        """Reads one of the maps at MNI coordinates, by linear interpolation; 0 outside."""
        coordinates = np.moveaxis(positions_mm - self.origin_mm, -1, 0)
        return ndimage.map_coordinates(volume, coordinates, order=1)

    def depth_mm(self, positions_mm: Float32[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n"]:
        """How far within the border of the brain a position lies, from -3 to 12 mm."""
        return self.sample(self.depth, positions_mm) - 3

    def ventricle_mm(self, positions_mm: Float32[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n"]:
        """How far a position is from the lateral ventricles, up to `_FAR_MM`."""
        return np.float32(_FAR_MM) - self.sample(self.ventricles, positions_mm)


@functools.lru_cache(maxsize=2)
def load_templates(voxel_mm: float) -> Templates:
    """Makes the maps from what nilearn ships, smoothed for sampling at `voxel_mm`; kept in memory.

    Source: ICBM 2009a nonlinear symmetric (Fonov et al. 2011).

    Raises:
        UserError: If nilearn is not installed.
    """
    maps, origin = _average_brain()
    blurred = {
        name: ndimage.gaussian_filter(maps[name], 0.1 * voxel_mm, truncate=3)
        for name in ("white", "gray")
    }
    # Narrow clefts that the mask leaves out would look like holes where the border is cut.
    brain = ndimage.binary_closing(maps["brain"] > 0, iterations=3)
    inside, outside = map(ndimage.distance_transform_edt, (brain, ~brain))
    signed = np.where(brain, inside - 0.5, 0.5 - outside)
    certain = (np.argwhere(maps["white"] > 0.9) + origin).astype(np.float32)
    place = {"shape": blurred["white"].shape, "origin": origin}
    large = [_SAGITTAL_SINUS, _TRANSVERSE_SINUS, _mirror(_TRANSVERSE_SINUS)]
    return Templates(
        **blurred,
        depth=np.clip(signed + 3, 0, 15).astype(np.float32),
        ventricles=_near_ventricles(1 - maps["white"] - maps["gray"], signed),
        sinus=np.maximum(_tube(large, 3.5, **place), _tube([_STRAIGHT_SINUS], 2.0, **place)),
        choroid=_tube([_CHOROID_PLEXUS, _mirror(_CHOROID_PLEXUS)], 3.0, **place),
        origin_mm=origin,
        white_positions_mm=certain[certain[:, 2] > -20],  # Above the cerebellum and brain stem.
    )


def _near_ventricles(
    fluid: Float32[np.ndarray, "x y z"], depth: Float[np.ndarray, "x y z"]
) -> Float32[np.ndarray, "x y z"]:
    """`Templates.ventricles`: the two largest bodies of CSF deep in the brain, off the midline."""
    bodies, count = ndimage.label((fluid > 0.6) & (depth > 18))
    sizes = ndimage.sum_labels(bodies > 0, bodies, range(1, count + 1))
    middle = np.unique(bodies[len(bodies) // 2])
    sizes[middle[middle > 0] - 1] = 0
    lateral = np.isin(bodies, 1 + np.argsort(sizes)[-2:])
    distance = ndimage.distance_transform_edt(~lateral)
    return np.clip(_FAR_MM - distance, 0, _FAR_MM).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _average_brain() -> tuple[dict[str, np.ndarray], Float32[np.ndarray, "3"]]:
    """The maps "brain", "gray" and "white" as they are stored, and their origin."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError(
            "the phantom needs the brain maps of nilearn: run pip install cdm_jax[demo]"
        ) from error
    images = {
        "brain": datasets.load_mni152_brain_mask(resolution=1),
        "gray": datasets.load_mni152_gm_template(resolution=1),
        "white": datasets.load_mni152_wm_template(resolution=1),
    }
    maps = {name: np.asarray(image.dataobj) for name, image in images.items()}
    (box,) = ndimage.find_objects(maps["brain"].astype(np.uint8))
    box = tuple(slice(max(part.start - 4, 0), part.stop + 4) for part in box)
    corner = images["brain"].affine[:3, 3] + [part.start for part in box]
    cut = {name: volume[box].astype(np.float32) for name, volume in maps.items()}
    return cut, corner.astype(np.float32)


def _tube(
    lines: list[tuple[tuple[int, ...], ...]],
    radius_mm: float,
    shape: tuple[int, int, int],
    origin: Float32[np.ndarray, "3"],
) -> Float32[np.ndarray, "x y z"]:
    """1 within `radius_mm` of any of the lines, falling softly to 0 outside."""
    squared = np.full(shape, (4 * radius_mm) ** 2, np.float32)
    reach = int(2 * radius_mm) + 2
    for line in lines:
        corners = np.array(line, np.float32) - origin
        steps = np.linspace(0, len(corners) - 1, 20 * len(corners))
        points = np.stack([np.interp(steps, range(len(corners)), c) for c in corners.T], axis=-1)
        for point in points:
            low = np.maximum(np.rint(point).astype(int) - reach, 0)
            near = squared[tuple(slice(start, start + 2 * reach + 1) for start in low)]
            axes = [
                (np.arange(size) + start - middle) ** 2
                for size, start, middle in zip(near.shape, low, point, strict=True)
            ]
            np.minimum(near, sum(np.meshgrid(*axes, indexing="ij", sparse=True)), out=near)
    within = squared < (2 * radius_mm + 2) ** 2
    found = np.zeros(shape, np.float32)
    found[within] = special.expit((radius_mm - np.sqrt(squared[within])) / 0.8)
    return found


def _mirror(line: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((-x, y, z) for x, y, z in line)
