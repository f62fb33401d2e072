"""The model card beside every bundle (a stage's folder): what it is, its numbers, its limits.

Markdown under the YAML head that model hubs read. A pure function of what the checkpoint says of
itself and of the records of an evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cdm_jax
from cdm_jax.records import Record
from cdm_jax.report.tables import results_table

FILE = "MODEL_CARD.md"
PARTS = {"train": "train on", "validation": "validate", "test": "test, never seen"}
REFERENCE = "m1"  # the plain UNet, beside which every system is shown
TAGS = (
    *("medical-imaging", "mri", "brain", "image-to-image", "modality-synthesis", "diffusion"),
    *("jax", "flax", "not-for-clinical-use"),
)
INTENSITY = (
    "one linear scale per subject and modality: background to 0, the 99.5th percentile of the "
    "brain to 1, clipped. The scale of a modality that was never acquired is unknown: what is "
    "written is multiplied by the reference scale below"
)


class License(NamedTuple):
    """The terms of a dataset as model hubs spell them, and what to know to pass weights on."""

    identifier: str
    note: str


LICENSES = {
    "brats": License(
        "other",
        "BraTS: the terms of the challenge, accepted on Synapse when the images were fetched. Read "
        "there whether weights trained on them may be passed on, and cite what they ask for.",
    ),
    "upenn_gbm": License(
        "cc-by-4.0",
        "UPenn-GBM (The Cancer Imaging Archive, doi:10.7937/TCIA.709X-DN49): CC BY 4.0. Pass the "
        "weights on with the attribution that the collection's page asks for.",
    ),
    "phantom": License(
        "other",
        "Phantom: no patient's images. It is deformed from the MNI152 tissue maps (ICBM 2009a), "
        "which nilearn ships without stating a license; the atlas has a copyright notice of its "
        "own.",
    ),
}
UNKNOWN = License("other", "The terms of this data are not known to this software: add yours.")


def model_card(
    *,
    provenance: Mapping[str, Any],
    parameters: Mapping[str, int],
    patients: Mapping[str, int],
    translates: bool,
    facts: Mapping[str, str],
    limits: Sequence[str],
    records: Sequence[Record] = (),
    worth: Mapping[str, str] | None = None,
) -> str:
    """The card of one stage.

    Args:
      provenance: of the checkpoint, as JSON: "config", "batch_size", "split" and "scales".
      parameters: stage to the number of its parameters: this one's, then those of the frozen
        stages that its checkpoint holds.
      patients: each of `PARTS` of the split to the number of its subjects.
      translates: whether the stage makes images, or is a part of one that does.
      facts: of this method alone, name to text.
      limits: sentences on what this method cannot do.
      records: of an evaluation of this checkpoint, one a subject; none before there is one.
      worth: what they mean to a reader of the images, topic to sentences.

    Returns:
      Markdown.

    Raises:
      UserError: the records are not comparable.
    """
    config = provenance["config"]
    stage, name = config["stage"], config["data"]["name"]
    facts = {**_facts(provenance, parameters, patients), **facts}
    if records and translates:
        facts["fingerprint of the evaluated weights"] = records[0]["checkpoint"].get(stage, "")
    parts = [
        _head(name),
        f"# {stage} of cdm_jax, trained on {name}",
        "**For research. Not for clinical use:** synthetic images show what is likely, not what is "
        "there. No decision about a patient may rest on them.",
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
        "## Numbers",
        *_numbers(stage, translates, records),
        *(["## What the images are worth"] if worth else []),
        *(f"**{topic}.** {text}" for topic, text in (worth or {}).items()),
        "## How to load it",
        _loading(config["data"], translates),
        "## Intended use",
        "Research on the synthesis of missing MRI modalities: comparing methods, studying what a "
        "condition is worth, teaching. Out of scope: diagnosis, treatment, triage, filling gaps in "
        "a clinical record, and images shown to patients or readers as if acquired.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in [*_limits(config, translates), *limits]),
        "## Licenses",
        f"Software: Apache-2.0. {LICENSES.get(name, UNKNOWN).note}",
    ]
    return "\n\n".join(parts) + "\n"


def parameter_counts(stage: str, model: Mapping[str, Any]) -> dict[str, int]:
    """The model's own stage, then each frozen one, to the number of its parameters.

    The model is as `methods.base.model_of` gives it, of arrays or of their shapes.
    """
    parts = {stage: model["params"]}
    parts |= {name: part["params"] for name, part in model["frozen"].items()}
    return {name: _size(part) for name, part in parts.items()}


def _size(tree: Any) -> int:
    """Numbers in nested containers of arrays; a card is written without JAX."""
    if hasattr(tree, "size"):
        return tree.size
    return sum(map(_size, tree.values() if isinstance(tree, Mapping) else tree))


def _head(name: str) -> str:
    license = LICENSES.get(name, UNKNOWN).identifier
    lines = ["---", "library_name: cdm_jax", f"license: {license}"]
    if license == "other":
        lines += ["license_name: terms-of-the-training-data"]
    lines += ["tags:", *(f"- {tag}" for tag in TAGS), "datasets:", f"- {name or 'unnamed'}", "---"]
    return "\n".join(lines)


def _facts(
    provenance: Mapping[str, Any], parameters: Mapping[str, int], patients: Mapping[str, int]
) -> dict[str, str]:
    """What the checkpoint says of itself, in the order of the card."""
    config, (stage, *frozen) = provenance["config"], parameters
    data = config["data"]
    parts = ", ".join(f"{number} to {PARTS[part]}" for part, number in patients.items())
    counts = f"{parameters[stage]:,} of its own"
    if frozen:
        counts += "; frozen " + ", ".join(f"{name} {parameters[name]:,}" for name in frozen)
    scales = ", ".join(f"{name} {scale:.4g}" for name, scale in provenance["scales"].items())
    return {
        "method": config[stage]["method"],
        "from": f"{', '.join(data['sources'])} to {', '.join(data['targets'])}",
        "size": f"axial slices of {data['size']} x {data['size']} pixels{_beside(data)}",
        "parameters": counts,
        "training": f"{config[stage]['train']['num_steps']} steps of {provenance['batch_size']} "
        f"slices, seed {config['seed']}",
        "data": f"{data['name']}, subjects: {parts}; split by patient, {provenance['split']}",
        "intensities": INTENSITY,
        "reference scales": scales,
        "software": f"cdm_jax {cdm_jax.__version__}",
    }


def _beside(data: Mapping[str, Any]) -> str:
    """How many neighbors of a slice are seen, in words; former versions' config does not say."""
    context = data.get("context", 0)
    return f", sources with {context} more to each side" if context else ""


def _numbers(stage: str, translates: bool, records: Sequence[Record]) -> list[str]:
    """A table for each convention, or why there is none."""
    if not translates:
        return ["This stage makes no images by itself: see the card of the system that uses it."]
    if not records:
        command = "`python -m cdm_jax.main evaluate --workdir=<the folder above this one>`"
        return [f"Not evaluated yet: {command} fills this in."]
    kept = [_with_rows_of(stage, record) for record in records]
    reference = REFERENCE if stage != REFERENCE and REFERENCE in kept[0]["rows"] else None
    tables = [
        f"### Convention `{name}`\n\n"
        + results_table(kept, name, reference=reference).markdown().rstrip()
        for name in kept[0]["conventions"]
    ]
    return [
        "Patients that it was not trained on. Numbers of two conventions, or of two splits, cannot "
        "be compared; rows without training stand beside the system's, `resampled_truth` is the "
        "ceiling that the model's size sets.",
        *tables,
    ]


def _with_rows_of(stage: str, record: Record) -> Record:
    """A record without the rows of other trained systems, but for the reference's."""
    others = record["checkpoint"].keys() - {stage, REFERENCE}
    rows = {n: scores for n, scores in record["rows"].items() if n.split("/")[0] not in others}
    return {**record, "rows": rows}


def _limits(config: Mapping[str, Any], translates: bool) -> list[str]:
    data = config["data"]
    seen = (
        f"Trained on {data['name']} alone: other scanners, protocols, ages, diseases were not seen."
    )
    if data["name"] == "phantom":
        seen = (
            "**Trained on simulated patients only**: it tests code and compares methods. It says "
            "nothing about patients and should not be used on their images."
        )
    limits = [seen, "It needs skull-stripped images of one patient on one grid."]
    if translates and "t1c" in data["targets"]:
        limits += [
            "Enhancement after contrast agent cannot be predicted from images without it, such as "
            "T1 and T2: dose, uptake and an open blood-brain barrier are not in them. A lesion "
            "that would light up may stay dim.",
        ]
    if translates:
        limits += [
            "Lesions may be missing or invented.",
            "Slices are synthesized one by one; between them nothing is enforced.",
        ]
    return limits


def _loading(data: Mapping[str, Any], translates: bool) -> str:
    """How to load it in Python: as a system that synthesizes, or as arrays."""
    if translates:
        images = ", ".join(f'"{name}": "<{name} file>"' for name in data["sources"])
        target = data["targets"][0]
        lines = [
            "import cdm_jax",
            "",
            'model = cdm_jax.load("<the folder of this card>")  # on any device',
            f"result = model.synthesize({{{images}}}, samples=8)",
            f'result["{target}"].to_filename("{target}.nii.gz")  # on the grid of the first file',
        ]
    else:
        lines = [
            "import pathlib",
            "from cdm_jax.checkpoint import load_model",
            "",
            'bundle = pathlib.Path("<the folder of this card>")',
            "model, provenance = load_model(bundle)  # NumPy arrays, on any device",
        ]
    return "\n".join(["```python", *lines, "```"])
