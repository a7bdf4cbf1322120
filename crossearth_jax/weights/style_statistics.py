"""The distribution of style codes as a file: what it was estimated from, with which network, and who may use it.

A file is an `.npz` of `mean`, `covariance` (float64), `factor` (float32, covariance = factor factor^T) and
`provenance` (JSON, the fields of `Provenance`). Style-augmentation's `checkpoint_embeddings.pth` (79,433 paintings,
"Painter By Numbers") is read too.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Float

from crossearth_jax.augment.style_injection import StyleStatistics
from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.benchmark.registry import settings_from
from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleKind
from crossearth_jax.ops.moments import covariance_factor
from crossearth_jax.runtime.atomic import replacing
from crossearth_jax.weights.style_files import style_digest
from crossearth_jax.weights.torch_file import read_torch

SHIPPED_FILE = "style_statistics.npz"  # in crossearth_jax/assets, for the "mobile" network

_ARRAYS = ("mean", "covariance", "factor")
_PAINTINGS = {"mean": "pbn_embedding_mean", "covariance": "pbn_embedding_covariance"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where statistics come from."""

    network: StyleKind  # whose codes they describe
    digest: str  # `weights.style.style_digest` of that network, "" if unknown
    count: int  # images
    sources: tuple[str, ...]  # what was read, for people
    domains: tuple[str, ...] = ()  # benchmark domains among the sources
    allowed_targets: tuple[str, ...] = ()  # domains that were included although they are targets, on request


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """Mean, covariance and covariance factor (U sqrt(S)) of style codes."""

    mean: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]
    factor: Float[np.ndarray, "k k"]
    provenance: Provenance

    @property
    def sampler(self) -> StyleStatistics:
        """What Earth-Style Injection draws from, rounded to float32."""
        # Host arrays: the step they become constants of may be compiled for devices that are not there.
        return StyleStatistics(self.mean.astype(np.float32), self.factor.astype(np.float32))

    def check_network(self, params: Mapping[str, jax.Array]) -> None:
        """Makes sure that these are statistics of the network with these parameters.

        Raises:
          UserError: they are of another one; its codes mean nothing to this network.
        """
        known, found = self.provenance.digest, style_digest(params)
        if known and known != found:
            raise UserError(
                f"the style statistics belong to a '{self.provenance.network}' network with digest {known[:12]}, "
                f"the loaded one has {found[:12]}; estimate them with it: crossearth_jax.estimate_style --weights"
            )
        if not known:
            logging.warning("the style statistics do not say which weights they belong to; nothing could be checked")

    def check_targets(self, source: str, data_dir: str) -> tuple[str, ...]:
        """Makes sure that a run trained on `source` learns no styles of the domains it is scored on.

        Args:
          source: the domain, or domains joined by "+".
          data_dir: folder of the prepared datasets.

        Returns:
          Targets among the sources that were allowed on request when the file was made: the run must record them.

        Raises:
          UserError: a target is among the sources and was not allowed.
        """
        targets = targets_among(self.provenance.domains, source, data_dir)
        refused = [target for target in targets if target not in self.provenance.allowed_targets]
        if refused:
            raise UserError(
                f"the style statistics were estimated from {', '.join(refused)}, which a run trained on {source} is "
                "scored on; estimate them without it, or with --allow_target to record that they are not blind to it"
            )
        if targets:
            logging.warning("style statistics contain the targets %s, as their maker asked", ", ".join(targets))
        return targets


def targets_among(domains: Iterable[str], source: str, data_dir: str) -> tuple[str, ...]:
    """Those of `domains` that hold images of a target of `source`, in their order.

    An unlabelled domain may hold images of every domain of its dataset.
    """
    targets = {setting.target for setting in settings_from(source, data_dir) if setting.cross_domain}
    datasets = {target.split("/")[0] for target in targets}
    unlabelled = {domain.name for domain in DOMAINS.values() if domain.taxonomy is None and domain.dataset in datasets}
    return tuple(name for name in domains if name in targets | unlabelled)


def load_statistics(path: str | os.PathLike[str] | None, kind: StyleKind) -> CodeStatistics:
    """Reads the statistics of a style network.

    Args:
      path: `.npz` written by `estimate_style`, or style-augmentation's `checkpoint_embeddings.pth` ("inception"); None
        takes those shipped with the package ("mobile").
      kind: the network they are wanted for.

    Raises:
      UserError: the file is missing or damaged, or belongs to the other network.
    """
    if path is None:
        if kind != "mobile":
            raise UserError(
                f"no statistics are shipped for the '{kind}' style network; name a file: style-augmentation's "
                "checkpoint_embeddings.pth, or one written by crossearth_jax.estimate_style"
            )
        path = Path(str(importlib.resources.files("crossearth_jax") / "assets" / SHIPPED_FILE))
    path = Path(path)
    statistics = _read_paintings(path) if path.suffix == ".pth" else _read_npz(path)
    found = statistics.provenance.network
    if found != kind:
        raise UserError(
            f"{path} holds statistics of the '{found}' style network, expected '{kind}': codes of one mean nothing to "
            f"the other; estimate them with --backend={kind}"
        )
    return statistics


def save_statistics(path: str | os.PathLike[str], statistics: CodeStatistics) -> None:
    """Writes a file that `load_statistics` reads; it appears whole or not at all.

    Raises:
      UserError: the folder cannot be written.
    """
    provenance = json.dumps(dataclasses.asdict(statistics.provenance))
    arrays = {name: getattr(statistics, name) for name in _ARRAYS}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, provenance=np.asarray(provenance))


def from_moments(
    mean: Float[np.ndarray, " k"], covariance: Float[np.ndarray, "k k"], provenance: Provenance
) -> CodeStatistics:
    """Adds the covariance factor: a singular value decomposition in float64, rounded to float32 (as the reference)."""
    factor = covariance_factor(covariance).astype(np.float32)
    return CodeStatistics(mean=mean, covariance=covariance, factor=factor, provenance=provenance)


def _read_npz(path: Path) -> CodeStatistics:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            fields: dict[str, Any] = json.loads(str(file["provenance"]))
        fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        provenance = Provenance(**fields)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; expected a file of crossearth_jax.estimate_style") from None
    return CodeStatistics(**arrays, provenance=provenance)


def _read_paintings(path: Path) -> CodeStatistics:
    file = read_torch(path)
    content = file.content if isinstance(file.content, Mapping) else {}
    missing = [name for name in _PAINTINGS.values() if name not in content]
    if missing:
        raise UserError(f"{path} has no {missing[0]}; expected style-augmentation's checkpoint_embeddings.pth")
    moments = {ours: file.array(content[name]).astype(np.float64) for ours, name in _PAINTINGS.items()}
    provenance = Provenance(network="inception", digest="", count=79_433, sources=("Painter By Numbers",))
    return from_moments(**moments, provenance=provenance)
