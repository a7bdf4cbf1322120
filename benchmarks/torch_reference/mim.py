"""The reconstruction head of masked image modelling. Parameters have the names of published checkpoints."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Pyramid(nn.Module):
    """Convolutions of several dilations, shared by the four feature maps."""

    def __init__(self, inputs: int, width: int, dilations: list[int]):
        super().__init__()
        self.conv_1x1 = nn.Conv2d(inputs, width, 1)
        self.Convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.conv_1x1_2 = nn.Conv2d(len(dilations) * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (b, c, h, w) to (b, d, h, w)."""
        x = self.conv_1x1(x)
        return functional.relu(self.conv_1x1_2(torch.cat([conv(x) for conv in self.Convs], dim=1)))


class TaskHead(nn.Module):
    """Reconstruction head: four feature maps to an image."""

    def __init__(self, inputs: int, mim: dict):
        super().__init__()
        width, self.side = mim["width"], mim["image_size"]
        self.aspp_head = Pyramid(inputs, width, mim["dilations"])
        self.feature_refine_256 = nn.Sequential(nn.Conv2d(4 * width, width, 1), nn.ReLU())
        self.final_conv = nn.Conv2d(width, 3, 1)

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """Return the normalised image (b, 3, s, s)."""
        size = (self.side, self.side)
        enlarged = [
            functional.interpolate(self.aspp_head(x), size=size, mode="bilinear", align_corners=False) for x in levels
        ]
        return self.final_conv(self.feature_refine_256(torch.cat(enlarged, dim=1)))


def content_masked(images: torch.Tensor, token: torch.Tensor, ratio: float = 0.1, blocks: int = 8) -> torch.Tensor:
    """Replace random blocks of images (b, 3, h, w) by the token (1, 3, s, s), cropped to the image size.

    Each of `blocks` x `blocks` blocks is replaced with probability `ratio`.
    """
    noise = torch.rand(len(images), 1, blocks, blocks, device=images.device)
    kept = functional.interpolate((noise > ratio).float(), size=images.shape[2:], mode="nearest") > 0
    height, width = images.shape[2:]
    return torch.where(kept, images, token[..., :height, :width])


def reconstruction_loss(images: torch.Tensor, rebuilt: torch.Tensor) -> torch.Tensor:
    """Return the L1 loss of content-masked images; restyled images are not part of this comparison."""
    target = functional.interpolate(images, size=rebuilt.shape[2:], mode="bilinear", align_corners=False)
    return (rebuilt - target).abs().mean()
