"""DINOv2 with LoRAReins, as CrossEarth uses it. Parameters have the names of published checkpoints."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value; uses PyTorch's fused kernel."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (b, n, c) to (b, n, c)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Feed-forward layers with exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (b, n, c) to (b, n, c)."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Gain(nn.Module):
    """LayerScale."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale every channel."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = Gain(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)
        self.ls2 = Gain(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (b, n, c) to (b, n, c)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Reins(nn.Module):
    """Low-rank tokens that refine the features after every block, and the decoder queries computed from them."""

    def __init__(self, depth: int, width: int, tokens: int, rank: int, query_width: int):
        super().__init__()
        self.learnable_tokens_a = nn.Parameter(torch.zeros(depth, tokens, rank))
        self.learnable_tokens_b = nn.Parameter(torch.zeros(depth, rank, width))
        self.scale = nn.Parameter(torch.zeros(()))
        self.mlp_token2feat = nn.Linear(width, width)
        self.mlp_delta_f = nn.Linear(width, width)
        self.transform = nn.Linear(width, query_width)
        self.merge = nn.Linear(3 * query_width, query_width)

    def forward(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Refine the patch tokens (not the class token) after block `layer`."""
        class_token, features = x[:, :1], x[:, 1:]
        tokens = self.learnable_tokens_a[layer] @ self.learnable_tokens_b[layer]
        weights = torch.softmax(features @ tokens.T * features.shape[-1] ** -0.5, dim=-1)
        update = weights[..., 1:] @ self.mlp_token2feat(tokens[1:])
        return torch.cat([class_token, features + self.scale * self.mlp_delta_f(update + features)], dim=1)

    def queries(self) -> torch.Tensor:
        """Return the decoder queries (tokens, query_width)."""
        y = self.transform(self.learnable_tokens_a @ self.learnable_tokens_b)
        return self.merge(torch.stack([y.max(0).values, y.mean(0), y[-1]], dim=-1).flatten(1))


class PatchEmbedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class Backbone(nn.Module):
    """Image to four feature maps at strides 4, 8, 16 and 32, and the decoder's queries."""

    def __init__(self, vit: dict, reins: dict, query_width: int):
        super().__init__()
        width, self.patch, self.feature_blocks = vit["width"], vit["patch_size"], set(vit["feature_blocks"])
        side = vit["image_size"] // self.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # no effect; in every checkpoint
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        self.patch_embed = PatchEmbedding(width, self.patch)
        self.blocks = nn.ModuleList(Block(width, vit["heads"], vit["mlp_width"]) for _ in range(vit["depth"]))
        self.norm = nn.LayerNorm(width)  # no effect; in every checkpoint
        self.reins = Reins(vit["depth"], width, reins["tokens"], reins["rank"], query_width)

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Return the position embeddings, interpolated to a grid of `height` x `width` patches."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (height, width) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        factors = ((height + 0.1) / side, (width + 0.1) / side)
        grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Map normalised images (b, 3, h, w) to four feature maps (b, c, …) and queries (q, d)."""
        patches = self.patch_embed.proj(images)
        height, width = patches.shape[2:]
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = tokens + self.positions(height, width)
        levels = []
        for i, block in enumerate(self.blocks):
            x = self.reins(block(x), i)
            if i in self.feature_blocks:
                levels.append(x[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
        return [
            resized(level, factor) for level, factor in zip(levels, (4, 2, 1, 0.5), strict=True)
        ], self.reins.queries()


def resized(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Resize bilinearly by a factor."""
    if factor == 1:
        return x
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
