"""TFDS builder of one domain of a `domains.toml`."""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from crossearth_jax.benchmark import IGNORE, Domain
from crossearth_jax.benchmark.domains_file import SPLITS, DomainsFile, NumberLabels, OwnDomain, Split
from crossearth_jax.benchmark.registry import write_domain
from crossearth_jax.runtime.progress import Progress

from .. import pool
from ..building import OVERLAP, UNLABELLED, Inspected, Option, RecordBuilder
from ..conversion import Converted
from . import plan as planning
from .plan import Piece, Plan

MADE_FROM = "made_from"  # key of the metadata: the domain's table in the file, the classes, and the files


class OwnBuilder(RecordBuilder, skip_registration=True):
    """Writes the records of one domain and, beside them, its facts."""

    options = {OVERLAP.name: "error", UNLABELLED.name: "kept"}  # noqa: RUF012

    file: DomainsFile
    own: OwnDomain

    @functools.cached_property
    def plan(self) -> Plan:
        """Tiles by split (see `plan.Plan`).

        Raises:
          UserError: see `plan.make_plan`.
        """
        return planning.make_plan(self.own)

    @property
    def domain_name(self) -> str:
        """See `RecordBuilder`."""
        return self.own.key

    def inspect(self) -> Iterator[Inspected]:
        """Read every image and label and yield a report per split, without preparing anything.

        Errors of single images become `faults` of the report.

        Raises:
          UserError: see `plan.make_plan`.
        """
        self._owners.clear()
        for split, pieces in self.plan.pieces.items():
            report = Inspected(split)
            for converted in self._converted(split, pieces, planning.inspect):
                self._add(converted, report)
            self._judge(report)
            if split == next(iter(self.plan.pieces)):
                report.notes += self.plan.notes
            yield report

    def facts(self, reports: Mapping[str, Inspected]) -> Domain:
        """Return the facts of the domain, with the counts of its splits."""
        pixels = {
            split: tuple(found.histogram[: len(self.file.taxonomy.classes)].tolist())
            for split, found in reports.items()
        }
        return Domain(
            dataset=self.own.dataset,
            config=self.own.name,
            description=self.own.description,
            taxonomy=self.file.taxonomy,
            gsd=self.plan.gsd,
            eval_split="test" if "test" in reports else "",
            counts={split: found.sizes.total() for split, found in reports.items()},
            sizes={split: _largest(found.sizes) for split, found in reports.items()},
            pixels=pixels,
            bands=self.plan.bands,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        self._owners.clear()
        self._reports = dict[str, Inspected]()
        self._metadata.update(choices=dict(self.plan.choices), notes=[*self.plan.notes], warnings=[])
        self._metadata[MADE_FROM] = made_from(self.own, self.plan.files)
        for note in self.plan.notes:
            logging.warning("%s: %s", self.own.key, note)
        return {split: self._generate_examples(split, pieces) for split, pieces in self.plan.pieces.items()}

    def _generate_examples(self, split: Split, pieces: Sequence[Piece]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._records(split, self._converted(split, pieces, planning.convert))

    def _converted(self, split: Split, pieces: Sequence[Piece], function: Any) -> Iterator[Converted]:
        progress = Progress(sum(len(piece.tiles) for piece in pieces), "tiles")
        size = sum(piece.image.path.stat().st_size for piece in {piece.image.path: piece for piece in pieces}.values())
        workers = 1 if size < pool.WORTH_PROCESSES else pool.cores()
        for piece, converted in zip(pieces, pool.ordered_map(function, pieces, workers), strict=True):
            progress.advance(len(piece.tiles), note=f"{self.own.key} {split}")
            yield converted

    def _judge(self, report: Inspected) -> None:
        if report.unlabelled:
            report.notes.append(
                f"{report.unlabelled} tiles of split {report.split} have no labelled pixel and are left out"
            )
        if not report.sizes:
            if not report.faults:
                report.faults.append(f"split {report.split} is empty: none of its tiles has a labelled pixel")
            return
        self._judge_ignored(f"split {report.split}", report.histogram, report)
        values, labels = set(np.flatnonzero(report.histogram).tolist()), self.own.labels
        if isinstance(labels, NumberLabels) and not labels.stated and values == {0, IGNORE}:
            first, second = self.file.taxonomy.classes[:2]
            report.faults.append(
                f"the labels of split {report.split} hold only 0 and 255; if 255 is {second}, write labels = {{ files ="
                f" …, ids = {{ {first} = 0, {second} = 255 }} }}; if it is ignored, write ignore = [255] there"
            )

    def _finish(self, report: Inspected) -> None:
        self._reports[report.split] = report

    def _stated(self) -> dict[str, Any]:
        return {}

    def _remedy(self, option: Option) -> str:
        return "if one is a copy of the other, put both into one split"

    def _download_and_prepare(self, *arguments: Any, **keywords: Any) -> None:
        super()._download_and_prepare(*arguments, **keywords)
        # Written while the folder still has its temporary name, so that complete data always have their facts.
        write_domain(
            Path(self.data_dir), self.facts({split: self._reports[split] for split in SPLITS if split in self._reports})
        )


def own_builder(file: DomainsFile, own: OwnDomain, data_dir: str | Path, version: str) -> OwnBuilder:
    """Return the builder that writes `version` of the domain `own` of `file`."""
    members = {
        "name": own.dataset,
        "file": file,
        "own": own,
        "VERSION": tfds.core.Version(version),
        "BUILDER_CONFIGS": [
            tfds.core.BuilderConfig(name=domain.name, description=domain.description)
            for domain in file.domains.values()
        ],
    }
    dataset = types.new_class(
        "OwnDataset", (OwnBuilder,), {"skip_registration": True}, lambda body: body.update(members)
    )
    return dataset(data_dir=Path(data_dir).expanduser(), config=own.name, file_format="array_record")


def _largest(sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    return max((height for height, _ in sizes), default=0), max((width for _, width in sizes), default=0)


def made_from(own: OwnDomain, files: Sequence[Path]) -> dict[str, Any]:
    """Return what determines the records of a domain: its table, the classes, size and mtime of each file."""
    stats = {str(path): path.stat() for path in files}
    return {
        "table": own.written["table"],
        "classes": own.written["classes"],
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two results of `made_from`; empty if there are none."""
    found = list[str]()
    if before["classes"] != now["classes"]:
        found.append("the classes")
    keys = sorted({*before["table"], *now["table"]})
    found += [f"the key {key}" for key in keys if before["table"].get(key) != now["table"].get(key)]
    old, new = before["files"], now["files"]
    groups = {
        "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and list(old[name]) != list(new[name])],
    }
    found += [f"{len(names)} {what} files such as {names[0]}" for what, names in groups.items() if names]
    return found
