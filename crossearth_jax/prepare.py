"""Prepares datasets: from archives on disk to array_record files that training reads.

`python -m crossearth_jax.prepare DATASET[/CONFIG] [--manual_dir=DIR] [--data_dir=DIR] [--check]`

TFDS writes into a temporary folder and renames it when everything is written, so an interrupted preparation
leaves nothing that could be taken for a dataset, and repeating a finished one does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import crossearth_data  # noqa: F401  # pyright: ignore[reportMissingImports] (registers the builders)
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int

from crossearth_jax import command
from crossearth_jax.benchmark import DOMAINS, IGNORE, TAXONOMIES, Domain
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs.sources import PreparedSplit, find_domain, quiet_tfds


def main(argv: list[str]) -> int:
    """Prepares or checks what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crossearth_jax.prepare", description=__doc__)
    parser.add_argument("name", metavar="DATASET[/CONFIG]", help="e.g. blue_marble or blue_marble/temperate_green")
    parser.add_argument("--data_dir", default=DataConfig().data_dir, help="where prepared datasets are kept")
    parser.add_argument("--manual_dir", help="folder of the official archives, for datasets that need them")
    parser.add_argument("--check", action="store_true", help="only verify what is prepared, read every record")
    arguments = parser.parse_args(argv)
    domains = domains_named(arguments.name)
    if not arguments.check:
        prepare_domains(domains, arguments.data_dir, arguments.manual_dir)
        return 0
    reports = [check_split(name, split, arguments.data_dir) for name in domains for split in DOMAINS[name].counts]
    for report in reports:
        print(report)
    faulty = [f"{report.domain} {report.split}" for report in reports if report.faults]
    if faulty:
        raise UserError(f"not as expected: {', '.join(faulty)}; delete the folder of the domain and prepare it again")
    return 0


def domains_named(name: str) -> list[str]:
    """The domains that "dataset" or "dataset/config" stands for.

    Raises:
      UserError: there is none.
    """
    domains = [domain.name for domain in DOMAINS.values() if domain.dataset == name]
    return domains or [find_domain(name).name]


def prepare_domains(names: Iterable[str], data_dir: str | Path, manual_dir: str | Path | None = None) -> None:
    """Prepares every domain of `names` that is not prepared yet (see `prepare`)."""
    for name in names:
        prepare(name, data_dir, manual_dir)


def prepare(name: str, data_dir: str | Path, manual_dir: str | Path | None = None) -> Path:
    """Prepares one domain unless it is there already, verifies it and returns its folder.

    Several processes may prepare the same domain at once; the first to finish provides it for all.

    Args:
      name: "dataset/config", a key of `benchmark.DOMAINS`.
      data_dir: folder of all prepared datasets; `~` is expanded.
      manual_dir: folder of the archives, for datasets that cannot be distributed.

    Raises:
      UserError: the domain is unknown, its source files are missing or damaged, the folder cannot be written,
        or what is prepared there is not whole.
    """
    domain = find_domain(name)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # its carriage returns fill a log file
    config = tfds.download.DownloadConfig(manual_dir=None if manual_dir is None else Path(manual_dir).expanduser())
    try:
        # TFDS prints what it does; standard output belongs to the results of a command.
        with contextlib.redirect_stdout(sys.stderr), quiet_tfds():
            builder = tfds.builder(name, data_dir=Path(data_dir).expanduser(), file_format="array_record")
            with _first_wins(Path(builder.data_dir)):
                builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise UserError(
            f"{name} cannot be prepared in {data_dir}: {error}; free the space or choose another --data_dir"
        ) from error
    _verify(domain, data_dir, Path(builder.data_dir))
    logging.info("%s is prepared in %s: %s", name, builder.data_dir, dict(domain.counts))
    return Path(builder.data_dir)


@contextlib.contextmanager
def _first_wins(directory: Path) -> Iterator[None]:
    """Takes the failure to rename onto a folder that another process has finished meanwhile as success."""
    missing = not directory.exists()
    try:
        yield
    except OSError:
        if not (missing and directory.exists()):
            raise
        logging.info("%s was prepared by another process meanwhile", directory)


def _verify(domain: Domain, data_dir: str | Path, directory: Path) -> None:
    """Raises a UserError unless every split has the expected number of records and its ends can be read."""
    remedy = "delete the folder and prepare again"
    if not (directory / "dataset_info.json").exists():
        raise UserError(f"{directory} has no dataset_info.json, so it is not a whole dataset; {remedy}")
    for split, expected in domain.counts.items():
        source = PreparedSplit(domain.name, split, data_dir)
        if len(source) != expected:
            raise UserError(f"{directory}: split {split} has {len(source)} images, expected {expected}; {remedy}")
        for index in (0, expected - 1):
            source[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What reading every record of one split found; `str` gives the lines that `--check` prints."""

    domain: str
    split: str
    images: int
    expected: int
    sizes: Counter[tuple[int, int]]  # (height, width) -> images
    histogram: Int[np.ndarray, 256]  # pixels per label value

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the train ids; none for an unlabelled domain."""
        taxonomy = DOMAINS[self.domain].taxonomy
        return TAXONOMIES[taxonomy].classes if taxonomy else ()

    @property
    def unknown(self) -> list[int]:
        """Label values that are neither a train id nor IGNORE."""
        values = np.flatnonzero(self.histogram).tolist()
        return [value for value in values if value >= len(self.classes) and value != IGNORE]

    @property
    def faults(self) -> list[str]:
        """What is not as the benchmark states; empty if all is well."""
        largest = DOMAINS[self.domain].sizes[self.split]
        too_large = [size for size in self.sizes if size[0] > largest[0] or size[1] > largest[1]]
        return [
            *([f"{self.expected} images expected"] if self.images != self.expected else []),
            *([f"unknown label values {self.unknown}"] if self.unknown else []),
            *([f"sizes {too_large} are above {largest}"] if too_large else []),
        ]

    def __str__(self) -> str:
        labelled = max(int(self.histogram[: len(self.classes)].sum()), 1)
        shares = [f"{name} {self.histogram[i] / labelled:.1%}" for i, name in enumerate(self.classes)]
        ignored = f"ignored {self.histogram[IGNORE] / max(int(self.histogram.sum()), 1):.1%}"
        sizes = ", ".join(f"{height}x{width}: {count}" for (height, width), count in sorted(self.sizes.items()))
        status = "; ".join(self.faults) or "ok"
        return f"{self.domain} {self.split}: {self.images} images ({sizes}) {status}\n  {', '.join([*shares, ignored])}"


def check_split(name: str, split: str, data_dir: str | Path) -> SplitReport:
    """Reads every record of one split of the prepared domain `name`.

    Raises:
      UserError: the domain is not prepared or a record is corrupt.
    """
    source = PreparedSplit(name, split, data_dir)
    histogram, sizes = np.zeros(256, np.int64), Counter[tuple[int, int]]()
    for index in range(len(source)):
        label = source[index]["label"]
        histogram += np.bincount(label.ravel(), minlength=256)
        sizes[label.shape[0], label.shape[1]] += 1
    return SplitReport(
        domain=name,
        split=split,
        images=len(source),
        expected=DOMAINS[name].counts[split],
        sizes=sizes,
        histogram=histogram,
    )


if __name__ == "__main__":
    command.run(main)
