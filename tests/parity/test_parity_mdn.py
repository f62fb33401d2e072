"""The MDN that the benchmark times in PyTorch is ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdm_jax.diffusion.ddim import DDIM
from cdm_jax.diffusion.schedule import alpha_bar
from cdm_jax.methods.cdm.mdn_network import Denoiser
from cdm_jax.methods.cdm.source import SourceEncoder

torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[dev,parity]'")

from benchmarks.parts import torch_mdn  # noqa: E402
from tests.parity import torch_reference as reference  # noqa: E402
from tests.parity.test_parity_cunet import _copy  # noqa: E402

WIDTH, BLOCKS, TARGETS, REPRESENTATION, CONTEXT, FEATURES = 12, 2, 2, 10, 6, (8, 16)


def _copy_layer(layer, theirs):
    _copy(layer["LayerNorm_0"], theirs[0])
    _copy(layer["Dense_0"], theirs[2])


def _copy_denoiser(params, theirs):
    _copy(params["Dense_0"], theirs.time[2])  # the outer call makes its layer first
    _copy(params["Dense_1"], theirs.time[0])
    for modality, tower in enumerate(theirs.towers):
        _copy(params[f"modality_{modality}_decouple"], theirs.decouple[modality])
        for number, block in enumerate(tower):
            layer = params[f"modality_{modality}_block_{number}"]
            for name in ("input", "timestep", "source", "output"):
                _copy_layer(layer[name], getattr(block, name))
    _copy_layer(params["output"], theirs.out)


def _copy_encoder(params, theirs):
    for number in range(len(FEATURES)):
        _copy(params[f"Conv_{number}"], theirs.layers[3 * number])
        _copy(params[f"GroupNorm_{number}"], theirs.layers[3 * number + 1])
    _copy(params["Dense_0"], theirs.linear)


def test_the_mdn_that_is_timed_draws_our_samples():
    images, noise = reference.images(2, 16, 24, 2), reference.images(2, REPRESENTATION, seed=2)
    encoder = SourceEncoder(features=FEATURES, width=CONTEXT, dropout=0.3)
    denoiser = Denoiser(
        representation_width=REPRESENTATION,
        num_modalities=TARGETS,
        width=WIDTH,
        blocks=BLOCKS,
        decouple="streams",
    )
    theirs = torch_mdn.MDN(REPRESENTATION, 2, TARGETS, WIDTH, BLOCKS, FEATURES, CONTEXT).eval()
    encoding = reference.stirred(encoder, images)["params"]
    context = encoder.apply({"params": encoding}, images)
    t = jnp.array([3, 700])
    denoising = reference.stirred(denoiser, noise, t, context)["params"]
    sizes = [leaf.size for leaf in jax.tree.leaves((encoding, denoising))]
    assert sum(p.numel() for p in theirs.parameters()) == sum(sizes)
    with torch.no_grad():
        _copy_encoder(encoding, theirs.encoder)
        _copy_denoiser(denoising, theirs.denoiser)
        y = reference.plain(noise)
        found = theirs(reference.tensor(images), y, torch.from_numpy(np.array(t)))
        code = theirs.encoder(reference.tensor(images))
    made = denoiser.apply({"params": denoising}, noise, t, context)
    assert float(np.std(made)) > 0.05
    np.testing.assert_allclose(made, found.numpy(), atol=1e-4)

    sampler = DDIM(alpha_bar=tuple(alpha_bar("linear", 1000).tolist()), num_steps=5)
    steps = sampler.steps()
    columns = (steps.timestep, steps.alpha_bar, steps.alpha_bar_next)
    listed = list(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
    drawn = torch_mdn.sample(theirs.denoiser, code, y, listed)
    ours = jax.jit(
        lambda noise: sampler.sample(
            lambda y, t: denoiser.apply({"params": denoising}, y, t, context),
            noise,
            jax.random.key(0),
        )
    )(noise)
    np.testing.assert_allclose(ours, drawn.numpy(), atol=1e-4)
