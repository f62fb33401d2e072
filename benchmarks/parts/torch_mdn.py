"""MDN in PyTorch, as one would write it there: the network, the encoder of the sources, and DDIM.

The default network alone: `decouple="streams"`, `condition="source"`, x0 predicted, eta 0. A test
holds network and samples to ours with the same parameters.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from benchmarks.parts.torch_cunet import EPSILON


class Layer(nn.Sequential):
    """LayerNorm, SiLU and a linear layer."""

    def __init__(self, inputs: int, features: int):
        super().__init__(nn.LayerNorm(inputs, eps=EPSILON), nn.SiLU(), nn.Linear(inputs, features))


class ResidualBlock(nn.Module):
    """Input, timestep, source and output layer, beside a residual."""

    def __init__(self, width: int, context: int):
        super().__init__()
        self.input, self.timestep = Layer(width, width), Layer(width, width)
        self.source, self.output = Layer(context, width), Layer(width, width)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """[b, w], [b, w] and [b, c] to [b, w]."""
        return x + self.output(self.input(x) + self.timestep(time) + self.source(context))


class Denoiser(nn.Module):
    """One linear layer and one tower of blocks a modality, joined at the end."""

    def __init__(self, representation: int, targets: int, width: int, blocks: int, context: int):
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.decouple = nn.ModuleList(nn.Linear(representation, width) for _ in range(targets))
        self.towers = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width, context) for _ in range(blocks))
            for _ in range(targets)
        )
        self.out = Layer(targets * width, representation)

    def forward(self, y: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """y_t [b, d], timesteps [b] and the code [b, c] to the prediction of y_0."""
        half = self.width // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=y.device) / half)
        angles = t[:, None].to(y.dtype) * rates
        time = self.time(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        streams, towers = [], cast(Any, self.towers)
        for enter, tower in zip(self.decouple, towers, strict=True):
            x = enter(y)
            for block in tower:
                x = block(x, time, context)
            streams.append(x)
        return self.out(torch.cat(streams, dim=-1))


class SourceEncoder(nn.Module):
    """Strided convolutions, an average over places and a linear layer, without dropout."""

    def __init__(self, sources: int, features: Sequence[int], width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, channels in zip((sources, *features), features, strict=False):
            layers += [
                nn.Conv2d(inputs, channels, 3, stride=2, padding=1),
                nn.GroupNorm(1, channels, eps=EPSILON),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(features[-1] + sources, width)

    def forward(self, sources: torch.Tensor) -> torch.Tensor:
        """Images [b, s, h, w] to codes [b, c]."""
        pooled = self.layers(sources).mean(dim=(2, 3)), sources.mean(dim=(2, 3))
        return self.linear(torch.cat(pooled, dim=-1))


class MDN(nn.Module):
    """Encoder and denoiser.

    Args:
      representation: length of y.
      sources: input modalities.
      targets: output modalities, a stream each.
      width: of a stream.
      blocks: of a stream.
      features: channels of the encoder's convolutions.
      context: length of the sources' code.
    """

    def __init__(
        self,
        representation: int,
        sources: int,
        targets: int,
        width: int,
        blocks: int,
        features: Sequence[int],
        context: int,
    ):
        super().__init__()
        self.encoder = SourceEncoder(sources, features, context)
        self.denoiser = Denoiser(representation, targets, width, blocks, context)

    def forward(self, sources: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Sources [b, s, h, w], y_t [b, d] and timesteps [b] to the prediction of y_0."""
        return self.denoiser(y, t, self.encoder(sources))


@torch.inference_mode()
def sample(
    denoiser: nn.Module,
    context: torch.Tensor,
    y: torch.Tensor,
    steps: Sequence[tuple[int, float, float]],
) -> torch.Tensor:
    """DDIM without noise of its own (Song et al. 2021, Eq. 12).

    Args:
      denoiser: a `Denoiser`, or what `torch.compile` made of it.
      context: the sources' code [b, c].
      y: pure noise [b, d].
      steps: the timestep, its alpha_bar and that of the next one, from the noisiest to the last.
    """
    for timestep, now, after in steps:
        t = torch.full((len(y),), timestep, device=y.device)
        found = denoiser(y, t, context)
        noise = (y - math.sqrt(now) * found) / math.sqrt(1 - now)
        y = math.sqrt(after) * found + math.sqrt(1 - after) * noise
    return y
