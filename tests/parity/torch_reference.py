"""PyTorch's layers on our parameters, for tests that hold one against the other."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional


def tensor(images):
    """[b, h, w, c] to PyTorch's [b, c, h, w]."""
    return torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2)


def array(images):
    """The inverse of `tensor`."""
    return images.detach().permute(0, 2, 3, 1).numpy()


def plain(values):
    return torch.from_numpy(np.array(values, np.float32))


def stirred(module, *inputs, seed=0, **options):
    """Random parameters for a module, about as large as fresh ones but nowhere zero or one."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        kernel = path[-1].key == "kernel"
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))) if kernel else 0.3
        offset = 1 if path[-1].key in ("scale", "var") else 0
        return (offset + scale * random.uniform(-1, 1, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def conv(layer, x, stride=1, padding=0, reflect=False):
    """A convolution with the parameters of one of our `Conv`."""
    layer = layer["conv"]
    if reflect:
        x, padding = functional.pad(x, (padding,) * 4, mode="reflect"), 0
    bias = plain(layer["bias"]) if "bias" in layer else None
    return functional.conv2d(x, plain(layer["kernel"]).permute(3, 2, 0, 1), bias, stride, padding)


def conv_transpose(layer, x, stride, padding, output_padding=0):
    """A transposed convolution with the parameters of one of our `ConvTranspose`."""
    layer = layer["conv"]
    weight = plain(layer["kernel"]).flip(0, 1).permute(2, 3, 0, 1)
    bias = plain(layer["bias"]) if "bias" in layer else None
    return functional.conv_transpose2d(x, weight, bias, stride, padding, output_padding)


def norm(layer, x):
    """BatchNorm on the batch at hand with our parameters, or InstanceNorm without any."""
    if layer is None:
        return functional.instance_norm(x)
    layer = layer["BatchNorm_0"]
    return functional.batch_norm(
        x, None, None, plain(layer["scale"]), plain(layer["bias"]), training=True
    )


def linear(layer, x):
    return x @ plain(layer["kernel"]) + plain(layer["bias"])


def layer_norm(layer, x, epsilon):
    weights = plain(layer["scale"]), plain(layer["bias"])
    return functional.layer_norm(x, x.shape[-1:], *weights, eps=epsilon)


def blur_pool(x):
    """CUT's halving: edges reflected, [1, 2, 1] in both directions, every other pixel."""
    taps = torch.tensor([1.0, 2.0, 1.0])
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(x.shape[1], 1, 3, 3)
    padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, kernel, stride=2, groups=x.shape[1])


def blur_upsample(x):
    """CUT's doubling: edges repeated, a transposed convolution with [1, 3, 3, 1], then cropped."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (4 * taps[:, None] * taps / taps.sum() ** 2).expand(x.shape[1], 1, 4, 4)
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    doubled = functional.conv_transpose2d(padded, kernel, stride=2, padding=2, groups=x.shape[1])
    return doubled[:, :, 1:-1, 1:-1]


def transformer_block(layer, tokens, heads, *, epsilon=1e-6, approximate="none"):
    """Pre-norm self-attention and perceptron, each beside a residual."""
    width = tokens.shape[-1]
    attention = layer["MultiHeadDotProductAttention_0"]
    h = layer_norm(layer["LayerNorm_0"], tokens, epsilon)

    def project(name):
        part = attention[name]
        flat = {"kernel": part["kernel"].reshape(width, width), "bias": part["bias"].reshape(width)}
        return linear(flat, h).unflatten(-1, (heads, width // heads)).transpose(1, 2)

    mixed = functional.scaled_dot_product_attention(*map(project, ("query", "key", "value")))
    out = attention["out"]
    flat = {"kernel": out["kernel"].reshape(width, width), "bias": out["bias"]}
    tokens = tokens + linear(flat, mixed.transpose(1, 2).flatten(2))
    h = linear(layer["Dense_0"], layer_norm(layer["LayerNorm_1"], tokens, epsilon))
    return tokens + linear(layer["Dense_1"], functional.gelu(h, approximate=approximate))
