"""Files of style statistics: the distribution of style codes and its provenance, which decides which runs may use it.

A file is an `.npz` of `mean`, `covariance` (float64), `factor` (float32, covariance = factor factor^T) and
`provenance` (JSON with the fields of `Provenance`). Style-augmentation's `checkpoint_embeddings.pth` (79,433 paintings,
"Painter By Numbers") can also be read.
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
from crossearth_jax.runtime.buckets import local_copy
from crossearth_jax.weights.style_files import style_digest
from crossearth_jax.weights.torch_file import read_torch

SHIPPED_FILE = "style_statistics.npz"  # in crossearth_jax/assets, for the "mobile" network

_ARRAYS = ("mean", "covariance", "factor")
_PAINTINGS = {"mean": "pbn_embedding_mean", "covariance": "pbn_embedding_covariance"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of style statistics."""

    network: StyleKind  # network whose codes were measured
    digest: str  # `weights.style_files.style_digest` of its parameters; "" if unknown
    count: int  # number of images
    sources: tuple[str, ...]  # description of the images, for readers
    domains: tuple[str, ...] = ()  # domains among the sources
    allowed_targets: tuple[str, ...] = ()  # target domains that were included on request


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """Mean, covariance and covariance factor (U sqrt(S)) of style codes."""

    mean: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]
    factor: Float[np.ndarray, "k k"]
    provenance: Provenance

    @property
    def sampler(self) -> StyleStatistics:
        """Return the distribution that Earth-Style Injection samples from, in float32."""
        # Host arrays, since they become constants of the training step, which may be compiled for absent devices.
        return StyleStatistics(self.mean.astype(np.float32), self.factor.astype(np.float32))

    def check_network(self, params: Mapping[str, jax.Array]) -> None:
        """Check that these are statistics of the network with these parameters.

        Raises:
          UserError: they belong to another network, whose codes cannot be used with this one.
        """
        known, found = self.provenance.digest, style_digest(params)
        if known and known != found:
            raise UserError(
                f"the style statistics belong to a '{self.provenance.network}' network with digest {known[:12]}, "
                f"the loaded one has {found[:12]}; estimate them again: crossearth_jax.estimate_style --weights=FILE"
            )
        if not known:
            logging.warning("the style statistics do not name the weights they belong to, so this was not checked")

    def check_targets(self, source: str, data_dir: str) -> tuple[str, ...]:
        """Check that a run trained on `source` uses no styles of its target domains.

        Args:
          source: the source domain, or several joined by "+".
          data_dir: folder of the prepared datasets.

        Returns:
          Target domains among the sources of the statistics that were allowed when the file was written; the run must
          record them.

        Raises:
          UserError: a target domain is among the sources of the statistics and was not allowed.
        """
        targets = targets_among(self.provenance.domains, source, data_dir)
        refused = [target for target in targets if target not in self.provenance.allowed_targets]
        if refused:
            raise UserError(
                f"the style statistics were estimated from {', '.join(refused)}, which a run trained on {source} is "
                "scored on; estimate them without it, or with --allow_target to record that its images were used"
            )
        if targets:
            logging.warning(
                "the style statistics contain the targets %s, allowed by --allow_target", ", ".join(targets)
            )
        return targets


def targets_among(domains: Iterable[str], source: str, data_dir: str) -> tuple[str, ...]:
    """Return those of `domains` that contain images of a target domain of `source`, in their order.

    An unlabelled domain is included if its dataset has a target domain, since it may contain images of all domains of
    the dataset.
    """
    targets = {setting.target for setting in settings_from(source, data_dir) if setting.cross_domain}
    datasets = {target.split("/")[0] for target in targets}
    unlabelled = {domain.name for domain in DOMAINS.values() if domain.taxonomy is None and domain.dataset in datasets}
    return tuple(name for name in domains if name in targets | unlabelled)


def load_statistics(path: str | os.PathLike[str] | None, kind: StyleKind) -> CodeStatistics:
    """Read the statistics of a style network.

    Args:
      path: `.npz` written by `estimate_style`, or style-augmentation's `checkpoint_embeddings.pth` ("inception"). None:
        the file shipped with the package ("mobile").
      kind: the network that will use them.

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
    with local_copy(path) as path:
        statistics = _read_paintings(path) if path.suffix == ".pth" else _read_npz(path)
    found = statistics.provenance.network
    if found != kind:
        raise UserError(
            f"{path} holds statistics of the '{found}' style network, expected '{kind}', since their codes differ; "
            f"estimate them with crossearth_jax.estimate_style --backend={kind}"
        )
    return statistics


def save_statistics(path: str | os.PathLike[str], statistics: CodeStatistics) -> None:
    """Write a file that `load_statistics` reads, atomically.

    Raises:
      UserError: the file cannot be written.
    """
    provenance = json.dumps(dataclasses.asdict(statistics.provenance))
    arrays = {name: getattr(statistics, name) for name in _ARRAYS}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, provenance=np.asarray(provenance))


def from_moments(
    mean: Float[np.ndarray, " k"], covariance: Float[np.ndarray, "k k"], provenance: Provenance
) -> CodeStatistics:
    """Build the statistics from mean and covariance.

    As in the reference, the covariance factor is computed in float64 and rounded to float32.
    """
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
