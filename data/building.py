"""Base classes of the dataset builders: read archives from `--manual_dir`, check splits and write records.

A builder defines which files are its scenes and how they are converted (`SceneBuilder.catalogue`); this module does
the rest. TFDS renames its folder after everything is written, so an interrupted preparation leaves no dataset.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int

from crossearth_jax.benchmark import DOMAINS, IGNORE, Domain
from crossearth_jax.config import UserError
from crossearth_jax.runtime.progress import Progress

from . import pool
from .archives import Member, list_members, unreadable_archives
from .conversion import Converted, Recipe, convert, inspect
from .labels import LabelRule
from .layouts import Layout, Scene

# Shares of ignored pixels, in a scene that is cut into tiles or in a whole split, above which a warning is given and
# above which the data are refused.
REPORTED, REFUSED = 0.5, 0.9


@dataclasses.dataclass(frozen=True)
class Option:
    """A choice for the preparation, set by `prepare --option dataset.name=value` and recorded in the metadata."""

    name: str
    values: tuple[str, ...]  # the first is the default
    doc: str


OVERLAP = Option("overlap", ("error", "kept"), "an image that occurs in two splits: refused, or kept and recorded")
UNLABELLED = Option(
    "unlabelled", ("error", "kept"),
    f"a scene or split with more than {REFUSED:.0%} ignored pixels: refused, or kept and recorded",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The scenes of one domain and how to convert them."""

    splits: Mapping[str, Sequence[Scene]]
    recipe: Recipe
    choices: Mapping[str, str]  # detected layout and conventions, for the metadata
    faults: Sequence[str] = ()  # errors that prevent the preparation
    notes: Sequence[str] = ()  # warnings
    labels: Mapping[str, LabelRule] = dataclasses.field(default_factory=dict)  # of splits that differ from the recipe

    def recipe_of(self, split: str) -> Recipe:
        """Return the recipe for the scenes of `split`."""
        return dataclasses.replace(self.recipe, labels=self.labels.get(split, self.recipe.labels))


@dataclasses.dataclass
class Inspected:
    """Findings about the scenes of a split."""

    split: str
    scenes: int = 0
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=collections.Counter)  # of tiles
    histogram: Int[np.ndarray, 256] = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    unlabelled: int = 0  # tiles in which every pixel is ignored
    hashes: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # tile id and perceptual hash
    notes: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)


