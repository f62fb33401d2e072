"""C-UNet and M1 in PyTorch, as one would write them there: what `pytorch` times beside ours.

The default network alone: `encoder="hybrid"`, the residual and the source skip. A
test holds it to `cdm_jax.methods.cdm.cunet_network` with the same parameters.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from cdm_jax.methods.cdm.cunet_network import NEGATIVE_SLOPE

EPSILON = 1e-6  # Flax's, of norms


class ConvBlock(nn.Sequential):
    """Two times 3x3 convolution, GroupNorm, LeakyReLU."""

    def __init__(self, inputs: int, features: int, groups: int):
        layers: list[nn.Module] = []
        for channels in (inputs, features):
            layers += [
                nn.Conv2d(channels, features, 3, padding=1, bias=False),
                nn.GroupNorm(groups, features, eps=EPSILON),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            ]
        super().__init__(*layers)


class UpSample(nn.Module):
    """Twice the size: a linear layer to 2x2 pixels."""

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.linear = nn.Conv2d(inputs, 4 * features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] to [b, features, 2 h, 2 w]."""
        return functional.pixel_shuffle(self.linear(x), 2)


class ConditionEmbedding(nn.Module):
    """Features through LayerNorm, SiLU and a 1x1 convolution, y through a perceptron, added."""

    def __init__(self, features: int, representation: int):
        super().__init__()
        self.norm = nn.LayerNorm(features, eps=EPSILON)
        self.convolution = nn.Conv2d(features, features, 1)
        self.first = nn.Linear(representation, features)
        self.second = nn.Linear(features, features)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] and [b, d] to [b, c, h, w]."""
        normalized = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        code = self.second(functional.silu(self.first(y)))
        return x + self.convolution(functional.silu(normalized)) + code[:, :, None, None]


class CUNet(nn.Module):
    """The UNet.

    Args:
      features: channels of the scales, then of the last decoder stage.
      sources: input modalities.
      targets: output modalities.
      groups: of GroupNorm.
      representation: length of y; 0 for M1, without a condition.
    """

    def __init__(
        self, features: Sequence[int], sources: int, targets: int, groups: int, representation: int
    ):
        super().__init__()
        *scales, last = features
        self.down = nn.ModuleList(
            ConvBlock(inputs, channels, groups)
            for inputs, channels in zip((sources, *scales), scales, strict=False)
        )
        self.embeddings = nn.ModuleList(
            ConditionEmbedding(channels, representation) for channels in scales if representation
        )
        self.up, self.blocks = nn.ModuleList(), nn.ModuleList()
        x = scales[-1]
        for channels, skip in zip((*scales[1:-1][::-1], last), scales[-2::-1], strict=True):
            self.up.append(UpSample(x, skip))
            self.blocks.append(ConvBlock(2 * skip, channels, groups))
            x = channels
        self.head = nn.Conv2d(last + sources, last, 1)
        self.out = nn.Conv2d(last + sources, targets, 1)

    def forward(self, sources: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """Source images [b, s, h, w] and the representation [b, d] to target images."""
        x, skips = sources, []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            x = self.embeddings[level](x, y) if self.embeddings else x
            skips.append(x)
        for up, block, skip in zip(self.up, self.blocks, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        h = functional.leaky_relu(self.head(torch.cat([x, sources], dim=1)), NEGATIVE_SLOPE)
        return self.out(torch.cat([h, sources], dim=1))
