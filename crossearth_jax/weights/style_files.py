"""Weights of the style transfer networks: the shipped file, our safetensors, and the published PyTorch files.

PyTorch tensors come from style-augmentation (`checkpoint_transformer.pth` and `checkpoint_stylepredictor.pth`) or
from a CrossEarth checkpoint, which contains style predictor and style transformer below `augmentor.`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from absl import logging
from einops import rearrange

from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.runtime.buckets import local_copy
from crossearth_jax.weights.torch_file import read_torch
from crossearth_jax.weights.torch_types import Tensor

MOBILE_FILE = "style_mobile.safetensors"  # in crossearth_jax/assets
TRANSFORMER_FILE, PREDICTOR_FILE = "checkpoint_transformer.pth", "checkpoint_stylepredictor.pth"

SCALE = ".scale"  # suffix of the step sizes of a quantised tensor

_BATCH_NORM_EPSILON = 1e-3  # of torchvision's Inception

# Published module -> our module. `fc_gamma` gives the scale of normalised features, `fc_beta` their shift.
_MODULES = (
    (r"ghiasi\.layers\.([0-2])\.conv", lambda m: f"transformer/contract/{m[1]}"),
    (
        r"ghiasi\.layers\.([3-7])\.(conv|fc_gamma|fc_beta)([12])",
        lambda m: f"transformer/residual/{int(m[1]) - 3}/conv{m[3]}/{_PARTS[m[2]]}",
    ),
    (
        r"ghiasi\.layers\.(8|9|10)\.(conv|fc_gamma|fc_beta)",
        lambda m: f"transformer/expand/{int(m[1]) - 8}/{_PARTS[m[2]]}",
    ),
    (r"stylePredictor\.(.+)\.conv", lambda m: f"predictor/{m[1].replace('.', '/')}/conv"),
    (r"stylePredictor\.fc", lambda m: "predictor/fc"),
)
_PARTS = {"conv": "conv", "fc_gamma": "scale", "fc_beta": "shift"}


def load_style(network: StyleNetwork, path: str | Path | None = None) -> dict[str, jax.Array]:
    """Load the parameters of a style transfer network.

    Args:
      network: the network.
      path: a `.safetensors` of ours (also a converted CrossEarth checkpoint), a CrossEarth `.pth`, or the two files of
        style-augmentation, which must be in one folder: that folder, or one of the files. None: the file shipped with
        the package ("mobile").

    Raises:
      UserError: the file is missing or damaged, or belongs to another network.
    """
    if path is None:
        if network.kind != "mobile":
            raise UserError(
                f"the '{network.kind}' style network is not shipped; name its weights: the folder with "
                f"style-augmentation's {TRANSFORMER_FILE} and {PREDICTOR_FILE}, or a CrossEarth checkpoint"
            )
        path = Path(str(importlib.resources.files("crossearth_jax") / "assets" / MOBILE_FILE))
    with local_copy(path) as path:
        if path.suffix == ".safetensors":
            params = _ours(path)
        else:
            params, unused = from_torch(torch_tensors(path))
            if unused:
                logging.info("%s: %d tensors are not part of the style network, e.g. %s", path, len(unused), unused[0])
    return {name: jnp.asarray(value) for name, value in checked(network, params, str(path)).items()}


def style_digest(params: Mapping[str, jax.Array]) -> str:
    """Return the SHA-256 of names, shapes and float32 values of a style network's parameters (`style/…`)."""
    digest = hashlib.sha256()
    for name in sorted(name for name in params if name.startswith("style/")):
        value = np.asarray(params[name], np.float32)
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def legacy_files(path: Path) -> tuple[Path, Path] | None:
    """Return style-augmentation's two files if `path` is their folder or one of them, else None.

    Raises:
      UserError: only one of them exists.
    """
    folder = path.parent if path.name in (TRANSFORMER_FILE, PREDICTOR_FILE) else path
    transformer, predictor = folder / TRANSFORMER_FILE, folder / PREDICTOR_FILE
    missing = [file.name for file in (transformer, predictor) if not file.exists()]
    if len(missing) == 1:
        raise UserError(
            f"{folder} holds one half of the style network, and {missing[0]} is missing; put {TRANSFORMER_FILE} and "
            f"{PREDICTOR_FILE} of style-augmentation into one folder and name that folder"
        )
    return None if missing else (transformer, predictor)


def torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of the style network from a CrossEarth checkpoint or from style-augmentation's files.

    Returns:
      Arrays by published name: `ghiasi.…` and `stylePredictor.…`.

    Raises:
      UserError: a file is missing or damaged.
    """
    files = legacy_files(path) or (path,)
    found: dict[str, np.ndarray] = {}
    for file in map(read_torch, files):
        tensors = _flat(file.content).items()
        found |= {name: file.array(tensor) for name, tensor in tensors if isinstance(tensor, Tensor)}
    return found


def _flat(content: Any) -> dict[str, Any]:
    """Return the tensors of one PyTorch file under their published names, `ghiasi.…` and `stylePredictor.…`."""
    content = content if isinstance(content, Mapping) else {}
    for key, prefix in (("state_dict_ghiasi", "ghiasi"), ("state_dict_stylepredictor", "stylePredictor")):
        if key in content:
            return {f"{prefix}.{name}": tensor for name, tensor in content[key].items()}
    tensors = content.get("state_dict", content)
    return {name: tensor for key, tensor in tensors.items() if (name := _published(str(key)))}


def _published(name: str) -> str | None:
    """Return the published name inside a longer name, such as that in a CrossEarth checkpoint; None for others."""
    match = re.search(r"(?:^|\.)((?:ghiasi|stylePredictor)\..+)", name)
    return match and match[1]


def from_torch(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Convert the published style network; the batch norms of the predictor are folded into its convolutions.

    Args:
      tensors: by published name, `ghiasi.…` and `stylePredictor.…`.

    Returns:
      The parameters of the "inception" network for which there are tensors, and the names of tensors that are not used.
    """
    params: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for name in tensors:
        module = name.removesuffix(".weight")
        if module == name:
            continue
        ours = next((rename(match) for pattern, rename in _MODULES if (match := re.fullmatch(pattern, module))), None)
        if ours is not None:
            source = {leaf: tensors[full] for leaf in _LEAVES if (full := _full_name(module, leaf)) in tensors}
            params |= {f"style/{ours}/{leaf}": value for leaf, value in _kernel_and_bias(source).items()}
            used |= {_full_name(module, leaf) for leaf in _LEAVES}
    return params, tuple(name for name in tensors if name not in used)


_LEAVES = (
    "weight",
    "bias",
    *(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
)


def _full_name(module: str, leaf: str) -> str:
    """Return the name of a leaf of a module. A batch norm is not below its convolution, but beside it."""
    return f"{module.removesuffix('conv')}{leaf}" if leaf.startswith("bn.") else f"{module}.{leaf}"


def _kernel_and_bias(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return kernel and bias of one convolution or linear layer in our layout, with its batch norm folded in."""
    weight, bias = source["weight"].astype(np.float64), source.get("bias")
    if "bn.running_var" in source:
        gain = source["bn.weight"] / np.sqrt(source["bn.running_var"].astype(np.float64) + _BATCH_NORM_EPSILON)
        weight = weight * gain[:, None, None, None]
        bias = source["bn.bias"] - source["bn.running_mean"] * gain
    pattern = "o i h w -> h w i o" if weight.ndim == 4 else "o i -> i o"
    leaves = {"kernel": rearrange(weight, pattern)} | ({} if bias is None else {"bias": bias})
    return {leaf: np.ascontiguousarray(value, np.float32) for leaf, value in leaves.items()}


def dequantise(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Multiply integers by their step sizes per output channel (last axis); return float32 values."""
    names = [name for name in tensors if not name.endswith(SCALE)]
    steps = {name: tensors.get(f"{name}{SCALE}", np.float32(1)) for name in names}
    return {name: tensors[name].astype(np.float32) * steps[name] for name in names}


def _ours(path: Path) -> dict[str, np.ndarray]:
    """Read the parameters from a file of ours: a style network, or a converted checkpoint that contains one."""
    try:
        with safetensors.safe_open(path, "numpy") as file:  # pyright: ignore[reportPrivateImportUsage]
            names = [name for name in file.keys() if name.startswith("style/") or _published(name)]
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; expected a safetensors file of style-network weights") from None
    own = {name: value for name, value in tensors.items() if name.startswith("style/")}
    return dequantise(own) if own else from_torch(_flat(tensors))[0]


def checked(network: StyleNetwork, params: Mapping[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """Return the parameters of `network` from `params`, which may have other entries; check that they are complete.

    Raises:
      UserError: a parameter is missing or has another shape; the message names `origin`.
    """
    shapes = network.shapes()
    wrong = [name for name, spec in shapes.items() if name not in params or params[name].shape != spec.shape]
    if wrong:
        found = f"has shape {params[wrong[0]].shape}" if wrong[0] in params else "is missing"
        raise UserError(
            f"{origin} does not hold the '{network.kind}' style network: {len(wrong)} of {len(shapes)} parameters do "
            f"not fit, e.g. {wrong[0]} {found}, expected {shapes[wrong[0]].shape}"
        )
    return {name: params[name] for name in shapes}
