"""The networks of any stage, found and counted without making a single parameter."""

import dataclasses
from collections import defaultdict
from typing import Any
from unittest import mock

import jax
from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cdm_jax.shapes import Shapes, create, example, frozen


def key() -> Any:
    """Any key; none is made before devices are asked for."""
    return jax.random.key(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network as a stage initializes it.

    Attributes:
      name: the field of the stage that holds it.
      module: the network.
      inputs: its arguments and keyword arguments, arrays as shapes.
      variables: the shapes of one set of its parameters, and of its running means.
      copies: how many sets of parameters the stage makes for it.
    """

    name: str
    module: nn.Module
    inputs: tuple[tuple, dict]
    variables: Shapes
    copies: int = 1

    def parameters(self) -> int:
        """How many parameters one set has."""
        return size_of(self.variables["params"])

    def flops(self) -> float:
        """Operations of one pass over `inputs`, before XLA optimizes it."""
        leaves, tree = jax.tree.flatten(self.inputs)
        shapes = {n: leaf for n, leaf in enumerate(leaves) if hasattr(leaf, "shape")}

        def forward(variables: PyTree, arrays: dict[int, Any]) -> PyTree:
            filled = [arrays.get(n, leaf) for n, leaf in enumerate(leaves)]
            arguments, options = jax.tree.unflatten(tree, filled)
            options |= {"rngs": {"dropout": key()}, "mutable": ["batch_stats"]}
            return self.module.apply(variables, *arguments, **options)

        return flops_of(jax.jit(forward).lower(self.variables, shapes))


def flops_of(program: jax.stages.Lowered) -> float:
    """Operations of a program as it is lowered."""
    analysis: Any = program.cost_analysis()
    return analysis["flops"]


def bytes_of(program: jax.stages.Compiled) -> float:
    """Bytes that the operations of a compiled program read and write."""
    analysis: Any = program.cost_analysis()
    return analysis["bytes accessed"]


def size_of(tree: PyTree) -> int:
    """Numbers in all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def networks(config: ConfigDict, stage: str) -> list[Network]:
    """The networks that a stage trains, with inputs for one slice.

    They are those fields of its dataclass that its `init` initializes, as it does.
    """
    method, batch = create(config, stage), example(config, 1)
    models = frozen(config, method, batch)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)  # by the module's identity
    init = nn.Module.init

    def noted(module: nn.Module, rngs: Any, *arguments: Any, **options: Any) -> Any:
        variables = init(module, rngs, *arguments, **options)
        call = {"inputs": (arguments, options), "variables": variables}
        found[id(module)].append(jax.tree.map(_shape, call))
        return variables

    with mock.patch.object(nn.Module, "init", noted):
        jax.eval_shape(method.init, key(), batch, models)
    return [
        Network(name=name, module=module, copies=len(calls), **calls[0])
        for name, module in vars(method).items()
        if (calls := found.get(id(module)))
    ]


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf
