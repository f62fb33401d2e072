"""Which modality an image is, by its contrast: whether two of a subject's look swapped.

Scanners differ more than a rule can know: gray matter may be brighter or darker than white in T1
and in T2-FLAIR. So only ranks are compared, and only what held, by a margin, in 2200 simulated
examinations with drawn contrasts (but for one of them), in 150 others and in four real ones: a
false alarm is worse than a miss. In 600 that were drawn later there was none; of their swaps,
39 % (T1c and T2-FLAIR), 52 % (T1 and T2-FLAIR) and 88 to 97 % (the others) were found. What held:

- fluid, at the surface and in the ventricles, is dark in T1 and T2-FLAIR and bright in T2;
- white matter, which is deep, is bright in T1 and dark in T2;
- T1 and T1c are more alike than either is like T2 or T2-FLAIR;
- what is brightest in T1c (enhancement, vessels) is not so in T1, hardly the reverse.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata

from cdm_jax.data.intensity import background

ENOUGH = 50_000  # voxels to measure by
FEW = 1000  # voxels of brain in common, below which nothing is said
SKEWNESS = 0.5  # by which that of T1 is above that of T2; properly it is 0.5 to 2.5 below
BRIGHTEST = 0.05  # share of voxels that T2 shows brightest: fluid
ENHANCED = 0.01  # share of voxels that T1c shows brightest: enhancement and vessels

Volume = Float[np.ndarray, "z y x"]
Values = Float[np.ndarray, "voxel"]


def swapped(volumes: Mapping[str, Volume]) -> tuple[str, str] | None:
    """The two of t1, t1c, t2 and t2f that look swapped; None where none do, or it cannot be said.

    All volumes are on one grid.
    """
    known = {name: volumes[name] for name in ("t1", "t1c", "t2", "t2f") if name in volumes}
    if len(known) < 2 or len({volume.shape for volume in known.values()}) > 1:
        return None
    brain = np.all([volume != background(volume) for volume in known.values()], axis=0)
    if np.count_nonzero(brain) < FEW:
        return None
    found = _evidence(_Samples(known, brain))
    if ("t1", "t2") in found:  # then others look swapped too
        return "t1", "t2"
    return max(found, key=lambda pair: found[pair]) if found else None


class _Samples:
    """Values of some voxels of the brain, as ranks from 0 to 1."""

    def __init__(self, volumes: Mapping[str, Volume], brain: Bool[np.ndarray, "z y x"]):
        step = max(1, round((np.count_nonzero(brain) / (4 * ENOUGH)) ** (1 / 3)))
        brain = brain[::step, ::step, ::step]
        volumes = {name: volume[::step, ::step, ::step] for name, volume in volumes.items()}
        places = np.flatnonzero(brain)
        places = places[:: 1 + len(places) // ENOUGH]
        self.values = {name: volume.ravel()[places] for name, volume in volumes.items()}
        self.ranks = {name: rankdata(v) / len(places) for name, v in self.values.items()}
        self.depth = distance_transform_edt(brain).ravel()[places]

    def has(self, *names: str) -> bool:
        """Whether all of these modalities are there."""
        return all(name in self.values for name in names)

    def alike(self, one: str, other: str) -> float:
        """Rank correlation of two modalities."""
        return _correlation(self.ranks[one], self.ranks[other])

    def deep(self, name: str) -> float:
        """Rank correlation of brightness and the distance from the brain's surface."""
        return _correlation(self.ranks[name], rankdata(self.depth))

    def among(self, name: str, brightest_in: str, share: float) -> float:
        """Mean rank in one modality of what another shows brightest."""
        chosen = self.ranks[brightest_in] >= 1 - share
        return float(self.ranks[name][chosen].mean()) if chosen.any() else 0.5


def _evidence(samples: _Samples) -> dict[tuple[str, str], float]:
    """Pairs that look swapped, with how clearly. All margins are beyond what was ever measured."""
    found = {}
    if samples.has("t1", "t2"):
        difference = samples.deep("t2") - samples.deep("t1")  # measured: -0.9 to -0.16
        skewed = _skewness(samples.values["t1"]) - _skewness(samples.values["t2"])
        if difference > 0 and skewed > SKEWNESS:
            found["t1", "t2"] = difference
    if samples.has("t1", "t2", "t2f"):
        fluid = samples.among("t1", "t2", BRIGHTEST) - samples.among("t1", "t2f", BRIGHTEST)
        if fluid > 0.2 and samples.deep("t2") - samples.deep("t2f") > 0.05:  # at most 0.01
            found["t2", "t2f"] = fluid
    if samples.has("t1", "t1c"):
        found |= _evidence_of_agent(samples, samples.alike("t1", "t1c"))
    return found


def _evidence_of_agent(samples: _Samples, alike: float) -> dict[tuple[str, str], float]:
    """The same of pairs that T1 and T1c tell, which are so much alike."""
    found = {}
    enhanced = samples.among("t1", "t1c", ENHANCED) - samples.among("t1c", "t1", ENHANCED)
    # The less alike, the less that says: where they are of different sequences, a spin echo and
    # one after an inversion, tissues decide what is brightest in each and not the contrast agent.
    if alike * enhanced > 0.1 and enhanced > 0:  # at most 0.07
        found["t1", "t1c"] = enhanced
    if samples.has("t2") and samples.deep("t1") > 0:  # so that T1 itself is one
        like = samples.alike("t1", "t2")
        if like > 0.25 and alike < 0.25:  # one of them misses that by 0.19 at least
            found["t1c", "t2"] = like - alike
    if samples.has("t2f"):
        nearer = samples.alike("t1", "t2f") - alike
        if not samples.has("t2") and nearer > 0.6:  # at most 0.49, and 0.84 in one
            found["t1c", "t2f"] = nearer
    if samples.has("t2", "t2f"):
        farther = samples.alike("t2", "t1c") - samples.alike("t2", "t2f")
        if min(nearer, farther) > 0.55:  # at most 0.49, and 0.71 in the same one
            found["t1c", "t2f"] = nearer
        nearer = samples.alike("t2f", "t1c") - alike
        farther = samples.alike("t1", "t2") - samples.alike("t2f", "t2")
        if min(nearer, farther) > 0.5:  # at most 0.42
            found["t1", "t2f"] = nearer
    return found


def _correlation(one: Values, other: Values) -> float:
    """Pearson's; 0 where one does not vary."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _skewness(values: Values) -> float:
    """Of the values, less the extreme hundredths; 0 where all are equal."""
    values = np.clip(values.astype(np.float64), *np.percentile(values, [1, 99]))
    spread = float(values.std())
    return float(np.mean((values - values.mean()) ** 3)) / spread**3 if spread > 0 else 0.0
