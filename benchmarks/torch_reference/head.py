"""Mask2Former's head in the configuration of CrossEarth. Parameters have the names of published checkpoints."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

LEVELS = 3


def sine_encoding(height: int, width: int, features: int, device: torch.device) -> torch.Tensor:
    """Return position encodings (features, height, width): half of the channels encode the row, half the column."""
    half = features // 2
    frequency = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)

    def axis(length: int) -> torch.Tensor:
        angle = torch.arange(1, length + 1, device=device)[:, None] / (length + 1e-6) * 2 * math.pi / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)

    rows, columns = axis(height)[:, None].expand(-1, width, -1), axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).permute(2, 0, 1)


def feed_forward(width: int, hidden: int) -> nn.Module:
    """Create two linear layers with the reference's parameter names."""
    module = nn.Module()
    module.layers = nn.ModuleList([nn.Sequential(nn.Linear(width, hidden), nn.ReLU()), nn.Linear(hidden, width)])
    return module


def fed_forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply the module of `feed_forward` with a residual connection."""
    first, second = module.layers
    return x + second(first(x))


class ConvNorm(nn.Module):
    """Convolution and group norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, bias: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.gn = nn.GroupNorm(groups, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, then normalise."""
        return self.gn(self.conv(x))


class DeformableAttention(nn.Module):
    """Samples a few points per head, level and query by `grid_sample`."""

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        self.heads, self.points = heads, points
        self.sampling_offsets = nn.Linear(width, heads * LEVELS * points * 2)
        self.attention_weights = nn.Linear(width, heads * LEVELS * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, position: torch.Tensor, references: torch.Tensor, sizes: list) -> torch.Tensor:
        """Map tokens (b, n, d) to (b, n, d)."""
        batch, count, _ = x.shape
        query = x + position
        values = self.value_proj(x).unflatten(-1, (self.heads, -1)).split([h * w for h, w in sizes], dim=1)
        offsets = self.sampling_offsets(query).view(batch, count, self.heads, LEVELS, self.points, 2)
        weights = self.attention_weights(query).view(batch, count, self.heads, -1).softmax(-1)
        extents = torch.tensor([[w, h] for h, w in sizes], dtype=x.dtype, device=x.device)
        locations = 2 * (references[:, None, None, None] + offsets / extents[:, None]) - 1
        sampled = []
        for level, (height, width) in enumerate(sizes):
            maps = values[level].permute(0, 2, 3, 1).reshape(batch * self.heads, -1, height, width)
            grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)
            sampled.append(functional.grid_sample(maps, grid, align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, -1)
        total = (torch.cat(sampled, dim=-1) * weights).sum(-1)
        return self.output_proj(total.view(batch, -1, count).transpose(1, 2))


class EncoderLayer(nn.Module):
    """Post-norm layer of the pixel decoder."""

    def __init__(self, width: int, heads: int, points: int, hidden: int):
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, points)
        self.ffn = feed_forward(width, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: torch.Tensor, position: torch.Tensor, references: torch.Tensor, sizes: list) -> torch.Tensor:
        """Map tokens (b, n, d) to (b, n, d)."""
        x = self.norms[0](x + self.self_attn(x, position, references, sizes))
        return self.norms[1](fed_forward(self.ffn, x))


class PixelDecoder(nn.Module):
    """Four feature maps to three memories (strides 32, 16, 8) and the mask features (stride 4)."""

    def __init__(self, inputs: int, head: dict):
        super().__init__()
        width, groups = head["width"], head["groups"]
        self.input_convs = nn.ModuleList(ConvNorm(inputs, width, 1, groups, True) for _ in range(LEVELS))
        self.level_encoding = nn.Embedding(LEVELS, width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            EncoderLayer(width, head["heads"], head["points"], head["encoder_mlp_width"])
            for _ in range(head["encoder_layers"])
        )
        self.lateral_convs = nn.ModuleList([ConvNorm(inputs, width, 1, groups, False)])
        self.output_convs = nn.ModuleList([ConvNorm(width, width, 3, groups, False)])
        self.mask_feature = nn.Conv2d(width, width, 1)

    def forward(self, levels: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Fuse the levels."""
        maps = [conv(level) for conv, level in zip(self.input_convs, reversed(levels[1:]), strict=True)]
        sizes = [tuple(x.shape[2:]) for x in maps]
        width = maps[0].shape[1]
        device = maps[0].device
        encodings = [sine_encoding(h, w, width, device).flatten(1).T for h, w in sizes]
        position = torch.cat([x + self.level_encoding.weight[i] for i, x in enumerate(encodings)])
        references = torch.cat([_centres(h, w, device) for h, w in sizes])
        x = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        for layer in self.encoder.layers:
            x = layer(x, position, references, sizes)
        parts = x.split([h * w for h, w in sizes], dim=1)
        memories = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        lateral = self.lateral_convs[0](levels[0])
        fused = lateral + enlarged(memories[-1], lateral.shape[2:])
        return memories, self.mask_feature(functional.relu(self.output_convs[0](fused)))


def _centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    rows, columns = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def enlarged(x: torch.Tensor, size: tuple) -> torch.Tensor:
    """Resize bilinearly to a size."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class PackedAttention(nn.Module):
    """`nn.MultiheadAttention` with the reference's parameter name."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None):
        """Attend; positions where `mask` is True are excluded."""
        return self.attn(query, key, value, attn_mask=mask, need_weights=False)[0]


class DecoderLayer(nn.Module):
    """Post-norm layer: masked cross-attention, self-attention, feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.cross_attn = PackedAttention(width, heads)
        self.self_attn = PackedAttention(width, heads)
        self.ffn = feed_forward(width, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, position: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask):
        """Map queries (b, q, d) to (b, q, d)."""
        x = self.norms[0](x + self.cross_attn(x + position, key, value, mask))
        x = self.norms[1](x + self.self_attn(x + position, x + position, x))
        return self.norms[2](fed_forward(self.ffn, x))


class Head(nn.Module):
    """Feature maps to classes and masks of every prediction."""

    def __init__(self, inputs: int, head: dict, classes: int):
        super().__init__()
        width = head["width"]
        self.heads = head["heads"]
        self.pixel_decoder = PixelDecoder(inputs, head)
        self.transformer_decoder = nn.Module()
        self.transformer_decoder.layers = nn.ModuleList(
            DecoderLayer(width, head["heads"], head["decoder_mlp_width"]) for _ in range(head["decoder_layers"])
        )
        self.transformer_decoder.post_norm = nn.LayerNorm(width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.querys2feat = nn.Linear(width, width)
        self.cls_embed = nn.Linear(width, classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def predict(self, x: torch.Tensor, features: torch.Tensor, size: tuple) -> tuple[torch.Tensor, ...]:
        """Return class logits, mask logits at stride 4, and the attention mask of the next layer (True: excluded)."""
        z = self.transformer_decoder.post_norm(x)
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_embed(z), features)
        forbidden = (enlarged(masks.detach(), size).sigmoid() < 0.5).flatten(2)
        forbidden = forbidden & ~forbidden.all(-1, keepdim=True)
        return self.cls_embed(z), masks, forbidden.repeat_interleave(self.heads, dim=0)

    def forward(self, levels: list[torch.Tensor], queries: torch.Tensor) -> tuple[list[torch.Tensor], ...]:
        """Return the class logits (b, q, k + 1) and mask logits (b, q, h, w) of all predictions."""
        memories, features = self.pixel_decoder(levels)
        values, keys = [], []
        for level, memory in enumerate(memories):
            value = memory.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
            values.append(value)
            encoding = sine_encoding(*memory.shape[2:], memory.shape[1], memory.device)
            keys.append(value + encoding.flatten(1).T)
        x = self.querys2feat(queries).expand(len(features), -1, -1)
        sizes = [memory.shape[2:] for memory in memories]
        classes, masks, forbidden = self.predict(x, features, sizes[0])
        predictions = [(classes, masks)]
        for i, layer in enumerate(self.transformer_decoder.layers):
            level = i % LEVELS
            x = layer(x, queries, keys[level], values[level], forbidden)
            classes, masks, forbidden = self.predict(x, features, sizes[(i + 1) % LEVELS])
            predictions.append((classes, masks))
        return tuple(map(list, zip(*predictions, strict=True)))
