"""The networks of any stage, found and counted without making a single parameter."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cdm_jax.methods import base
from cdm_jax.shapes import Shapes, create, example, frozen

Call = tuple[nn.Module, tuple[tuple, dict]]


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
      copies: how many sets of parameters the stage makes for it.
    """

    name: str
    module: nn.Module
    inputs: tuple[tuple, dict]
    copies: int = 1

    def _variables(self) -> Shapes:
        shapes, fill = _split(self.inputs)

        def begin(arrays: list) -> PyTree:
            arguments, options = fill(arrays)
            return self.module.init({"params": key(), "dropout": key()}, *arguments, **options)

        return jax.eval_shape(begin, shapes)

    def parameters(self) -> int:
        """How many parameters one set has."""
        return size_of(self._variables()["params"])

    def flops(self) -> float:
        """Operations of one pass over `inputs`, before XLA optimizes it."""
        shapes, fill = _split(self.inputs)

        def forward(variables: PyTree, arrays: list) -> PyTree:
            arguments, options = fill(arrays)
            options |= {"rngs": {"dropout": key()}, "mutable": ["batch_stats"]}
            return self.module.apply(variables, *arguments, **options)

        return flops_of(jax.jit(forward).lower(self._variables(), shapes))


def flops_of(program: jax.stages.Lowered) -> float:
    """Operations of a program as it is lowered."""
    analysis: Any = program.cost_analysis()
    return analysis["flops"]


def size_of(tree: PyTree) -> int:
    """Numbers in all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def networks(config: ConfigDict, stage: str) -> list[Network]:
    """The networks that a stage trains, with inputs for one slice.

    They are the fields of its dataclass that are modules, and the inputs those of their `init`.
    """
    calls: list[Call] = []

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        scope = context.module.scope
        outermost = context.method_name == "__call__" and not scope.path
        if outermost and scope.is_mutable_collection("params"):
            calls.append((context.module, jax.tree.map(_shape, (args, kwargs))))
        return call(*args, **kwargs)

    method, batch = create(config, stage), example(config, 1)
    models = frozen(config, method, batch)
    with nn.intercept_methods(note):
        jax.eval_shape(method.init, key(), batch, models)
    return _assign(modules_of(method), calls)


def inference_parameters(method: base.Translator, state: base.State, batch: Shapes) -> int:
    """Parameters, of this stage and of those that it builds on, that a translation uses."""
    model = base.model_of(state)
    translate = functools.partial(method.translate, num_samples=1)
    closed = jax.make_jaxpr(translate)(model, batch["source"], key())
    used = {id(variable) for equation in closed.jaxpr.eqns for variable in equation.invars}
    leaves = jax.tree_util.tree_leaves_with_path(model)  # the first of the program's inputs
    return sum(
        leaf.size
        for (path, leaf), variable in zip(leaves, closed.jaxpr.invars, strict=False)
        if jax.tree_util.DictKey("params") in path and id(variable) in used
    )


def modules_of(method: Any) -> dict[str, nn.Module]:
    """The fields of a stage that are networks."""
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


def _assign(fields: dict[str, nn.Module], calls: Sequence[Call]) -> list[Network]:
    """Gives each call to the field that holds such a network and has the fewest calls so far."""
    found: dict[str, list[tuple[tuple, dict]]] = {name: [] for name in fields}
    for module, inputs in calls:
        if alike := [name for name, field in fields.items() if _equal(field, module)]:
            min((found[name] for name in alike), key=len).append(inputs)
    return [
        Network(name=name, module=fields[name], inputs=inputs[0], copies=len(inputs))
        for name, inputs in found.items()
        if inputs
    ]


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same; networks are wherever they are bound."""
    if not isinstance(one, nn.Module):
        return one == other
    names = {field.name for field in dataclasses.fields(one)} - {"parent", "name"}
    return type(one) is type(other) and all(
        _equal(getattr(one, name), getattr(other, name)) for name in names
    )


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _split(inputs: PyTree) -> tuple[list[jax.ShapeDtypeStruct], Callable[[list], PyTree]]:
    """The shapes within `inputs`, and the function that puts arrays in their places."""
    leaves, tree = jax.tree.flatten(inputs)
    places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    def fill(arrays: list) -> PyTree:
        given = dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(tree, [given.get(n, leaf) for n, leaf in enumerate(leaves)])

    return [leaves[n] for n in places], fill
