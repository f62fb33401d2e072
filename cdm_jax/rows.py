"""The rows of an evaluation: their names, and the images of a system's rows as one function.

A system's name is the row of one sample, "<system>/mean_of_8" that of the mean of eight; the
method's audits follow under their own names. Rows without a system are the non-learned baselines
and the truth at the model's size.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Array
from ml_collections import ConfigDict

from cdm_jax import inference
from cdm_jax.errors import UserError
from cdm_jax.methods import base
from cdm_jax.report.rows import CEILING, MEAN_OF, NON_LEARNED

REFERENCE_ROWS = (*NON_LEARNED, CEILING)


def system_of(row: str) -> str:
    """The system that a row is of; a row without a system gives its own name."""
    return row.partition("/")[0]


def num_samples(config: ConfigDict, system: str) -> int:
    """Samples that a system's mean is of; one whose samples take long has a number of its own."""
    return config[system].get("num_samples", config.evaluate.num_samples)


def sample_rows(system: str, samples: int) -> tuple[str, ...]:
    """The rows of one sample and of the mean of `samples`; with one sample these are the same."""
    return (system, f"{system}/{MEAN_OF}{samples}") if samples > 1 else (system,)


def rows_of(system: str, method: base.Translator, samples: int) -> tuple[str, ...]:
    """All rows of a system: those of its samples, then the method's audits."""
    audits = (f"{system}/{name}" for name in method.audits(samples))
    return (*sample_rows(system, samples if method.stochastic else 1), *audits)


def asked_rows(config: ConfigDict, methods: Mapping[str, base.Translator]) -> tuple[str, ...]:
    """The rows of these systems, and those without a system, that `evaluate.rows` asks for.

    Raises:
      UserError: there is no such row.
    """
    asked, allowed = config.evaluate.rows, [*REFERENCE_ROWS]
    for name, method in methods.items():
        allowed += rows_of(name, method, num_samples(config, name))
    if unknown := [row for row in asked if row not in allowed]:
        raise UserError(
            f"no row is called {', '.join(unknown)}: evaluate.rows may name "
            f"{', '.join(allowed)}; --config.evaluate.rows='()' stands for all of them"
        )
    return tuple(row for row in allowed if row in asked or not asked)


def images_of(
    system: str, method: base.Translator, samples: int, rows: Sequence[str]
) -> inference.Compute:
    """One function to compile that gives these rows of a system, in [0, 1], and no others."""
    one, mean = system, f"{system}/{MEAN_OF}{samples}"
    audits = {f"{system}/{name}": audit for name, audit in method.audits(samples).items()}

    def images(model: base.Model, batch: base.Batch, key: Array) -> inference.Outputs:
        """The rows' images of one batch."""
        found = {
            row: base.to_unit_range(audits[row](model, batch, key)) for row in rows if row in audits
        }
        if one in rows or mean in rows:
            number = samples if mean in rows else 1  # the first sample is the same one
            drawn = method.synthesize(model, batch["source"], key, number)
            found |= {one: drawn[0], mean: drawn.mean(axis=0)}
        return {row: found[row] for row in rows}

    return images
