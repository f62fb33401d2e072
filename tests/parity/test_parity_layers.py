"""Our layers against PyTorch's, in which the compared systems were published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.methods.baselines.reggan_network import warp
from cdm_jax.nn.adm import GroupNorm, Linear
from cdm_jax.nn.blur import blur_pool, blur_upsample
from cdm_jax.nn.convolution import Conv, ConvTranspose, Norm
from cdm_jax.nn.vit import Transformer, TransformerBlock

torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[dev,parity]'")

from tests.parity import torch_reference as reference  # noqa: E402

TOLERANCE = 1e-4
SIZES = [(12, 12), (13, 10)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


def _apply(module, x, *options):
    params = reference.stirred(module, x, *options)["params"]
    return params, module.apply({"params": params}, x, *options)


# Convolutions.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "reflect"),
    [(3, 2, 1, False), (4, 2, 1, False), (4, 1, 1, False), (3, 1, 1, True), (7, 1, 3, True)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(size, kernel, stride, padding, reflect, bias):
    x = reference.images(2, *size, 3)
    theirs = torch.nn.Conv2d(
        3, 5, kernel, stride, padding, bias=bias, padding_mode="reflect" if reflect else "zeros"
    )
    layer = {"kernel": theirs.weight.detach().permute(2, 3, 1, 0).numpy()}
    layer |= {"bias": theirs.bias.detach().numpy()} if bias else {}
    ours = Conv(5, kernel, stride, padding, reflect, bias).apply({"params": {"conv": layer}}, x)
    _close(ours, reference.array(theirs(reference.tensor(x))))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "output_padding"), [(3, 1), (4, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions(size, kernel, output_padding, bias):
    x = reference.images(2, *size, 3)
    theirs = torch.nn.ConvTranspose2d(
        3, 5, kernel, stride=2, padding=1, output_padding=output_padding, bias=bias
    )
    layer = {"kernel": theirs.weight.detach().flip(2, 3).permute(2, 3, 0, 1).numpy()}
    layer |= {"bias": theirs.bias.detach().numpy()} if bias else {}
    module = ConvTranspose(5, kernel, 2, 1, output_padding, bias)
    ours = module.apply({"params": {"conv": layer}}, x)
    assert ours.shape[1:3] == (2 * size[0], 2 * size[1])
    _close(ours, reference.array(theirs(reference.tensor(x))))


# Norms.


def test_instance_norms():
    # A large mean and a small deviation show the epsilon and how the variance is computed.
    x = 3 + 0.01 * reference.images(2, 6, 7, 5)
    theirs = torch.nn.InstanceNorm2d(5)(reference.tensor(x))
    _close(Norm("instance").apply({}, x, True), reference.array(theirs), 2e-3)
    x = 0.01 * reference.images(2, 6, 7, 5)
    theirs = torch.nn.InstanceNorm2d(5)(reference.tensor(x))
    _close(Norm("instance").apply({}, x, True), reference.array(theirs))


def test_batch_norms_in_training_and_after():
    module, theirs = Norm("batch"), torch.nn.BatchNorm2d(5)
    x = 0.3 + 0.01 * reference.images(2, 6, 7, 5)
    params = reference.stirred(module, x, True)["params"]
    with torch.no_grad():
        theirs.weight.copy_(reference.plain(params["BatchNorm_0"]["scale"]))
        theirs.bias.copy_(reference.plain(params["BatchNorm_0"]["bias"]))
    fresh = jax.tree.map(np.asarray, module.init(jax.random.key(0), x, True)["batch_stats"])
    ours, changed = module.apply(
        {"params": params, "batch_stats": fresh}, x, True, mutable=["batch_stats"]
    )
    _close(ours, reference.array(theirs(reference.tensor(x))))
    means = changed["batch_stats"]["BatchNorm_0"]
    _close(means["mean"], theirs.running_mean.numpy(), 1e-6)
    # PyTorch keeps the unbiased variance of n values, Flax the biased one: n - 1 over n of it.
    n = x.size // 5
    step = (theirs.running_var.numpy() - 0.9) * (n - 1) / n
    _close(means["var"], 0.9 + step, 1e-6)
    theirs.eval()
    with torch.no_grad():
        theirs.running_var.copy_(reference.plain(means["var"]))
    ours = module.apply({"params": params, **changed}, x, False)
    _close(ours, reference.array(theirs(reference.tensor(x))))


def test_group_norms():
    x = 0.01 * reference.images(2, 4, 5, 64)
    params, ours = _apply(GroupNorm(), x)
    theirs = torch.nn.GroupNorm(32, 64)
    with torch.no_grad():
        theirs.weight.copy_(reference.plain(params["GroupNorm_0"]["scale"]))
        theirs.bias.copy_(reference.plain(params["GroupNorm_0"]["bias"]))
    _close(ours, reference.array(theirs(reference.tensor(x))))


# Initial values: the same deciles, and the same extremes where there are any.


def _same_distribution(ours, theirs, *, bounded):
    ours, theirs = np.asarray(ours).ravel(), theirs.detach().numpy().ravel()
    scale = theirs.std()
    deciles = np.linspace(0.1, 0.9, 9)
    _close(np.quantile(ours, deciles), np.quantile(theirs, deciles), 0.04 * scale)
    assert ours.std() == pytest.approx(scale, rel=0.03)
    if bounded:
        ends = [np.abs(values).max() for values in (ours, theirs)]
        assert ends[0] == pytest.approx(ends[1], rel=0.03)


def _fresh(module, *shape):
    return jax.jit(module.init)(jax.random.key(0), jnp.zeros(shape))["params"]


def _initialize(layer, initial):
    if initial == "normal":
        torch.nn.init.normal_(layer.weight, 0.0, 0.02)
    elif initial == "xavier":
        torch.nn.init.xavier_normal_(layer.weight, gain=0.02)
    return layer


@pytest.mark.parametrize("initial", ["pytorch", "normal", "xavier"])
@pytest.mark.parametrize("transposed", [False, True])
def test_initial_values_of_convolutions(initial, transposed):
    inputs, outputs = 24, 600  # unequal, so that one is not taken for the other
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    module = ConvTranspose(outputs, 3, 2, 1, 1) if transposed else Conv(outputs, 3)
    ours = _fresh(module.clone(initial=initial), 1, 8, 8, inputs)["conv"]
    theirs = _initialize(kind(inputs, outputs, 3), initial)
    _same_distribution(ours["kernel"], theirs.weight, bounded=initial == "pytorch")
    if initial == "pytorch":
        # Too few biases for deciles: both fill the interval that the fan-in gives.
        biases = np.asarray(ours["bias"]), theirs.bias.detach().numpy()
        ends, deviations = zip(*[(np.abs(b).max(), b.std()) for b in biases], strict=True)
        assert ends[0] == pytest.approx(ends[1], rel=0.05)
        assert deviations[0] == pytest.approx(deviations[1], rel=0.1)
    else:
        assert not ours["bias"].any()


@pytest.mark.parametrize("initial", ["normal", "xavier"])
def test_initial_values_of_batch_norms(initial):
    module = Norm("batch", initial)
    ours = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 20_000)), True)["params"]
    scale = torch.nn.init.normal_(torch.empty(20_000), 1.0, 0.02)
    _same_distribution(ours["BatchNorm_0"]["scale"] - 1, scale - 1, bounded=False)
    assert not ours["BatchNorm_0"]["bias"].any()


def test_initial_values_of_linear_layers():
    ours, theirs = _fresh(Linear(500), 1, 80)["Conv_0"]["conv"], torch.nn.Linear(80, 500)
    _same_distribution(ours["kernel"], theirs.weight, bounded=True)
    assert float(jnp.abs(ours["bias"]).max()) == pytest.approx(80**-0.5, rel=0.03)


def test_initial_values_of_transformers():
    width = 192
    block = TransformerBlock(4, initial="pytorch")
    ours = _fresh(block, 1, 3, width)
    linear = torch.nn.Linear(width, width)
    attention = ours["MultiHeadDotProductAttention_0"]
    for name in ("query", "key", "value", "out"):
        _same_distribution(attention[name]["kernel"], linear.weight, bounded=True)
        bias = float(jnp.abs(attention[name]["bias"]).max())
        assert bias == pytest.approx(float(linear.bias.detach().abs().max()), rel=0.1)
    for name, sizes in (("Dense_0", (width, 4 * width)), ("Dense_1", (4 * width, width))):
        weight = torch.nn.init.xavier_uniform_(torch.nn.Linear(*sizes).weight)
        _same_distribution(ours[name]["kernel"], weight, bounded=True)
        assert 0 < float(jnp.abs(ours[name]["bias"]).max()) < 1e-5


# Transformers.


def test_transformer_blocks_with_the_exact_gelu():
    x = 2 * reference.images(2, 6, 16)
    block = TransformerBlock(4)
    params = reference.stirred(block, x)["params"]
    params["Dense_0"]["kernel"] *= 3
    ours = block.apply({"params": params}, x)
    theirs = reference.transformer_block(params, reference.plain(x), 4)
    _close(ours, theirs, 1e-5)
    rough = reference.transformer_block(params, reference.plain(x), 4, approximate="tanh")
    assert float(np.abs(ours - rough.numpy()).max()) > 1e-4


def test_transformers_with_their_epsilon():
    x = 0.003 * reference.images(2, 6, 16)
    params, ours = _apply(Transformer(2, 2), x)
    for epsilon in (1e-6, 1e-5):
        tokens = reference.plain(x)
        for layer in range(2):
            block = params[f"TransformerBlock_{layer}"]
            tokens = reference.transformer_block(block, tokens, 2, epsilon=epsilon)
        theirs = reference.layer_norm(params["LayerNorm_0"], tokens, epsilon).numpy()
        assert (np.abs(ours - theirs).max() < TOLERANCE) == (epsilon == 1e-6)


# Changes of resolution and place.


@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_blurred_changes_of_resolution(size):
    x = reference.images(2, *size, 3)
    _close(blur_pool(x), reference.array(reference.blur_pool(reference.tensor(x))))
    doubled = blur_upsample(x)
    assert doubled.shape == (2, 2 * size[0], 2 * size[1], 3)
    _close(doubled, reference.array(reference.blur_upsample(reference.tensor(x))))


@pytest.mark.parametrize("size", [(10, 12), (11, 13)])
def test_bilinear_enlargement(size):
    """As the registration network doubles features, also to odd sizes."""
    x = reference.images(2, 5, 6, 3)
    ours = jax.image.resize(x, (2, *size, 3), "bilinear")
    theirs = torch.nn.functional.interpolate(
        reference.tensor(x), size, mode="bilinear", align_corners=False
    )
    _close(ours, reference.array(theirs))


def test_the_registration_warp_is_grid_sample():
    height, width = 9, 12
    x = reference.images(2, height, width, 3)
    displacement = 4 * reference.images(2, height, width, 2, seed=2)
    down, across = np.asarray(displacement).transpose(3, 0, 1, 2)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    # PyTorch counts from -1 to 1, columns first.
    across, down = 2 * (columns + across) / (width - 1) - 1, 2 * (rows + down) / (height - 1) - 1
    grid = reference.plain(np.stack([across, down], axis=-1))
    theirs = torch.nn.functional.grid_sample(
        reference.tensor(x), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    _close(warp(x, displacement), reference.array(theirs))
