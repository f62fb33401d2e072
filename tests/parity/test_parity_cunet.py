"""The C-UNet that the benchmark times in PyTorch is ours."""

import jax
import numpy as np
import pytest

from cdm_jax.methods.cdm.cunet_network import CUNet

torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[dev,parity]'")

from benchmarks.parts import torch_cunet  # noqa: E402
from tests.parity import torch_reference as reference  # noqa: E402

FEATURES, GROUPS, WIDTH = (8, 12, 16, 8), 4, 10


def _copy(layer, theirs):
    """Our parameters into a layer of PyTorch, that of a linear one also into a 1x1 convolution."""
    kernel = np.asarray(layer.get("kernel", layer.get("scale")))
    if kernel.ndim == 4:
        kernel = kernel.transpose(3, 2, 0, 1)
    elif kernel.ndim == 2:
        kernel = kernel.T
    theirs.weight.copy_(reference.plain(kernel).reshape(theirs.weight.shape))
    if theirs.bias is not None:
        theirs.bias.copy_(reference.plain(layer["bias"]))


def _copy_doubling(layer, theirs):
    """Our outputs are ordered by pixel, then channel; those of `pixel_shuffle` the other way."""

    def turned(values):
        return values.reshape(*values.shape[:-1], 4, -1).swapaxes(-1, -2).reshape(values.shape)

    _copy({name: turned(np.asarray(values)) for name, values in layer.items()}, theirs)


def _copy_block(block, theirs):
    for number in range(2):
        _copy(block[f"Conv_{number}"], theirs[3 * number])
        _copy(block[f"GroupNorm_{number}"], theirs[3 * number + 1])


@pytest.mark.parametrize("condition", ["on", "none"])
def test_the_cunet_that_is_timed(condition):
    x, y = reference.images(2, 16, 24, 2), None
    if condition == "on":
        y = reference.images(2, WIDTH, seed=2)
    ours = CUNet(
        features=FEATURES,
        num_targets=3,
        encoder="hybrid",
        condition=condition,
        residual=True,
        groups=GROUPS,
        source_skip=True,
    )
    params = reference.stirred(ours, x, y)["params"]
    theirs = torch_cunet.CUNet(FEATURES, 2, 3, GROUPS, WIDTH if condition == "on" else 0)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sum(p.numel() for p in theirs.parameters()) == sum(sizes)
    with torch.no_grad():
        blocks = [*theirs.down, *theirs.blocks]
        for number, block in enumerate(blocks):
            _copy_block(params[f"ConvBlock_{number}"], block)
        for number, up in enumerate(theirs.up):
            _copy_doubling(params[f"UpSample_{number}"]["Dense_0"], up.linear)
        for number, embedding in enumerate(theirs.embeddings):
            layer = params[f"ConditionEmbedding_{number}"]
            for name, part in (
                ("LayerNorm_0", embedding.norm),
                ("Conv_0", embedding.convolution),
                ("Dense_1", embedding.first),
                ("Dense_0", embedding.second),
            ):
                _copy(layer[name], part)
        _copy(params["Conv_0"], theirs.head)
        _copy(params["Conv_1"], theirs.out)
        found = theirs(reference.tensor(x), None if y is None else reference.plain(y))
    made = ours.apply({"params": params}, x, y)
    assert float(np.std(made)) > 0.05
    np.testing.assert_allclose(made, reference.array(found), atol=1e-4)
