"""A small report without a run: made-up records, and a brain that is a ball with a bright spot."""

import gzip

import nibabel as nib
import numpy as np

from cdm_jax.report import gallery, page, viewer
from tests.report.test_tables import cohort

SHAPE = (12, 20, 16)  # z, y, x
FOCUS = (7, 6, 4)
ROWS = {"copy": 12.0, "resampled_truth": 90.0} | {
    "cunet": 23.5,
    "cunet/mean_of_4": 24.0,
    "cunet/oracle": 26.0,
    "m1": 23.0,
}


def records(patients=5):
    """Records of two systems; the first subject's tumor is where a copy errs most."""
    made = cohort(ROWS, patients=patients, checkpoint={"cunet": "c", "m1": "m"})
    for place, record in enumerate(made):
        for scores in record["rows"].values():
            for target in scores["volume"].values():
                region = {"psnr": 8.0, "ssim": 0.4, "mae": 0.3 - 0.01 * place}
                target["regions"] = {"enhancing_tumor": region}
    return made


def brain():
    z, y, x = np.indices(SHAPE)
    middle, radii = [(n - 1) / 2 for n in SHAPE], [n / 2 - 1.5 for n in SHAPE]
    distance = sum(((i - m) / r) ** 2 for i, m, r in zip((z, y, x), middle, radii, strict=True))
    return distance <= 1


def nifti(values, dtype):
    """A volume in the package's axes as the bytes of a compressed file: LPS, 3 mm."""
    affine = np.diag([-3.0, -3.0, 3.0, 1.0])
    return gzip.compress(nib.Nifti1Image(values.T.astype(dtype), affine).to_bytes())


def _image(name, role, modality, values, **more):
    files = {"image": nifti(np.rint(values * 255), np.uint8)} | more.pop("nifti", {})
    return gallery.Image(
        name=name, role=role, modality=modality, values=values, nifti=files, **more
    )


def case(subject, systems=("cunet", "m1"), calibrated=("cunet",)):
    """A case whose truths have a bright spot at the focus that no system shows."""
    inside = brain()
    plain = (0.5 * inside).astype(np.float32)
    truth = plain.copy()
    truth[FOCUS] = 1.0
    deviation = (0.05 * inside).astype(np.float32)
    error = viewer.overlay_values((plain - truth) * inside, gallery.ERROR_LIMIT)
    spread = viewer.overlay_values(deviation, gallery.DEVIATION_LIMIT)
    wide = viewer.overlay_values(5 * deviation, gallery.INTERVAL_LIMIT)
    images = [_image(f"input-{name}", "input", name, plain) for name in ("t1", "t2")]
    for target in ("t1c", "t2f"):
        images.append(_image(f"truth-{target}", "truth", target, truth))
        for system in systems:
            stochastic = system == "cunet"
            files = {"error": nifti(error, np.int16)}
            if stochastic:
                files["deviation"] = nifti(spread, np.int16)
            if system in calibrated:
                files["interval"] = nifti(wide, np.int16)
            images.append(
                _image(
                    f"{system}-{target}",
                    "synthesis",
                    target,
                    plain,
                    system=system,
                    note="PSNR 24.00",
                    deviation=deviation if stochastic else None,
                    interval=5 * deviation if system in calibrated else None,
                    nifti=files,
                )
            )
    return gallery.Case(
        subject=subject,
        reason="the best & worst",
        images=images,
        brain=inside,
        voxel_size=(3.0, 3.0, 3.0),
        focus=FOCUS,
    )


def report(**changes):
    lines = [{"step": n, "loss": 1 / n, "validation/psnr_t1c": 20.0 + n} for n in range(1, 5)]
    values = {
        "title": "A < B",
        "notice": "Not for clinical use.",
        "facts": {"Data": "made up"},
        "records": records(),
        "convention": "volume",
        "reference": "m1",
        "stages": [page.Stage(name="cunet", facts={"Steps": "4"}, lines=lines)],
        "selection": "Two of five.",
    }
    return page.Report(**values | changes)


def save(folder, subjects=("P0-000", "P3-000"), **changes):
    return page.save_report(folder, report(**changes), (case(name) for name in subjects))
