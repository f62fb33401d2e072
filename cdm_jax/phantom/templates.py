"""The average brain that every simulated patient is deformed from.

White matter, ventricles, deep gray matter, cerebellum and brain stem come from the MNI152 tissue
maps, the folds of the cerebrum from the surfaces of `cortex`, sinuses and choroid plexus from
lines.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float32
from scipy import ndimage, special

from cdm_jax.errors import UserError
from cdm_jax.phantom.cortex import load_cortex

# Course of the dural sinuses and sites of the choroid plexus in MNI mm, read off the template.
_SAGITTAL_SINUS = (
    *((0, 60, 31), (0, 45, 48), (0, 29, 58), (0, 12, 66), (0, -5, 70), (0, -23, 73), (0, -41, 71)),
    *((0, -58, 63), (0, -73, 52), (0, -84, 36), (0, -94, 19), (0, -95, -2)),
)
_STRAIGHT_SINUS = ((0, -42, 8), (0, -58, 6), (0, -76, 1), (0, -94, -4))
_TRANSVERSE_SINUS = ((-62, -46, -28), (-48, -74, -22), (-24, -90, -14), (0, -94, -4))
_CHOROID_PLEXUS = ((17, -33, 21), (22, -40, 17), (26, -42, 12), (28, -47, 10))

# Cerebellum, brain stem and the region of the thalamus: (center, radii) in MNI mm. The surfaces of
# the cerebrum do not describe them.
_CORE = (((0, -8, 8), (40, 48, 29)),)  # deep gray matter and ventricles
_WITHOUT_SURFACES = (
    ((0, -62, -36), (56, 36, 27)),
    ((0, -27, -34), (19, 17, 34)),
    ((0, -16, 2), (24, 24, 17)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Templates:
    """Maps of the average brain, values in [0, 1], on one 1 mm grid in MNI space (RAS).

    Attributes:
        brain: Whether a voxel lies in the brain, 0 or 1, slightly smoothed.
        gray: Share of gray matter.
        white: Share of white matter; what is neither is CSF.
        shell: Where the cerebrum's surface is near, and its small folds are.
        sinus: Share of the dural sinuses.
        choroid: Where the choroid plexus lies in the ventricles.
        origin_mm: MNI coordinates of voxel (0, 0, 0).
        white_positions_mm: MNI coordinates of the voxels that are surely cerebral white matter.
    """

    brain: Float32[np.ndarray, "x y z"]
    gray: Float32[np.ndarray, "x y z"]
    white: Float32[np.ndarray, "x y z"]
    shell: Float32[np.ndarray, "x y z"]
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


@functools.lru_cache(maxsize=2)
def load_templates(voxel_mm: float) -> Templates:
    """Makes the maps from what nilearn ships, smoothed for sampling at `voxel_mm`; kept in memory.

    Source: ICBM 2009a nonlinear symmetric (Fonov et al. 2011) and fsaverage5.

    Raises:
        UserError: If nilearn is not installed.
    """
    maps, origin = _average_brain()
    blurred = {
        name: ndimage.gaussian_filter(volume, 0.4 + 0.1 * voxel_mm, truncate=3)
        for name, volume in maps.items()
        if name in ("brain", "gray", "white")
    }
    certain = (np.argwhere(maps["certain"]) + origin).astype(np.float32)
    place = {"shape": blurred["white"].shape, "origin": origin}
    lateral = [_TRANSVERSE_SINUS, _mirror(_TRANSVERSE_SINUS)]
    sinuses = _tube([_SAGITTAL_SINUS, *lateral], 3.5, **place)
    return Templates(
        **blurred,
        shell=maps["shell"],
        sinus=np.maximum(sinuses, _tube([_STRAIGHT_SINUS], 2.0, **place)),
        choroid=_tube([_CHOROID_PLEXUS, _mirror(_CHOROID_PLEXUS)], 3.0, **place),
        origin_mm=origin,
        white_positions_mm=certain[certain[:, 2] > -20],  # Above the cerebellum and brain stem.
    )


@functools.lru_cache(maxsize=1)
def _average_brain() -> tuple[dict[str, np.ndarray], Float32[np.ndarray, "3"]]:
    """The sharp maps "brain", "gray", "white" and "certain" (white matter), and their origin."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError(
            "the phantom needs the brain maps of nilearn: run pip install cdm_jax[demo]"
        ) from error
    mask = datasets.load_mni152_brain_mask(resolution=1)
    loads = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    volumes = [
        np.asarray(image.dataobj) for image in (mask, *(load(resolution=1) for load in loads))
    ]
    (box,) = ndimage.find_objects(volumes[0].astype(np.uint8))
    box = tuple(slice(max(part.start - 3, 0), part.stop + 3) for part in box)
    brain, gray, white = (volume[box].astype(np.float32) for volume in volumes)
    origin = (mask.affine[:3, 3] + [part.start for part in box]).astype(np.float32)
    surfaces = load_cortex(brain.shape, origin)
    inner = _moved(surfaces["white"], 0.3)
    # An average of surfaces has wide sulci. Narrow ones are partly cortex and partly CSF.
    narrow = _moved(surfaces["pial"], 1.4) * (
        np.float32(0.55) + np.float32(0.45) * surfaces["pial"]
    )
    cortex = np.maximum(narrow - inner, 0)
    # Inside the white surface the maps tell ventricles and deep gray matter; squared, as people
    # differ less from each other than the maps are blurred by their differences.
    fluid = np.clip(1 - white - gray, 0, 1) ** 2
    total = fluid + white**2 + gray**2 + 1e-6
    core = inner * _ellipsoids(_CORE, brain.shape, origin)
    deep_gray, fluid = core * gray**2 / total, core * fluid / total
    mapped = _ellipsoids(_WITHOUT_SURFACES, brain.shape, origin)
    return {
        "brain": brain,
        "gray": mapped * gray + (1 - mapped) * (cortex + deep_gray),
        "white": mapped * white + (1 - mapped) * (inner - deep_gray - fluid),
        "shell": (1 - mapped) * _shell(surfaces["pial"]),
        "certain": (white > 0.7) & (inner > 0.99),
    }, origin


def _shell(pial: Float32[np.ndarray, "x y z"]) -> Float32[np.ndarray, "x y z"]:
    """1 in the outer centimeter of the cerebrum, 0 in its depth."""
    return np.clip(6 * (np.float32(0.96) - ndimage.gaussian_filter(pial, 5.0, truncate=2)), 0, 1)


def _moved(share: Float32[np.ndarray, "x y z"], outwards_mm: float) -> Float32[np.ndarray, "x y z"]:
    """A region whose border has moved outwards, and is a voxel wide."""
    blurred = ndimage.gaussian_filter(share, 1.0, truncate=3)
    level = np.float32(special.ndtr(-outwards_mm))  # of a blurred border, that far outside it
    return np.clip(np.float32(2.5) * (blurred - level) + np.float32(0.5), 0, 1)


def _ellipsoids(
    places: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
    shape: tuple[int, int, int],
    origin: Float32[np.ndarray, "3"],
) -> Float32[np.ndarray, "x y z"]:
    """1 inside any of the ellipsoids, falling softly to 0 outside."""
    found = np.zeros(shape, np.float32)
    for center, radii in places:
        axes = [
            ((np.arange(size, dtype=np.float32) + start - middle) / radius) ** 2
            for size, start, middle, radius in zip(shape, origin, center, radii, strict=True)
        ]
        distance = sum(np.meshgrid(*axes, indexing="ij", sparse=True))
        np.maximum(found, np.clip(0.5 + 5 * (1 - distance), 0, 1), out=found)
    return found


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
