"""Check a prepared split by reading every record: sizes, label values, duplicates, damaged records."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from crossearth_jax.benchmark import IGNORE, Domain
from crossearth_jax.inputs.sources import CorruptRecordError, PreparedSplit
from crossearth_jax.runtime import fingerprints
from crossearth_jax.runtime.progress import Progress

_FAULTS_SHOWN, _SIZES_SHOWN = 20, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Findings about one split; `str` gives the lines that `prepare --check` prints."""

    domain: Domain
    split: str
    images: int
    sizes: Counter[tuple[int, int]]  # (height, width) -> images
    histogram: Int[np.ndarray, 256]  # pixels per label value
    scenes: int | None = None  # images before tiling; None if unknown
    hashes: Sequence[tuple[str, int]] = ()  # image id and perceptual hash (`fingerprints`)
    notes: Sequence[str] = ()  # printed as warnings
    damaged: Sequence[str] = ()  # one message per unreadable record or duplicate in another split

    @classmethod
    def absent(cls, domain: Domain, split: str) -> SplitReport:
        """Return the report of a split that was not prepared."""
        return cls(domain=domain, split=split, images=0, sizes=Counter(), histogram=np.zeros(256, np.int64))

    @property
    def unknown(self) -> list[int]:
        """Label values that are neither a train id nor IGNORE."""
        values = np.flatnonzero(self.histogram).tolist()
        return [value for value in values if value >= len(self.domain.classes) and value != IGNORE]

    @property
    def warnings(self) -> list[str]:
        """Deviations that make scores incomparable with published ones but may be intended (a subset of the images)."""
        expected = self.domain.counts[self.split]
        return [f"{expected} images expected"] if self.images != expected else []

    @property
    def faults(self) -> list[str]:
        """Problems that must be repaired; empty if there are none."""
        largest = self.domain.sizes[self.split]
        too_large = [size for size in self.sizes if size[0] > largest[0] or size[1] > largest[1]]
        return [
            *([f"unknown label values {self.unknown}"] if self.unknown else []),
            *([f"sizes {too_large} are above {largest}"] if too_large else []),
            *self.damaged,
        ]

    def __str__(self) -> str:
        labelled = max(int(self.histogram[: len(self.domain.classes)].sum()), 1)
        shares = [f"{name} {self.histogram[i] / labelled:.1%}" for i, name in enumerate(self.domain.classes)]
        ignored = f"ignored {self.histogram[IGNORE] / max(int(self.histogram.sum()), 1):.1%}"
        sizes = ", ".join(f"{height}x{width}: {count}" for (height, width), count in sorted(self.sizes.items()))
        if len(self.sizes) > _SIZES_SHOWN:
            heights, widths = zip(*self.sizes, strict=True)
            sizes = f"{min(heights)}x{min(widths)} to {max(heights)}x{max(widths)}"
        scenes = "" if self.scenes is None else f" of {self.scenes} scenes"
        status = "" if self.faults or self.warnings or self.notes else " ok"
        lines = [f"{self.domain.name} {self.split}: {self.images} images{scenes} ({sizes}){status}"]
        lines += [f"  warning: {warning}" for warning in (*self.warnings, *self.notes)]
        lines += [f"  fault: {fault}" for fault in self.faults[:_FAULTS_SHOWN]]
        if len(self.faults) > _FAULTS_SHOWN:
            lines.append(f"  and {len(self.faults) - _FAULTS_SHOWN} more faults")
        return "\n".join([*lines, f"  {', '.join([*shares, ignored])}"])


def check_split(
    domain: Domain, split: str, data_dir: str | Path, owners: dict[str, tuple[str, str]] | None = None
) -> SplitReport:
    """Read every record of one split of a prepared domain.

    Args:
      domain: facts of the domain.
      split: name of the split.
      data_dir: folder of all prepared datasets.
      owners: image digest -> (split, id) for the splits that were checked before; the images of this split are added.

    Raises:
      UserError: the domain is not prepared or has no such split.
    """
    source = PreparedSplit(domain.name, split, data_dir)
    histogram, sizes, damaged = np.zeros(256, np.int64), Counter[tuple[int, int]](), list[str]()
    hashes = list[tuple[str, int]]()
    owners, progress, unlabelled = {} if owners is None else owners, Progress(len(source), "images"), 0
    for index in range(len(source)):
        progress.advance(note=f"{domain.name} {split}")
        try:
            record = source[index]
        except CorruptRecordError as error:
            damaged.append(str(error))
            continue
        label, digest = record["label"], fingerprints.digest(record["image"])
        unlabelled += bool((label == IGNORE).all())
        if digest:
            other, twin = owners.setdefault(digest, (split, record["id"]))
            if other != split:
                damaged.append(f"{record['id']} is the same image as {twin} of split {other}; splits must not overlap")
        if (value := fingerprints.perceptual_hash(record["image"])) is not None:
            hashes.append((record["id"], value))
        histogram += np.bincount(label.ravel(), minlength=256)
        sizes[label.shape[0], label.shape[1]] += 1
    return SplitReport(
        domain=domain,
        split=split,
        images=len(source),
        sizes=sizes,
        histogram=histogram,
        hashes=hashes,
        notes=[f"{unlabelled} of {len(source)} images have no label at all"] if domain.taxonomy and unlabelled else [],
        damaged=damaged,
    )
