"""The training input beside MONAI's cached loader, on the same patients."""

from collections.abc import Iterator

from benchmarks.parts.rows import Row
from benchmarks.studies.contest import Contender, Setting, beside, contest
from benchmarks.studies.patients import simulate

BATCH, SIZE = 12, 256
SMOKE_BATCH, SMOKE_SIZE = 2, 32
PATIENTS = "CacheDataset of patients, 0 processes"
WAYS = (
    ("cdm_jax", "stored slices, 4 threads", "loaders_side.stored", {"threads": 4}),
    ("cdm_jax", "floats on the device, 4 threads", "loaders_side.floats", {"threads": 4}),
    ("MONAI", "CacheDataset of slices, 0 processes", "monai_side.slices", {"processes": 0}),
    ("MONAI", "CacheDataset of slices, 2 processes", "monai_side.slices", {"processes": 2}),
    ("MONAI", PATIENTS, "monai_side.patients", {"processes": 0}),
    ("MONAI", "CacheDataset of patients, 2 processes", "monai_side.patients", {"processes": 2}),
)


def loading(setting: Setting) -> Iterator[Row]:
    """Slices a second, shuffled and mirrored, from a warm cache."""
    folder = simulate(setting.workdir, setting.smoke)
    batch, size = (SMOKE_BATCH, SMOKE_SIZE) if setting.smoke else (BATCH, SIZE)
    common = {"folder": str(folder), "batch": batch, "size": size, "smoke": setting.smoke}
    contenders = [
        Contender(
            names={"library": library, "loader": loader},
            side=side,
            given=common | given | _cache(library, setting),
            python=setting.other_python if library == "MONAI" else Contender.python,
        )
        for library, loader, side, given in (WAYS[:3] if setting.smoke else WAYS)
    ]
    for row in beside(contest(contenders, setting.turns), {"loader": PATIENTS}):
        if "milliseconds" in row:
            row |= {"slices_per_second": 1e3 * batch / row["milliseconds"]}
        yield row | {"batch": batch, "size": size}


def _cache(library: str, setting: Setting) -> Row:
    return {"cache": str(setting.workdir / "cache")} if library == "cdm_jax" else {}
