"""PyTorch's side: the same networks with as many parameters, and a product of matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.parts.torch_cunet import CUNet
from benchmarks.parts.torch_mdn import MDN, sample
from benchmarks.parts.torch_steps import check_parameters, stepping
from benchmarks.studies.worker import Prepared, repeated

KINDS: dict[str, Callable[..., nn.Module]] = {"mdn": MDN, "cunet": CUNet, "m1": CUNet}


def training(given: dict[str, Any], stage: str, mode: str, smoke: bool) -> Prepared:
    """A step of a network on a batch of noise.

    Args:
      given: `cases.torch_options`.
      stage: whose network.
      mode: "eager" or "compiled", and "channels last" where it names that.
      smoke: see `repeated`.
    """
    batch, size, options = given["batch"], given["size"], given["networks"][stage]
    model = _model(given, stage)
    sources = torch.randn(batch, options["sources"], size, size)
    width = options["representation"]
    inputs: tuple[torch.Tensor | None, ...]
    if stage == "mdn":
        inputs = sources, torch.randn(batch, width), torch.randint(0, 1000, (batch,))
        targets = torch.randn(batch, width)
    else:
        inputs = sources, torch.randn(batch, width) if width else None
        targets = torch.randn(batch, options["targets"], size, size)
    step = stepping(model, inputs, targets, "channels last" in mode, "compiled" in mode)
    return {"parameters": options["parameters"]}, repeated(_calls(step), smoke)


def sampling(given: dict[str, Any], stage: str, mode: str, smoke: bool) -> Prepared:
    """MDN's samples for a batch of noise, and what C-UNet makes of them where it is the stage."""
    batch, size = given["batch"], given["size"]
    mdn: Any = _model(given, "mdn").eval()
    cunet: Any = _model(given, "cunet").eval() if stage == "cunet" else None
    encoder, denoiser = mdn.encoder, mdn.denoiser
    layout = torch.channels_last if "channels last" in mode else torch.contiguous_format
    if cunet is not None:
        cunet = cunet.to(memory_format=layout)
    if "compiled" in mode:
        encoder, denoiser = torch.compile(encoder), torch.compile(denoiser)
        cunet = cunet and torch.compile(cunet)
    options = given["networks"]["mdn"]
    sources = torch.randn(batch, options["sources"], size, size).to(memory_format=layout)
    noise = torch.randn(batch, options["representation"])

    @torch.inference_mode()
    def once() -> torch.Tensor:
        y = sample(denoiser, encoder(sources), noise, given["steps"])
        return y if cunet is None else cunet(sources, y)

    parameters = sum(network["parameters"] for network in given["networks"].values())
    return {"parameters": parameters}, repeated(_calls(once), smoke)


def _model(given: dict[str, Any], stage: str) -> nn.Module:
    """A network, which has as many parameters as ours."""
    options = dict(given["networks"][stage])
    expected = options.pop("parameters")
    model = KINDS[stage](**options)
    check_parameters(stage, model, expected)
    return model


def product(side: int, smoke: bool) -> Prepared:
    """A product of large matrices."""
    left, right = torch.randn(2, side, side)
    return {"flops": 2 * side**3}, repeated(_calls(lambda: left @ right), smoke)


def _calls(call: Callable[[], Any]) -> Callable[[int], None]:
    def calls(number: int) -> None:
        for _ in range(number):
            call()

    return calls
