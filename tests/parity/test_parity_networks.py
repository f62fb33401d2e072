"""Whole networks against PyTorch formulations of them, with the same weights."""

import jax
import numpy as np
import pytest

from cdm_jax.methods.baselines.resvit_network import ResViTGenerator
from cdm_jax.nn.patchgan import PatchGAN
from cdm_jax.nn.resnet import ResNetGenerator

torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[dev,parity]'")

from tests.parity import torch_reference as reference  # noqa: E402
from tests.parity.torch_reference import conv, conv_transpose, norm  # noqa: E402

relu = torch.relu
TOLERANCE = 1e-4


def _run(module, x, *options):
    """Random parameters, and what the module makes of images."""
    variables = reference.stirred(module, x, *options)
    variables.pop("batch_stats", None)
    output = jax.jit(
        lambda variables: module.apply(variables, x, *options, mutable=["batch_stats"])[0]
    )(variables)
    assert float(np.std(output)) > 0.05  # not the same everywhere, nor saturated
    return variables["params"], output


def _residual_block(layer, x):
    h = relu(norm(layer.get("Norm_0"), conv(layer["Conv_0"], x, 1, 1, reflect=True)))
    return x + norm(layer.get("Norm_1"), conv(layer["Conv_1"], h, 1, 1, reflect=True))


@pytest.mark.parametrize("antialias", [False, True])
def test_the_resnet_generator(antialias):
    x = reference.images(2, 16, 20, 2)
    params, ours = _run(ResNetGenerator(4, 3, 2, antialias), x)
    encoder, decoder = params["encoder"], params["decoder"]
    h = relu(norm(None, conv(encoder["Conv_0"], reference.tensor(x), 1, 3, reflect=True)))
    for layer in (1, 2):
        h = relu(norm(None, conv(encoder[f"Conv_{layer}"], h, 1 if antialias else 2, 1)))
        h = reference.blur_pool(h) if antialias else h
    for block in range(3):
        h = _residual_block(encoder[f"ResidualBlock_{block}"], h)
    for layer in (0, 1):
        if antialias:
            h = conv(decoder[f"Conv_{layer}"], reference.blur_upsample(h), 1, 1)
        else:
            h = conv_transpose(decoder[f"ConvTranspose_{layer}"], h, 2, 1, 1)
        h = relu(norm(None, h))
    last = decoder["Conv_2" if antialias else "Conv_0"]
    theirs = torch.tanh(conv(last, h, 1, 3, reflect=True))
    np.testing.assert_allclose(ours, reference.array(theirs), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["instance", "batch"])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_patchgan(kind, antialias):
    x = reference.images(2, 40, 48, 3)
    params, ours = _run(PatchGAN(4, kind, antialias), x)
    h = reference.tensor(x)
    for layer in range(4):
        halve = layer < 3
        h = conv(params[f"Conv_{layer}"], h, 2 if halve and not antialias else 1, 1)
        if layer:
            h = norm(params.get(f"Norm_{layer - 1}"), h)
        h = torch.nn.functional.leaky_relu(h, 0.2)
        h = reference.blur_pool(h) if halve and antialias else h
    theirs = conv(params["Conv_4"], h, 1, 1)
    np.testing.assert_allclose(ours, reference.array(theirs), atol=TOLERANCE)


def _change(layer, x, step):
    """One of ResViT's halvings or doublings."""
    if step == "halve":
        x = conv(layer["Conv_0"], x, 2, 1)
    else:
        x = conv_transpose(layer["ConvTranspose_0"], x, 2, 1, 1)
    return relu(norm(layer["Norm_0"], x))


def _aggregation(layer, transformer, x, heads):
    h = _change(layer["Halve_1"], _change(layer["Halve_0"], x, "halve"), "halve")
    h = conv(layer["embedding"], h)
    tokens = h.flatten(2).transpose(1, 2) + reference.plain(layer["positions"])
    for number in range(2):
        block = transformer[f"TransformerBlock_{number}"]
        tokens = reference.transformer_block(block, tokens, heads)
    tokens = reference.layer_norm(transformer["LayerNorm_0"], tokens, 1e-6)
    h = tokens.transpose(1, 2).reshape(h.shape)
    h = _change(layer["Double_1"], _change(layer["Double_0"], h, "double"), "double")
    both, compression = torch.cat([h, x], dim=1), layer["Compression_0"]
    h = relu(norm(compression["Norm_0"], conv(compression["Conv_0"], both, 1, 1)))
    h = norm(compression["Norm_1"], conv(compression["Conv_1"], h, 1, 1))
    return relu(h + norm(compression["Norm_2"], conv(compression["Conv_2"], both)))


@pytest.mark.parametrize("transformer_blocks", [(), (1, 3)])
def test_the_resvit_generator(transformer_blocks):
    x, heads = reference.images(2, 32, 48, 2), 2
    module = ResViTGenerator(
        width=4,
        blocks=3,
        transformer_blocks=transformer_blocks,
        hidden=8,
        layers=2,
        heads=heads,
        dropout=0.0,
        num_targets=3,
    )
    params, ours = _run(module, x, True)
    h = relu(norm(params["Norm_0"], conv(params["Conv_0"], reference.tensor(x), 1, 3, True)))
    h = _change(params["Halve_1"], _change(params["Halve_0"], h, "halve"), "halve")
    for block in range(1, 4):
        if block in transformer_blocks:
            layer = params[f"aggregation_{block}"]
            h = _aggregation(layer, params["transformer"], h, heads)
        h = _residual_block(params[f"residual_{block}"], h)
    h = _change(params["Double_1"], _change(params["Double_0"], h, "double"), "double")
    theirs = torch.tanh(conv(params["Conv_1"], h, 1, 3, reflect=True))
    np.testing.assert_allclose(ours, reference.array(theirs), atol=TOLERANCE)
