"""Prepares datasets: from archives on disk to array_record files that training reads.

`python -m crossearth_jax.prepare DATASET[/CONFIG] [--manual_dir=DIR] [--data_dir=DIR] [--check]`

TFDS writes into a temporary folder and renames it when everything is written, so an interrupted preparation
leaves nothing that could be taken for a dataset, and repeating a finished one does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import crossearth_data  # noqa: F401  # pyright: ignore[reportMissingImports] (registers the builders)
import tensorflow_datasets as tfds
from absl import logging

from crossearth_jax.benchmark import DOMAINS, Domain
from crossearth_jax.benchmark.registry import DOMAIN_FILE, find_domain, known_domains, read_domain, write_domain
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs.inspection import SplitReport, check_split
from crossearth_jax.inputs.sources import PreparedSplit, dataset_directory, prepared_splits, quiet_tfds
from crossearth_jax.runtime import command

try:
    import fcntl
except ImportError:  # the system has no such locks
    fcntl = None


def main(argv: list[str]) -> int:
    """Prepares or checks what the command line names; returns the exit code."""
    arguments = _parser().parse_args(argv)
    domains = domains_named(arguments.name, arguments.data_dir)
    options = _options(arguments.option, {name.split("/")[0] for name in domains})
    if arguments.check:
        _check(domains, arguments, options)
    else:
        prepare_domains(domains, arguments.data_dir, arguments.manual_dir, options, strict=arguments.strict)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="DATASET[/CONFIG]", help="e.g. blue_marble or blue_marble/temperate_green")
    parser.add_argument("--data_dir", default=DataConfig().data_dir, help="where prepared datasets are kept")
    parser.add_argument(
        "--manual_dir", help="folder of the dataset's archives, packed or unpacked, where it needs them"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="DATASET.NAME=VALUE",
        help="an open choice of a dataset, e.g. rescuenet.water=ignored; recorded with it (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="numbers of images must be those of the benchmark")
    parser.add_argument(
        "--check", action="store_true",
        help="only verify: what is prepared, or with --manual_dir the archives themselves; reads every image",
    )  # fmt: skip
    return parser


def _options(given: Iterable[str], datasets: set[str]) -> dict[str, str]:
    """{name: value} of the one dataset being prepared."""
    options = {}
    for text in given:
        dataset, dot, rest = text.partition(".")
        name, equals, value = rest.partition("=")
        if not (dot and equals and value):
            raise UserError(f"--option '{text}' is not of the form DATASET.NAME=VALUE")
        if dataset not in datasets:
            raise UserError(f"--option '{text}' is about {dataset}, but {', '.join(datasets)} is named")
        options[name] = value
    return options


def domains_named(name: str, data_dir: str | Path) -> list[str]:
    """The domains that "dataset" or "dataset/config" stands for: the benchmark's, and others that are prepared.

    Raises:
      UserError: there is none.
    """
    domains = [known for known in known_domains(data_dir) if known.split("/")[0] == name]
    return domains or [find_domain(name, data_dir).name]


def prepare_domains(
    names: Iterable[str],
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    options: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> None:
    """Prepares every domain of `names` that is not prepared yet (see `prepare`)."""
    for name in names:
        prepare(name, data_dir, manual_dir, options, strict=strict)


def prepare(
    name: str,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    options: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> Path:
    """Prepares one domain unless it is there already, verifies it, writes its facts beside it and returns its folder.

    Several processes may prepare the same domain at once; the first to finish provides it for all.

    Args:
      name: "dataset/config", a key of `benchmark.DOMAINS`, or another domain that is prepared already.
      data_dir: folder of all prepared datasets; `~` is expanded.
      manual_dir: folder of the archives, for datasets that cannot be distributed.
      options: open choices of the dataset, see its builder's `OPTIONS`.
      strict: makes it an error that numbers of images differ from the benchmark's.

    Raises:
      UserError: the domain or an option is unknown, its source files are missing or damaged, the folder cannot be
        written, or what is prepared there is not whole or was prepared with other options.
    """
    if name not in DOMAINS:
        domain, directory = find_domain(name, data_dir), dataset_directory(name, data_dir)
        _verify(domain, data_dir, directory, strict)
        return directory
    domain = DOMAINS[name]
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # its carriage returns fill a log file
    if manual_dir is not None and not (manual_dir := Path(manual_dir).expanduser()).is_dir():
        raise UserError(f"{manual_dir} is not a folder; pass the one that holds the archives as --manual_dir")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        # TFDS prints what it does; standard output belongs to the results of a command.
        with contextlib.redirect_stdout(sys.stderr), quiet_tfds():
            builder = _builder(name, data_dir, options, strict)
            _refuse_other_options(builder, options or {})
            with _first_wins(Path(builder.data_dir)), _without_leftovers(Path(builder.data_dir).parent):
                builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise UserError(
            f"{name} cannot be prepared in {data_dir}: {error}; free the space or choose another --data_dir"
        ) from error
    counts = _verify(domain, data_dir, Path(builder.data_dir), strict)
    _refresh_facts(domain, Path(builder.data_dir))
    logging.info("%s is prepared in %s: %s", name, builder.data_dir, counts)
    return Path(builder.data_dir)


def _builder(name: str, data_dir: str | Path, options: Mapping[str, str] | None, strict: bool) -> Any:
    own = {}
    if hasattr(tfds.builder_cls(name.split("/")[0]), "OPTIONS"):
        own = {"options": options, "strict": strict}
    elif options:
        raise UserError(f"{name} has no options, given: {', '.join(options)}")
    return tfds.builder(name, data_dir=Path(data_dir).expanduser(), file_format="array_record", **own)


def _refuse_other_options(builder: Any, given: Mapping[str, str]) -> None:
    """A dataset that is there already must have been made with the options that are asked for now."""
    made = (builder.info.metadata or {}).get("options", {})
    for name, value in given.items():
        if made.get(name) != value:
            raise UserError(
                f"{builder.data_dir} was prepared with {builder.name}.{name}={made.get(name)}, now {value} is asked"
                " for; delete the folder or choose another --data_dir"
            )


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


@contextlib.contextmanager
def _without_leftovers(directory: Path) -> Iterator[None]:
    """Deletes what killed preparations of the domain left behind, unless one is still running there.

    Where the system or the file system has no locks, running preparations cannot be told from killed ones, and what is
    found is named instead.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            if fcntl is None:
                raise OSError("this system has no file locks")
            lock = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, lock)
            with contextlib.suppress(BlockingIOError):  # every running preparation holds a shared lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for leftover in directory.glob("incomplete.*"):
                    logging.info("deleting %s, left by an interrupted preparation", leftover)
                    shutil.rmtree(leftover)
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError as error:
            for leftover in directory.glob("incomplete.*"):
                logging.warning("%s is of another preparation; if none is running, delete it (%s)", leftover, error)
        yield


