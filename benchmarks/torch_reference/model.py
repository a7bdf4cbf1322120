"""The whole network, its scores, and the loading of a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from .backbone import Backbone
from .head import Head, enlarged
from .mim import TaskHead


class CrossEarth(nn.Module):
    """Segmentation network; `config` is the JSON of `crossearth_jax.config.ModelConfig`."""

    def __init__(self, config: dict):
        super().__init__()
        head = config["head"]
        self.window, self.classes = config["vit"]["image_size"], config["classes"]
        self.backbone = Backbone(config["vit"], config["reins"], head["width"])
        self.decode_head = Head(config["vit"]["width"], head, config["classes"])
        if mim := config["mim"]:
            self.task_head = TaskHead(config["vit"]["width"], mim)
            self.mask_token = nn.Parameter(torch.zeros(1, 3, mim["token_size"], mim["token_size"]))

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], ...]:
        """Map normalised images (b, 3, h, w) to class logits and mask logits of all predictions."""
        return self.decode_head(*self.backbone(images))

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores (b, k, h, w): class probability times mask probability, summed over queries."""
        classes, masks = (x[-1] for x in self(images))
        masks = enlarged(masks, images.shape[2:]).sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Return reconstructions (b, 3, s, s) of content-masked images."""
        levels, _ = self.backbone(images)
        return self.task_head(levels)

    def freeze(self) -> list[nn.Parameter]:
        """Freeze everything except Reins, heads and mask token; return the trainable parameters."""
        trainable = ("decode_head.", "backbone.reins.", "task_head.", "mask_token")
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.startswith(trainable)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def load(config: dict, path: str) -> CrossEarth:
    """Return the network with the weights of a checkpoint; tensors that the network does not have are ignored."""
    with torch.device("meta"):
        model = CrossEarth(config)
    tensors = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    own = {name: tensors[name].clone() for name in model.state_dict()}
    model.load_state_dict(own, assign=True)
    return model.eval()
