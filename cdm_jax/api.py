"""The Python API: a trained system loaded, and patients' images translated in memory.

  import cdm_jax

  model = cdm_jax.load("runs/brats")  # or load(): the model that ships with the package
  result = model.synthesize({"t1": "patient/t1.nii.gz", "t2": "patient/t2.nii.gz"}, samples=8)
  for modality, image in result.items():
      image.to_filename(f"{modality}.nii.gz")
      result.deviation[modality].to_filename(f"{modality}-deviation.nii.gz")

The command `synthesize` calls it and writes what it returns.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from cdm_jax import checkpoint, inference, shipped
from cdm_jax.data import ranges
from cdm_jax.data.formats import Image, PathLike, check_file
from cdm_jax.data.grids import oriented_like, read_on_one_grid
from cdm_jax.data.native import NativeImages, scale_volumes
from cdm_jax.data.nifti import as_image, image_like, read_labels, read_voxel_ml, read_voxel_size
from cdm_jax.data.prepare import Prepared, PrepareSettings, prepare_images
from cdm_jax.data.subjects import subject_of
from cdm_jax.enhancement import find_enhancement
from cdm_jax.errors import UserError, about, nearest
from cdm_jax.intervals import Masks, find_intervals, within
from cdm_jax.methods import base
from cdm_jax.metrics.enhancement import POSTCONTRAST
from cdm_jax.metrics.regions import region_masks
from cdm_jax.outputs import ENDINGS, MARK
from cdm_jax.sampling import SubjectSampler, different_samples, predicted

MAIN_STAGE = "cunet"  # whose images are meant where a run has those of several systems
NO_NAME = "subject"  # of a patient whose images come from no file
SAMPLED = ("mean", "deviation")  # predicted ends as trained are no result: they are not calibrated
Source = PathLike | Image | tuple[ArrayLike, ArrayLike]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Synthesis(Mapping[str, Image]):
    """Synthetic images of one patient: a mapping from target modality to nibabel image.

    All are float32 on the grid of the first source that states an orientation (or that was asked
    for): its shape, axis order, affine, qform, sform and their codes to the bit. Values are the
    network's [0, 1], on the scale that the whole volume tells (`data/volume_scale.py`), times the
    system's reference scale of the modality; 0 outside the brain of the sources.

    Attributes:
      subject: name that the draws depended on.
      mean: over the samples; what the mapping itself gives.
      deviation: standard deviation of the samples; empty where there is one sample.
      lower: lower ends of the intervals; empty where none are calibrated for so many samples
        (`cdm-jax calibrate`). Of a system that predicts them one sample is enough.
      upper: upper ends.
      enhancement: of T1c the calibrated probability, 0 to 1, that a voxel enhances; empty where
        none is calibrated, which takes a system that predicts ends and has T1 among its sources.
      enhancing_ml: of T1c an upper bound on the volume of enhancing tumor in ml, where it is
        calibrated; `model.enhancement(samples)` says what it promises.
      reference: the source whose grid it is.
      native: the sources on that grid, as the intensity rule scales them.
      resampled: sources that were resampled onto it.
      notes: what the user should know of the sources, one line each.
    """

    subject: str
    mean: Mapping[str, Image]
    deviation: Mapping[str, Image]
    lower: Mapping[str, Image]
    upper: Mapping[str, Image]
    enhancement: Mapping[str, Image]
    enhancing_ml: Mapping[str, float]
    reference: PathLike | Image
    native: NativeImages
    resampled: tuple[str, ...]
    notes: tuple[str, ...]

    def __getitem__(self, target: str) -> Image:
        return self.mean[target]

    def __iter__(self) -> Iterator[str]:
        return iter(self.mean)

    def __len__(self) -> int:
        return len(self.mean)


class TrainedModel:
    """A trained system; `load` makes it. Programs are compiled once for each number of samples.

    Attributes:
      folder: of the system, such as `runs/brats/cunet`.
      system: its networks, and the config, split and scales of its training.
      sources: modalities that it needs; any of them, where it takes what there is.
      targets: modalities that it makes; the same ones, where it makes what is missing.
      any_to_any: whether it takes any modalities and makes what is missing.
      intervals: from a number of samples to the intervals that are calibrated for it, or None.
      enhancement: the same of the map of the probability that a voxel enhances.
    """

    def __init__(self, folder: pathlib.Path, system: inference.System):
        self.folder, self.system = folder, system
        data = system.provenance.config.data
        self.sources, self.targets = tuple(data.sources), tuple(data.targets)
        self.any_to_any = inference.is_any_to_any(system)
        self._patterns: dict[tuple[tuple[str, ...], tuple[str, ...]], TrainedModel] = {}
        self._sampler = functools.cache(functools.partial(SubjectSampler, system))
        find = functools.partial(find_intervals, folder, system)
        self.intervals = functools.cache(find)
        self.enhancement = functools.cache(functools.partial(find_enhancement, folder, system))

    def for_pattern(
        self, sources: Iterable[str], targets: Iterable[str] | None = None
    ) -> "TrainedModel":
        """The system, which takes any modalities, for these alone; by default it makes all others.

        Raises:
          UserError: nothing is given or left to make, or an unknown modality.
        """
        sources = tuple(sources)
        if targets is None:
            targets = [name for name in self.targets if name not in sources]
        system = inference.restricted(self.system, sources, tuple(targets))
        made = TrainedModel(self.folder, system)
        return self._patterns.setdefault((made.sources, made.targets), made)

    def synthesize(
        self,
        images: Mapping[str, Source],
        *,
        samples: int = 1,
        subject: str | None = None,
        resample_to: str | None = None,
        make: Iterable[str] | None = None,
        segmentation: PathLike | None = None,
    ) -> Synthesis:
        """Makes the target modalities of a patient.

        Args:
          images: each source modality's image: the path of a NIfTI file, a nibabel image, or an
            array with its affine. Skull-stripped, on one grid. Of a system that takes any
            modalities those that there are, and it makes the others.
          samples: of which mean and deviation are returned; a deterministic system has one.
          subject: name on which the draws depend, so that a patient's are the same in every cohort
            and order. By default the name under which the command `synthesize` finds the first
            source's file, which is in its own or its folder's name; "subject" for what comes from
            no file.
          resample_to: the source onto whose grid the others are resampled; by default they have to
            lie on one grid.
          make: the modalities to make, where not all of them are wanted.
          segmentation: of the tumor, with BraTS's labels, on the grid of the images. Predicted ends
            are then widened as calibrated for healthy brain and for the whole tumor; nothing else
            depends on it.

        Raises:
          UserError: an image is missing, unknown, unreadable or on another grid; or nothing is to
            be made.
        """
        if self.any_to_any:
            model = self.for_pattern(images, make)
            return model.synthesize(
                images,
                samples=samples,
                subject=subject,
                resample_to=resample_to,
                segmentation=segmentation,
            )
        wanted = self._wanted(make)
        if samples < 1:
            raise UserError(f"samples={samples} is too few: give 1 or more")
        samples = different_samples(self.system, samples)
        sources = self._sources(images)
        subject = subject or self._subject_of(sources[self.sources[0]])
        grid = read_on_one_grid(sources, resample_to=resample_to)
        size = read_voxel_size(grid.reference)
        native = scale_volumes(grid.volumes, self.sources, subject, size, sources)
        prepared = self._prepare(native, subject)
        regions = _regions(segmentation, grid.reference, native)
        return Synthesis(
            subject=subject,
            **self._draw(native, prepared, samples, wanted, grid.reference, regions),
            reference=grid.reference,
            native=native,
            resampled=grid.resampled,
            notes=grid.notes + native.notes + self._unlike(prepared, size),
        )

    def _wanted(self, make: Iterable[str] | None) -> tuple[str, ...]:
        wanted = tuple(self.targets if make is None else make)
        if unknown := [name for name in wanted if name not in self.targets]:
            raise UserError(
                f"{', '.join(unknown)} is not made by this model: it makes "
                f"{', '.join(self.targets)}"
            )
        return wanted

    def _prepare(self, native: NativeImages, subject: str) -> Prepared:
        data = self.system.provenance.config.data
        settings = PrepareSettings(
            sources=self.sources,
            targets=self.targets,
            size=data.size,
            minimum_brain=data.minimum_brain,
        )
        return prepare_images(native, settings, subject, subject)

    def _unlike(self, prepared: Prepared, size: tuple[float, float, float]) -> tuple[str, ...]:
        """What of a patient lies outside the ranges of the training patients; voxel size in mm."""
        shown = prepared.slices[ranges.positions(prepared)]
        found = ranges.statistics(prepared, shown, size)
        sentence = ranges.outside(found, self.system.provenance.ranges)
        return (sentence,) if sentence else ()

    def _draw(
        self,
        native: NativeImages,
        prepared: Prepared,
        samples: int,
        wanted: Sequence[str],
        reference: PathLike | Image,
        regions: Masks | None,
    ) -> dict[str, dict[str, Any]]:
        """The images of a `Synthesis`, and its volumes, by kind and target."""
        drawn = self._sampler(samples).draw(prepared, prepared.slices, native.brain)
        intervals = self.intervals(samples)
        found: dict[str, dict[str, Any]] = {kind: {} for kind in (*ENDINGS, "enhancing_ml")}
        for target in wanted:
            volumes = {name: drawn[target][name] for name in SAMPLED if name in drawn[target]}
            if intervals is not None:
                volumes |= within(drawn[target], native.brain, intervals, target, regions)
            for name, volume in volumes.items():
                found[name][target] = self._image(volume, target, reference)
        shown = self.enhancement(samples)
        if shown is not None and POSTCONTRAST in wanted:
            made = predicted(drawn[POSTCONTRAST])
            if told := shown.of(made, native, read_voxel_ml(reference)):
                chances, most = told
                about_it = f"{MARK} {POSTCONTRAST} enhancement cdm_jax"
                image = image_like(chances, reference, description=about_it)
                found["enhancement"][POSTCONTRAST] = image
                if most is not None:
                    found["enhancing_ml"][POSTCONTRAST] = most
        return found

    def _sources(self, images: Mapping[str, Source]) -> dict[str, PathLike | Image]:
        """The images that are needed, in the order of the sources; refuses any others."""
        for name in images:
            if name not in self.sources:
                raise UserError(
                    f"{name} is no source of this model{nearest(name, self.sources)}: "
                    f"it takes {', '.join(self.sources)}"
                )
        if missing := [name for name in self.sources if name not in images]:
            raise UserError(
                f"{', '.join(missing)} is missing: this model needs {', '.join(self.sources)}, "
                f"got {', '.join(images) or 'nothing'}"
            )
        found = {}
        for name in self.sources:
            with about(name):
                found[name] = as_image(images[name])
        return found

    def _subject_of(self, image: PathLike | Image) -> str:
        path = image.get_filename() if isinstance(image, Image) else os.fspath(image)
        if not path:
            return NO_NAME
        patterns = self.system.provenance.config.data.patterns.to_dict() or None
        return subject_of(path, self.sources[0], patterns)

    def _image(
        self, volume: Float[np.ndarray, "z y x"], target: str, reference: PathLike | Image
    ) -> Image:
        """A volume of [0, 1] in the units of its modality."""
        scaled = volume * self.system.provenance.scales[target]
        return image_like(scaled, reference, description=f"{MARK} {target} cdm_jax")


def _regions(
    segmentation: PathLike | None, reference: PathLike | Image, native: NativeImages
) -> Masks | None:
    """The regions of a brain by a segmentation on the reference's grid, where there is one."""
    if segmentation is None:
        return None
    with about("segmentation"):
        check_file(segmentation)
        labels = read_labels(segmentation, oriented_like(segmentation, reference))
        return region_masks(labels, native.brain)


