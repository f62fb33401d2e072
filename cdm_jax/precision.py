"""In what precision networks compute, whatever they are: `config.precision`, `matmul_precision`.

With "bfloat16", parameters and inputs are rounded to bfloat16 where a network is applied, and its
outputs are float32 again. Parameters, optimizer, moving average, losses, the statistics of norms
(Flax takes them in float32) and the state of DDIM stay in float32.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree

from cdm_jax.errors import UserError

PRECISIONS = ("float32", "bfloat16")
MATMULS = ("default", "tensorfloat32", "float32")  # of float32 numbers, where a device has a choice


def with_precision(method: Any, precision: str, matmul_precision: str) -> Any:
    """The method with networks that compute so.

    Args:
      method: a dataclass of networks, of numbers, and of methods that are built on.
      precision: one of `PRECISIONS`.
      matmul_precision: one of `MATMULS`.

    Raises:
      UserError: no such precision.
    """
    for key, value, allowed in (
        ("precision", precision, PRECISIONS),
        ("matmul_precision", matmul_precision, MATMULS),
    ):
        if value not in allowed:
            raise UserError(f"unknown {key} '{value}': allowed are {', '.join(allowed)}")
    if (precision, matmul_precision) == ("float32", "default"):
        return method
    return _converted(method, precision, matmul_precision)


def _converted(value: Any, precision: str, matmul_precision: str) -> Any:
    if isinstance(value, nn.Module):
        return _module(value, precision, matmul_precision)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changed = {name: _converted(part, precision, matmul_precision) for name, part in found.items()}
    return dataclasses.replace(
        value, **{name: part for name, part in changed.items() if part is not found[name]}
    )


def _module(module: nn.Module, precision: str, matmul_precision: str) -> nn.Module:
    """The same module, but for the precision in which `apply` computes."""
    kind = type(module)
    matmul = None if matmul_precision == "default" else matmul_precision

    class Module(kind):  # type: ignore[misc, valid-type]
        """The module in another precision."""

        def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
            """As `flax.linen.Module.apply`."""
            if precision == "bfloat16":
                rounded = {"params": _cast(variables["params"], jnp.bfloat16)}
                variables, inputs = variables | rounded, _cast(inputs, jnp.bfloat16)
            with jax.default_matmul_precision(matmul) if matmul else contextlib.nullcontext():
                outputs = kind.apply(self, variables, *inputs, **options)
            return _cast(outputs, jnp.float32)

    Module.__name__ = kind.__name__
    fields = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
    return Module(**{name: getattr(module, name) for name in fields})


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """The tree with its floating-point arrays in this precision; other arrays as they are."""

    def cast(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(cast, tree)