def configs_of(dataset: str) -> list[tfds.core.BuilderConfig]:
    """Return one builder configuration per domain of the benchmark dataset `dataset`."""
    domains = [domain for domain in DOMAINS.values() if domain.dataset == dataset]
    return [tfds.core.BuilderConfig(name=domain.config, description=domain.description) for domain in domains]


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class of builders that write records of images with labels and check the splits."""

    IMAGE_FORMAT: ClassVar[str] = "png"  # of most records; readers detect the format of each record

    options: dict[str, str]  # values of OVERLAP, UNLABELLED and the dataset's own options

    def __init__(self, **arguments: Any):
        """Accept the arguments of TFDS builders."""
        self._owners = dict[str, tuple[str, str]]()  # digest of an image -> its split and path
        super().__init__(**arguments)

    @property
    @abc.abstractmethod
    def domain_name(self) -> str:
        """Name of the domain that is built: "<dataset>/<config>"."""

    @abc.abstractmethod
    def _finish(self, report: Inspected) -> None:
        """Store the findings about a split after its last record is written."""

    def _stated(self) -> dict[str, Any]:
        """Return the metadata that are known before anything is read."""
        return {"options": self.options}

    def _remedy(self, option: Option) -> str:
        """Return the remedy for a fault that `option` can permit."""
        return f"--option {self.name}.{option.name}=kept"

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.Image(shape=(None, None, 1), encoding_format="png", doc="train ids; 255 is ignored")
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format=self.IMAGE_FORMAT),
            "label": label,
            "id": tfds.features.Text(doc="scene; for tiles also left, top, right and bottom in pixels"),
            "domain": tfds.features.Text(),
        }
        metadata = tfds.core.MetadataDict(self._stated())
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), metadata=metadata)

    def _records(self, split: str, scenes: Iterator[Converted]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the records of one split.

        Raises:
          UserError: the first fault.
        """
        report = Inspected(split)
        for scene in scenes:
            self._add(scene, report)
            self._record(report)
            for tile in scene.tiles:
                yield (
                    tile.id,
                    {
                        "image": io.BytesIO(tile.image),
                        "label": io.BytesIO(tile.label),
                        "id": tile.id,
                        "domain": self.domain_name,
                    },
                )
        self._judge(report)
        self._record(report)
        self._finish(report)

    def _add(self, scene: Converted, report: Inspected) -> None:
        """Add the counts, warnings and faults of a scene to `report`."""
        report.scenes += 1
        report.sizes.update(scene.sizes)
        report.histogram += scene.histogram
        report.unlabelled += scene.unlabelled
        report.hashes += scene.hashes
        report.notes += filter(None, [scene.note])
        report.faults += filter(None, [scene.fault])
        self._judge_overlap(scene, report)
        if len(scene.sizes) > 1:  # single tiles are not checked: some are legitimately without labels
            self._judge_ignored(scene.name, scene.histogram, report)

    def _judge(self, report: Inspected) -> None:
        """Add warnings and faults about the split as a whole."""
        self._judge_ignored(f"split {report.split}", report.histogram, report)
        if report.unlabelled:
            images = report.sizes.total()
            report.notes.append(
                f"{report.unlabelled} of {images} images of split {report.split}"
                f" ({report.unlabelled / images:.1%}) have no label at all"
            )

    def _judge_ignored(self, what: str, histogram: Int[np.ndarray, 256], report: Inspected) -> None:
        share = histogram[IGNORE] / max(histogram.sum(), 1)
        found = f"{share:.1%} of the pixels of {what} have no label (they are ignored)"
        if share > REFUSED and self.options[UNLABELLED.name] == "error":
            report.faults.append(
                f"{found}, at most {REFUSED:.0%} are accepted; if the labels are right: {self._remedy(UNLABELLED)}"
            )
        elif share > REPORTED:
            report.notes.append(found)

    def _judge_overlap(self, scene: Converted, report: Inspected) -> None:
        for path, digest in scene.digests:
            other, twin = self._owners.setdefault(digest, (report.split, path))
            if other == report.split:
                continue
            found = f"{twin} (split {other}) and {path} (split {report.split}) are the same image"
            if self.options[OVERLAP.name] == "kept":
                report.notes.append(found)
            else:
                report.faults.append(
                    f"{found}, but splits must not overlap; remove one, or if the original dataset has both:"
                    f" {self._remedy(OVERLAP)}"
                )

    def _record(self, report: Inspected) -> None:
        """Log the warnings of `report` and add them to the metadata.

        Raises:
          UserError: the first fault.
        """
        for note in report.notes:
            logging.warning("%s: %s", self.domain_name, note)
            self._metadata["warnings"].append(note)
        report.notes.clear()
        if report.faults:
            raise UserError(report.faults[0])

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata = self.info.metadata
        assert isinstance(metadata, dict)
        return metadata