def _refresh_facts(domain: Domain, directory: Path) -> None:
    """Writes the benchmark's facts beside the data of one of its domains, unless they are there and the same."""
    if not (directory / DOMAIN_FILE).exists() or read_domain(directory) != domain:
        write_domain(directory, domain)


def _verify(domain: Domain, data_dir: str | Path, directory: Path, strict: bool) -> dict[str, int]:
    """Numbers of images by split, after reading both ends of every split; warns if they are not the benchmark's."""
    if not (directory / "dataset_info.json").exists():
        raise UserError(
            f"{directory} has no dataset_info.json, so it is not a whole dataset; delete the folder and prepare again"
        )
    counts = dict.fromkeys(domain.counts, 0)
    for split in prepared_splits(domain.name, data_dir):
        source = PreparedSplit(domain.name, split, data_dir)
        counts[split] = len(source)
        for index in {0, len(source) - 1}:
            source[index]
    for split, expected in domain.counts.items():
        if counts[split] != expected:
            message = f"{directory}: split {split} has {counts[split]} images, expected {expected}"
            if strict:
                raise UserError(f"{message}; delete the folder and prepare it from complete archives")
            logging.warning("%s: scores on it are not comparable with published ones", message)
    return counts


def _check(domains: Iterable[str], arguments: argparse.Namespace, options: Mapping[str, str]) -> None:
    """Prints a report per split; raises a UserError naming the splits with faults."""
    faulty = []
    for name in domains:
        if arguments.manual_dir is None:
            reports = _prepared_reports(name, arguments.data_dir)
        else:
            reports = _archive_reports(name, arguments.data_dir, arguments.manual_dir, options)
        for report in reports:
            print(report, flush=True)
            if report.faults or (arguments.strict and report.warnings):
                faulty.append(f"{report.domain.name} {report.split}")
    if faulty:
        remedy = "delete the folder of the domain and prepare it again" if arguments.manual_dir is None else "see above"
        raise UserError(f"not as expected: {', '.join(faulty)}; {remedy}")


def _prepared_reports(name: str, data_dir: str | Path) -> Iterator[SplitReport]:
    present, owners = prepared_splits(name, data_dir), dict[str, tuple[str, str]]()
    recorded = dataset_directory(name, data_dir) / "metadata.json"
    if recorded.exists():
        made = json.loads(recorded.read_text("utf-8"))
        how = [f"{key} {value}" for part in ("options", "choices") for key, value in made.get(part, {}).items()]
        print(f"{name} was prepared with {', '.join(how)}")
    domain = find_domain(name, data_dir)
    for split in domain.counts:
        yield check_split(domain, split, data_dir, owners) if split in present else SplitReport.absent(domain, split)


def _archive_reports(
    name: str, data_dir: str | Path, manual_dir: str | Path, options: Mapping[str, str]
) -> Iterator[SplitReport]:
    with quiet_tfds():
        builder = _builder(name, data_dir, options, strict=False)
    if not hasattr(builder, "inspect"):
        raise UserError(f"{name} is not made from archives; leave out --manual_dir")
    for note in builder.checksum_notes(manual_dir):
        print(f"{name}: {note}")
    for found in builder.inspect(manual_dir):
        yield SplitReport(
            domain=DOMAINS[name],
            split=found.split,
            images=found.sizes.total(),
            sizes=found.sizes,
            histogram=found.histogram,
            scenes=found.scenes,
            notes=found.notes,
            damaged=found.faults,
        )


if __name__ == "__main__":
    command.run(main)
