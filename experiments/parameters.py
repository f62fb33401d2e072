"""How large every network is, and how much it computes, at the paper's scale.

  python -m experiments.parameters [--size=256] [--stages=pix2pix,cunet] [--peak]

Nothing is trained and no parameter is made: networks are traced for shapes alone. Operations are
counted in the programs before XLA optimises them, multiplications and additions each for one; the
body of a loop counts once, so a sampler costs as many passes as it has steps. `--peak` compiles
every training step for the device at hand and adds the memory that it needs, which takes minutes.
Writes `experiments/results/parameters.json` and prints its tables.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cdm_jax.methods import base
from cdm_jax.methods.baselines import diffusion
from cdm_jax.writer import console
from configs import brats
from configs.common import PARTS, SYSTEMS
from experiments.records import load_results, save_results

NAME = "parameters"
COMMAND = "python -m experiments.parameters"
KEY = jax.random.key(0)
# The UNets of guided diffusion that `diffusion` can be; released ones take all three resolutions.
VARIANTS: dict[str, dict] = {
    "ADM 192": {},
    "ADM 128": {"width": 128},
    "ADM 128, attention 16/8, plain": {
        "width": 128,
        "attention": (16, 8),
        "resblock_updown": False,
    },
    "ADM 64, attention 16": {"width": 64, "attention": (16,)},
}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as a stage initialises it.

    Attributes:
      name: the field of the stage that holds it.
      module: the network.
      inputs: arguments and keyword arguments; arrays as shapes.
      copies: how many sets of parameters the stage makes for it.
    """

    name: str
    module: nn.Module
    inputs: tuple[tuple, dict]
    copies: int = 1

    def parameters(self) -> int:
        """Size of one set."""
        return size_of(self._variables().get("params", {}))

    def flops(self) -> float:
        """Operations of one pass over `inputs`."""
        leaves, tree = jax.tree.flatten(self.inputs)
        shapes = [leaf for leaf in leaves if _is_shape(leaf)]

        def forward(variables: PyTree, arrays: list) -> PyTree:
            given = iter(arrays)
            filled = [next(given) if _is_shape(leaf) else leaf for leaf in leaves]
            arguments, options = jax.tree.unflatten(tree, filled)
            rngs, mutable = {"dropout": KEY}, ["batch_stats"]
            return self.module.apply(variables, *arguments, **options, rngs=rngs, mutable=mutable)

        return jax.jit(forward).lower(self._variables(), shapes).cost_analysis()["flops"]

    def _variables(self) -> PyTree:
        arguments, options = self.inputs
        leaves, tree = jax.tree.flatten((arguments, options))

        def begin() -> PyTree:
            arrays = [jnp.zeros(x.shape, x.dtype) if _is_shape(x) else x for x in leaves]
            arguments, options = jax.tree.unflatten(tree, arrays)
            return self.module.init({"params": KEY, "dropout": KEY}, *arguments, **options)

        return jax.eval_shape(begin)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def size_of(tree: PyTree) -> int:
    """Numbers in all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def example(config: ConfigDict, number: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of this many slices."""
    data = config.data
    return {
        name: jax.ShapeDtypeStruct((number, data.size, data.size, len(modalities)), jnp.float32)
        for name, modalities in (("source", data.sources), ("target", data.targets))
    }


def start(config: ConfigDict, stage: str, batch: PyTree) -> tuple[base.Method, base.State]:
    """A stage and the shapes of its fresh state, over fresh stages that it builds on."""
    config = config.copy_and_resolve_references()
    config.stage = stage
    method = base.create(config)
    frozen = {}
    for needed in method.depends_on:
        model = base.model_of(start(config, needed, batch)[1])
        frozen[needed] = {name: model[name] for name in ("params", "statistics")}
    return method, jax.eval_shape(method.init, KEY, batch, frozen)