class SceneBuilder(RecordBuilder, skip_registration=True):
    """Base class of builders that read the archives of a benchmark dataset."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the name and form TFDS expects)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The README.md beside the builder lists the files to download."
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    CHECKSUMS: ClassVar[Mapping[str, str]] = {}  # archive -> MD5, where one is published

    def __init__(
        self,
        *,
        options: Mapping[str, str] | None = None,
        strict: bool = False,
        **arguments: Any,
    ):
        """Accept the arguments of TFDS builders and two more.

        Args:
          options: values of `OPTIONS`, `OVERLAP` and `UNLABELLED`; missing ones have their defaults.
          strict: whether a number of images that differs from the benchmark's is an error instead of a warning.
          **arguments: of the base class.

        Raises:
          UserError: an option or its value is unknown.
        """
        self.options = _chosen(type(self), options or {})
        self._strict = strict
        super().__init__(**arguments)

    @abc.abstractmethod
    def catalogue(self, files: Sequence[Member]) -> Catalogue:
        """Find the scenes of this domain among `files`."""

    @abc.abstractmethod
    def layouts(self) -> Mapping[str, Layout]:
        """Return every layout that `catalogue` looks for in this domain, by name."""

    @property
    def domain(self) -> Domain:
        """Facts of the domain that is built."""
        config = self.builder_config
        assert config is not None
        return DOMAINS[f"{self.name}/{config.name}"]

    @property
    def domain_name(self) -> str:
        """See `RecordBuilder`."""
        return self.domain.name

    def inspect(self, manual_dir: str | Path) -> Iterator[Inspected]:
        """Read every scene in `manual_dir` and yield a report per split, without preparing anything.

        Errors of single scenes become `faults` of the report.

        Raises:
          UserError: the folder or an archive in it cannot be read at all, or no scene is found.
        """
        catalogue = self._found_in(Path(manual_dir).expanduser())
        self._owners.clear()
        for split in self.domain.counts:
            report = Inspected(split)
            for scene in self._converted(split, catalogue, inspect):
                self._add(scene, report)
            self._judge(report)
            if split == next(iter(self.domain.counts)):
                report.faults += catalogue.faults  # they concern the whole dataset, so they are reported once
            yield report

    def checksum_notes(self, manual_dir: str | Path) -> list[str]:
        """Return one line for each archive in `manual_dir` with a published MD5: whether it matches."""
        notes = []
        for path in sorted(Path(manual_dir).expanduser().rglob("*.zip")):
            if expected := self.CHECKSUMS.get(path.name):
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "md5").hexdigest()
                differs = f"has the MD5 {found}, {expected} is published: it was repacked or is damaged"
                notes.append(f"{path.name} {'has the published MD5' if found == expected else differs}")
        return notes

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            manual_dir = Path(dl_manager.manual_dir)
        except AssertionError:
            raise UserError(
                f"{self.domain.name} is built from archives that you have to download (see data/{self.name}/README.md):"
                f" run 'python -m crossearth_jax.prepare {self.domain.name} --manual_dir=…' with the folder of the"
                " archives"
            ) from None
        catalogue = self._found_in(manual_dir)
        if catalogue.faults:
            more = f" (and {len(catalogue.faults) - 1} more: see --check)" if len(catalogue.faults) > 1 else ""
            raise UserError(f"{catalogue.faults[0]}{more}")
        self._owners.clear()
        self._metadata.update(
            options=self.options, choices=dict(catalogue.choices), notes=list(catalogue.notes), counts={}, warnings=[]
        )
        for split in self.domain.counts:
            if not catalogue.splits.get(split):
                self._count(split, 0)
        return {
            split: self._generate_examples(split, catalogue) for split, scenes in catalogue.splits.items() if scenes
        }

    def _generate_examples(self, split: str, catalogue: Catalogue) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._records(split, self._converted(split, catalogue, convert))

    def _converted(self, split: str, catalogue: Catalogue, function: Any) -> Iterator[Converted]:
        scenes = catalogue.splits.get(split, ())
        function = functools.partial(function, recipe=catalogue.recipe_of(split))
        progress = Progress(len(scenes), "scenes")
        small = sum(scene.image.size for scene in scenes) < pool.WORTH_PROCESSES
        for converted in pool.ordered_map(function, scenes, 1 if small else pool.cores()):
            progress.advance(note=f"{self.domain.name} {split}")
            yield converted

    def _found_in(self, manual_dir: Path) -> Catalogue:
        files = list_members(manual_dir)
        catalogue = self.catalogue(files)
        packed = unreadable_archives(files)
        if not any(catalogue.splits.values()) and not catalogue.faults:
            hint = f"; unpack {', '.join(packed[:3])} first, only zip archives are read packed" if packed else ""
            raise UserError(
                f"{manual_dir} contains {len(files)} files but none of {self.domain.name}{hint};"
                f" data/{self.name}/README.md lists the expected files"
            )
        if packed:
            note = f"not read (only zip archives are): {', '.join(packed)}; unpack them if they belong to the dataset"
            catalogue = dataclasses.replace(catalogue, notes=[*catalogue.notes, note])
        logging.info(
            "%s: %s", self.domain.name, ", ".join(f"{key} {value}" for key, value in catalogue.choices.items())
        )
        for note in catalogue.notes:
            logging.warning("%s: %s", self.domain.name, note)
        return catalogue

    def _finish(self, report: Inspected) -> None:
        self._count(report.split, report.sizes.total())

    def _count(self, split: str, count: int) -> None:
        """Record the number of images of a split; a number that differs from the benchmark's is a warning or error."""
        expected = self.domain.counts[split]
        self._metadata["counts"][split] = {"images": count, "expected": expected}
        if count != expected:
            message = f"split {split} of {self.domain.name} has {count} images, the benchmark's has {expected}"
            if self._strict:
                raise UserError(f"{message}; complete the archives in --manual_dir or leave out --strict")
            self._metadata["warnings"].append(message)  # `prepare` logs it, also for datasets that are prepared already


def _chosen(builder: type[SceneBuilder], given: Mapping[str, str]) -> dict[str, str]:
    options = {option.name: option for option in (*builder.OPTIONS, OVERLAP, UNLABELLED)}
    for name, value in given.items():
        known = options[name].values if name in options else ()
        if value not in known:
            every = "; ".join(f"{builder.name}.{o.name}={'|'.join(o.values)}" for o in options.values())
            raise UserError(f"unknown option '{builder.name}.{name}={value}'; {builder.name} has {every}")
    return {name: given.get(name, option.values[0]) for name, option in options.items()}