def load(folder: PathLike | None = None, checkpoint: str = "best") -> TrainedModel:
    """Loads a trained system on the devices of this process.

    Args:
      folder: a system's, such as `runs/brats/cunet`; or a run's, such as `runs/brats`, of which
        CDM's C-UNet is taken, or the only system that there is. None: the model that ships with
        the package, which was trained on simulated patients (`cdm_jax/shipped/CARD.md`).
      checkpoint: "best" by the validation metric of its training, or "last".

    Raises:
      UserError: no checkpoint there, one of a stage that makes no images, or several systems.
    """
    if folder is None:
        system = inference.system_of(*shipped.load_model(), batch_size_per_device=1)
        return TrainedModel(shipped.FOLDER, system)
    stage = find_system(pathlib.Path(folder).expanduser())
    system = inference.load_system(stage, batch_size_per_device=1, which=checkpoint)
    return TrainedModel(stage, system)


def find_system(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the system that `load` takes; arguments and errors as there."""
    if (folder / checkpoint.FOLDER).is_dir():
        if not _translates(folder):
            raise UserError(
                f"{folder} is a stage that makes no images by itself: give the folder of a system, "
                f"such as {folder.parent / MAIN_STAGE}"
            )
        return folder
    stages = sorted(path.parent for path in folder.glob(f"*/{checkpoint.FOLDER}"))
    systems = [stage for stage in stages if _translates(stage)]
    chosen = [stage for stage in systems if stage.name == MAIN_STAGE] or systems
    if not chosen:
        raise UserError(
            f"there is no checkpoint of a system in {folder}: give the folder of a finished run, "
            "such as runs/brats, or of one of its systems, such as runs/brats/cunet"
        )
    if len(chosen) > 1:
        raise UserError(f"{folder} has several systems: give one, {', '.join(map(str, chosen))}")
    return chosen[0]


def _translates(stage: pathlib.Path) -> bool:
    saved = checkpoint.provenance(stage)
    return saved is not None and isinstance(base.create(saved.config), base.Translator)
