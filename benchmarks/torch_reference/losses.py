"""Mask2Former's set loss with semantic targets (one mask per class), as in CrossEarth's training."""

from __future__ import annotations

import dataclasses

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

EPSILON = torch.finfo(torch.float32).eps


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Parameters of the loss."""

    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1


def sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample maps (n, h, w) bilinearly at points (n, p, 2) in [0, 1]; return (n, p), zeros outside."""
    return functional.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def targets_of(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classes in one label map and their binary masks."""
    present = labels.unique()
    present = present[present != 255]
    return present.long(), (labels == present[:, None, None]).float()


@torch.no_grad()
def assign(config: LossConfig, classes: torch.Tensor, masks: torch.Tensor, present, targets, points):
    """Return the queries and targets of one image, matched at minimum cost."""
    logits = sample(masks, points.expand(len(masks), -1, -1))
    truth = sample(targets, points.expand(len(targets), -1, -1))
    positive, negative = functional.softplus(-logits), functional.softplus(logits)
    cross_entropy = (positive @ truth.T + negative @ (1 - truth).T) / logits.shape[1]
    mask = logits.sigmoid()
    dice = 1 - (2 * mask @ truth.T + 1) / (mask.sum(1)[:, None] + truth.sum(1) + 1)
    cost = -config.class_weight * classes.softmax(-1)[:, present]
    cost = cost + config.mask_weight * cross_entropy + config.dice_weight * dice
    queries, chosen = (torch.as_tensor(x, device=cost.device) for x in linear_sum_assignment(cost.cpu().numpy()))
    return queries, chosen


@torch.no_grad()
def uncertain_points(config: LossConfig, masks: torch.Tensor) -> torch.Tensor:
    """Sample points for the mask losses: a share `importance` where the logits are nearest to 0, the rest at random."""
    count = int(config.importance * config.points)
    candidates = torch.rand(len(masks), int(config.oversample * config.points), 2, device=masks.device)
    nearest = (-sample(masks, candidates).abs()).topk(count, dim=1).indices
    chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    rest = torch.rand(len(masks), config.points - count, 2, device=masks.device)
    return torch.cat([chosen, rest], dim=1)


def prediction_loss(config: LossConfig, classes: torch.Tensor, masks: torch.Tensor, labels: torch.Tensor):
    """Return class, mask and Dice losses of a prediction: (b, q, k + 1), (b, q, h, w), labels (b, H, W)."""
    no_object = classes.shape[-1] - 1
    device = classes.device
    goal = torch.full(classes.shape[:2], no_object, device=device)
    matched, truths, count = [], [], 0
    for i, image in enumerate(labels):
        present, targets = targets_of(image)
        points = torch.rand(1, config.points, 2, device=device)
        queries, chosen = assign(config, classes[i], masks[i], present, targets, points)
        goal[i, queries] = present[chosen]
        matched.append(masks[i, queries])
        truths.append(targets[chosen])
        count += max(len(queries), 1)
    weight = torch.ones(no_object + 1, device=device)
    weight[no_object] = config.no_object_weight
    entropy = functional.cross_entropy(classes.flatten(0, 1), goal.flatten(), weight, reduction="sum")
    class_loss = config.class_weight * entropy / (weight[goal].sum() + EPSILON)
    masks, truths = torch.cat(matched), torch.cat(truths)
    if not len(masks):
        return class_loss, masks.sum(), masks.sum()
    points = uncertain_points(config, masks.detach())
    logits = sample(masks, points)
    with torch.no_grad():
        truth = sample(truths, points)
    mask_loss = functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    mask = logits.sigmoid()
    dice = 1 - (2 * (mask * truth).sum(1) + 1) / (mask.sum(1) + truth.sum(1) + 1)
    return (
        class_loss,
        config.mask_weight * mask_loss / (count * config.points + EPSILON),
        config.dice_weight * dice.sum() / (count + EPSILON),
    )


def set_loss(config: LossConfig, classes: list, masks: list, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of the losses of all predictions."""
    return sum(sum(prediction_loss(config, *prediction, labels)) for prediction in zip(classes, masks, strict=True))