def networks(config: ConfigDict, stage: str) -> list[Network]:
    """The networks that a stage trains, with inputs for one slice."""
    calls: list[tuple[nn.Module, tuple]] = []

    def note(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        scope = context.module.scope
        if scope is not None and not scope.path and scope.is_mutable_collection("params"):
            calls.append((context.module, jax.tree.map(_shape, (args, kwargs))))
        return call(*args, **kwargs)

    batch = example(config, 1)
    method, _ = start(config, stage, batch)
    with nn.intercept_methods(note):
        start(config, stage, batch)
    return _assign(_fields(method), calls)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _fields(method: Any) -> dict[str, nn.Module]:
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


def _assign(
    fields: dict[str, nn.Module], calls: Sequence[tuple[nn.Module, tuple]]
) -> list[Network]:
    """Gives each call of an `init` to the field of an equal network that has the fewest so far."""
    found: dict[str, list[tuple]] = {name: [] for name in fields}
    for module, inputs in calls:
        if equal := [name for name, field in fields.items() if _equal(field, module)]:
            min((found[name] for name in equal), key=len).append(inputs)
    return [
        Network(name, fields[name], inputs[0], len(inputs))
        for name, inputs in found.items()
        if inputs
    ]


def _equal(one: Any, other: Any) -> bool:
    """Whether two networks are the same, wherever they are bound."""
    if not isinstance(one, nn.Module):
        return one == other
    names = {field.name for field in dataclasses.fields(one)} - {"parent", "name"}
    return type(one) is type(other) and all(
        _equal(getattr(one, name), getattr(other, name)) for name in names
    )


def inference_parameters(method: base.Translator, state: base.State, batch: PyTree) -> int:
    """Parameters, of this stage and of those that it builds on, that a translation makes use of."""
    model = base.model_of(state)
    jaxpr = jax.make_jaxpr(lambda *given: method.translate(*given, 1))(model, batch["source"], KEY)
    used = {id(v) for equation in jaxpr.jaxpr.eqns for v in equation.invars}
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return sum(
        leaf.size
        for (path, leaf), variable in zip(leaves, jaxpr.jaxpr.invars, strict=False)
        if jax.tree_util.DictKey("params") in path and id(variable) in used
    )


def step_row(config: ConfigDict, stage: str, *, peak: bool) -> Row:
    """One training step of a stage on a batch of the size that it trains with on one device."""
    batch = example(config, config[stage].train.batch_size_per_device)
    method, state = start(config, stage, batch)
    step = jax.jit(method.update, donate_argnums=0).lower(state, batch, KEY)
    row = {"stage": stage, "trained": size_of(state.params)}
    row["total"] = row["trained"] + sum(size_of(m["params"]) for m in state.frozen.values())
    if isinstance(method, base.Translator):
        row["inference"] = inference_parameters(method, state, example(config, 1))
    row["step_flops"] = step.cost_analysis()["flops"]
    if peak:
        memory = step.compile().memory_analysis()
        row["peak_bytes"] = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    return row


def network_rows(found: Sequence[Network], stage: str) -> Iterator[Row]:
    """One row a network."""
    for network in found:
        yield {
            "stage": stage,
            "network": network.name,
            "copies": network.copies,
            "parameters": network.parameters(),
            "flops": network.flops(),
        }


def variant_rows(config: ConfigDict) -> Iterator[Row]:
    """One row for each of `VARIANTS`."""
    for name, changes in VARIANTS.items():
        changed = config.copy_and_resolve_references()
        changed.stage = "diffusion"
        changed.diffusion.update(changes)
        if changed.diffusion.multipliers:
            diffusion.create_network(changed)
        yield from (
            {**row, "network": name}
            for row in network_rows(networks(changed, "diffusion"), "diffusion")
        )


def measure(size: int, stages: Sequence[str], *, peak: bool) -> dict[str, Any]:
    """All rows for slices of this size."""
    config = brats.get_config(f"all,size={size}")
    content: dict[str, Any] = {"command": COMMAND, "size": size, "jax": jax.__version__}
    content |= {"networks": [], "stages": [], "variants": []}
    for stage in stages:
        console.print(f"tracing {stage}")
        content["networks"] += network_rows(networks(config, stage), stage)
        content["stages"].append(step_row(config, stage, peak=peak))
    if "diffusion" in stages:
        content["variants"] += variant_rows(config)
    if peak:
        content["device"] = jax.devices()[0].device_kind
    return content
