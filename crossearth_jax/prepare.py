"""Prepare datasets: convert archives, or your own images and labels, to the array_record files that training reads.

`python -m crossearth_jax.prepare DATASET[/CONFIG] [--manual_dir=DIR] [--data_dir=DIR] [--check]`
`python -m crossearth_jax.prepare domains.toml [--data_dir=DIR] [--check]`

TFDS writes to a temporary folder and renames it when all files are written. An interrupted preparation therefore
leaves no incomplete dataset. A dataset that is already prepared is not prepared again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import crossearth_data  # noqa: F401  # pyright: ignore[reportMissingImports] (registers the builders)
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from crossearth_data.own import own_builder, plan  # pyright: ignore[reportMissingImports]
from jaxtyping import UInt8

from crossearth_jax.benchmark import DOMAINS, Domain
from crossearth_jax.benchmark.domains_file import DomainsFile, OwnDomain, read_domains_file
from crossearth_jax.benchmark.registry import (
    DOMAIN_FILE,
    data_folder,
    find_domain,
    known_domains,
    prepared_directory,
    read_domain,
    write_domain,
)
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs.inspection import SplitReport, check_split
from crossearth_jax.inputs.sources import PreparedSplit, dataset_directory, prepared_splits, quiet_tfds
from crossearth_jax.runtime import command, fingerprints
from crossearth_jax.runtime.buckets import local_path

try:
    import fcntl
except ImportError:  # e.g. Windows has no such locks
    fcntl = None

SHOWN = 24  # images of a split on its contact sheet


def main(argv: list[str]) -> int:
    """Prepare or check the datasets that the command line names; return the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.name.endswith(".toml"):
        if arguments.manual_dir or arguments.option:
            raise UserError(f"{arguments.name} itself names its files and options; leave out --manual_dir and --option")
        (check_file if arguments.check else prepare_file)(arguments.name, arguments.data_dir)
        return 0
    if arguments.manual_dir is not None:
        local_path(arguments.manual_dir, "--manual_dir", "copy the archives to a local disk")
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
    parser.add_argument(
        "name", metavar="DATASET[/CONFIG] or FILE.toml",
        help="e.g. blue_marble, blue_marble/temperate_green, or a file that describes your own domains",
    )  # fmt: skip
    parser.add_argument("--data_dir", default=DataConfig().data_dir, help="where prepared datasets are kept")
    parser.add_argument(
        "--manual_dir", help="folder with the dataset's archives, packed or unpacked, for datasets that need them"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="DATASET.NAME=VALUE",
        help="an option of a dataset, e.g. rescuenet.water=ignored; recorded with the data (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="refuse numbers of images that differ from the benchmark")
    parser.add_argument(
        "--check", action="store_true",
        help="only verify: the prepared data; with --manual_dir the archives; of a FILE.toml that is not prepared yet, "
        "the files it names; reads every image",
    )  # fmt: skip
    return parser


def _options(given: Iterable[str], datasets: set[str]) -> dict[str, str]:
    """Return {name: value} of the options given for the dataset that is prepared."""
    options = {}
    for text in given:
        dataset, dot, rest = text.partition(".")
        name, equals, value = rest.partition("=")
        if not (dot and equals and value):
            raise UserError(f"--option '{text}' is not of the form DATASET.NAME=VALUE")
        if dataset not in datasets:
            raise UserError(f"--option '{text}' is for {dataset}, but {', '.join(datasets)} is to be prepared")
        options[name] = value
    return options


def domains_named(name: str, data_dir: str | Path) -> list[str]:
    """Return the names of all known domains of "dataset", or the one domain "dataset/config".

    Known are the domains of the benchmark and those that are prepared in `data_dir`.

    Raises:
      UserError: there is no such domain.
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
    """Prepare every domain of `names` that is not prepared yet (see `prepare`)."""
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
    """Prepare one domain unless it is prepared already, verify it, write its facts file and return its folder.

    Several processes may prepare the same domain at the same time; the result of the first to finish is used by all.

    Args:
      name: "dataset/config", a key of `benchmark.DOMAINS` or another domain that is prepared already.
      data_dir: folder of all prepared datasets; `~` is expanded.
      manual_dir: folder of the archives, for datasets that cannot be distributed.
      options: options of the dataset, see `OPTIONS` of its builder.
      strict: whether numbers of images that differ from the benchmark's are an error (otherwise a warning).

    Raises:
      UserError: the domain or an option is unknown, its source files are missing or damaged, the folder cannot be
        written, or the prepared data is incomplete or was prepared with other options.
    """
    if name not in DOMAINS:
        domain, directory = find_domain(name, data_dir), dataset_directory(name, data_dir)
        _verify(domain, data_dir, directory, strict)
        return directory
    domain = DOMAINS[name]
    if manual_dir is not None and not (manual_dir := Path(manual_dir).expanduser()).is_dir():
        raise UserError(f"{manual_dir} is not a folder; pass the folder that contains the archives as --manual_dir")
    with _building(name, data_dir):
        builder = _builder(name, data_dir, options, strict)
        _refuse_other_options(builder, options or {})
        _write_records(builder, manual_dir)
    counts = _verify(domain, data_dir, Path(builder.data_dir), strict)
    _refresh_facts(domain, Path(builder.data_dir))
    logging.info("%s is prepared in %s: %s", name, builder.data_dir, counts)
    return Path(builder.data_dir)


def prepare_file(path: str | Path, data_dir: str | Path, names: Sequence[str] | None = None) -> DomainsFile:
    """Prepare the domains that a `domains.toml` describes and return the content of the file.

    A domain whose table, classes and files are unchanged since its preparation is not prepared again. For a changed
    domain a new version is written, then the old one is deleted. If the source files are missing but the table is
    unchanged, the prepared data stays in use.

    Args:
      path: the `domains.toml`.
      data_dir: folder of all prepared datasets; `~` is expanded.
      names: names of the domains to prepare; None: all domains of the file.

    Raises:
      UserError: the file or one of its domains cannot be used, or the folder cannot be written.
    """
    file = read_domains_file(path)
    for own in file.find(names):
        _prepare_own(file, own, data_dir)
    for folder in sorted((data_folder(data_dir) / file.name).glob("*/")):
        if folder.name not in file.domains and prepared_directory(f"{file.name}/{folder.name}", data_dir) is not None:
            logging.warning(
                "%s is no longer in %s, but remains a domain until you delete the folder", folder, file.path
            )
    return file


def _prepare_own(file: DomainsFile, own: OwnDomain, data_dir: str | Path) -> None:
    present, changed = _state(own, data_dir)
    if present is None or changed:
        if present is not None:
            logging.warning("%s is prepared again because its input has changed: %s", own.key, "; ".join(changed))
        with _building(own.key, data_dir):
            present = _write_records(own_builder.own_builder(file, own, data_dir, _next_version(present)), None)
    for older in present.parent.glob("[0-9]*.*.*"):
        if older != present:
            logging.info("deleting %s, an older version", older)
            shutil.rmtree(older)
    counts = _verify(read_domain(present), data_dir, present, strict=False)
    logging.info("%s is prepared in %s: %s", own.key, present, counts)


def _state(own: OwnDomain, data_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Return the folder of an own domain, None if it is not prepared, and the changes of its input since then."""
    present = prepared_directory(own.key, data_dir)
    if present is None:
        return None, []
    recorded = present / "metadata.json"
    made = json.loads(recorded.read_text("utf-8")).get(own_builder.MADE_FROM) if recorded.exists() else None
    if made is None:
        raise UserError(f"{present} was not prepared from a domains.toml; delete it, or give the file another name")
    try:
        now = own_builder.made_from(own, plan.source_files(own))
    except UserError as error:
        if own_builder.changes(made, own_builder.made_from(own, []) | {"files": made["files"]}):
            raise
        logging.warning("%s; the data prepared in %s is used", error, present)
        return present, []
    return present, own_builder.changes(made, now)


def _next_version(present: Path | None) -> str:
    if present is None:
        return "1.0.0"
    major, minor, patch = present.name.split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


@contextlib.contextmanager
def _building(name: str, data_dir: str | Path) -> Iterator[None]:
    """Redirect the output of TFDS to standard error and convert errors of the file system to `UserError`."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # it would fill a log file with repeated lines
    try:
        # Standard output is reserved for the results of a command.
        with contextlib.redirect_stdout(sys.stderr), quiet_tfds():
            yield
    except OSError as error:
        raise UserError(
            f"{name} cannot be prepared in {data_dir}: {error}; make room or choose another --data_dir"
        ) from error


def _write_records(builder: Any, manual_dir: Path | None) -> Path:
    """Write all splits unless they exist; return their folder."""
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    with _first_wins(Path(builder.data_dir)), _without_leftovers(Path(builder.data_dir).parent):
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def _builder(name: str, data_dir: str | Path, options: Mapping[str, str] | None, strict: bool) -> Any:
    own = {}
    if hasattr(tfds.builder_cls(name.split("/")[0]), "OPTIONS"):
        own = {"options": options, "strict": strict}
    elif options:
        raise UserError(f"{name} has no options, given: {', '.join(options)}")
    return tfds.builder(name, data_dir=data_folder(data_dir), file_format="array_record", **own)


def _refuse_other_options(builder: Any, given: Mapping[str, str]) -> None:
    """Raise a UserError if the prepared dataset was prepared with other options than `given`."""
    made = (builder.info.metadata or {}).get("options", {})
    for name, value in given.items():
        if made.get(name) != value:
            raise UserError(
                f"{builder.data_dir} was prepared with {builder.name}.{name}={made.get(name)}, but {value} is given"
                " now; delete the folder or choose another --data_dir"
            )


@contextlib.contextmanager
def _first_wins(directory: Path) -> Iterator[None]:
    """Ignore the error of renaming to a folder that another process has completed in the meantime."""
    missing = not directory.exists()
    try:
        yield
    except OSError:
        if not (missing and directory.exists()):
            raise
        logging.info("%s was prepared by another process in the meantime", directory)


@contextlib.contextmanager
def _without_leftovers(directory: Path) -> Iterator[None]:
    """Delete the temporary folders of interrupted preparations of the domain, unless a preparation is running there.

    Without file locks, running and interrupted preparations cannot be distinguished; then the folders are only
    reported.
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
                logging.warning("%s is from another preparation; if none is running, delete it (%s)", leftover, error)
        yield


def _refresh_facts(domain: Domain, directory: Path) -> None:
    """Write the benchmark's facts about one of its domains to the folder of the data, unless they are there already."""
    if not (directory / DOMAIN_FILE).exists() or read_domain(directory) != domain:
        write_domain(directory, domain)


def _verify(domain: Domain, data_dir: str | Path, directory: Path, strict: bool) -> dict[str, int]:
    """Read the first and last record of every split; return the numbers of images by split.

    Warns of numbers that differ from the benchmark's; with `strict` that is an error.

    Raises:
      UserError: the dataset is incomplete or damaged, or a number differs and `strict` is set.
    """
    if not (directory / "dataset_info.json").exists():
        raise UserError(
            f"{directory} has no dataset_info.json, so it is incomplete; delete the folder and prepare it again"
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
            logging.warning("%s; scores on it are not comparable with published ones", message)
    return counts


def _check(domains: Iterable[str], arguments: argparse.Namespace, options: Mapping[str, str]) -> None:
    """Print a report for each split; raise a UserError that names the splits with faults."""
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
        if how:
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


def check_file(path: str | Path, data_dir: str | Path, names: Sequence[str] | None = None) -> None:
    """Print a report of each split of own domains and draw its contact sheet.

    For a domain that is prepared and unchanged the prepared records are read, for any other domain its source files.

    Raises:
      UserError: the file or one of its domains cannot be used, or a split has faults.
    """
    # Importing Matplotlib takes a second. Preparation and training do not need it.
    from crossearth_jax.reporting.contact_sheet import contact_sheet

    file, faulty = read_domains_file(path), list[str]()
    for own in file.find(names):
        present, changed = _state(own, data_dir)
        if present is None or changed:
            why = f"has changed since it was prepared: {'; '.join(changed)}" if changed else "is not prepared yet"
            print(f"{own.key} {why}; the report describes its files", flush=True)
            builder = own_builder.own_builder(file, own, data_dir, _next_version(present))
            for key, value in builder.plan.choices.items():
                print(f"{own.key}: {key} {value}", flush=True)
            reports = _own_reports(builder)
            shown = {split: plan.examples(pieces, SHOWN) for split, pieces in builder.plan.pieces.items()}
        else:
            reports = list(_prepared_reports(own.key, data_dir))
            shown = {report.split: _examples(own.key, report.split, data_dir) for report in reports}
        for report in _with_near_duplicates(reports):
            print(report, flush=True)
            if report.faults:
                faulty.append(f"{own.key} {report.split}")
            else:
                colours = dict(zip(file.taxonomy.classes, file.taxonomy.palette, strict=True))
                target = data_folder(data_dir) / own.dataset / f"{own.name}_{report.split}.png"
                contact_sheet(shown[report.split], colours, f"{own.key}, split {report.split}", target)
                print(f"  images with their labels: {target}", flush=True)
    if faulty:
        raise UserError(f"not as expected: {', '.join(faulty)}; see above")


def _own_reports(builder: Any) -> list[SplitReport]:
    """Return the reports of the splits that the files of an own domain would give."""
    found = {report.split: report for report in builder.inspect()}
    facts = builder.facts(found)
    return [
        SplitReport(
            domain=facts,
            split=split,
            images=report.sizes.total(),
            sizes=report.sizes,
            histogram=report.histogram,
            hashes=report.hashes,
            notes=report.notes,
            damaged=report.faults,
        )
        for split, report in found.items()
    ]


def _with_near_duplicates(reports: Sequence[SplitReport]) -> list[SplitReport]:
    """Return the reports with a note about images that look like images of an earlier split."""
    found = {report.split: report for report in reports}
    for earlier, later in itertools.combinations(reports, 2):
        if pairs := fingerprints.near_pairs(earlier.hashes, later.hashes):
            note = (
                f"{len(pairs)} pairs of images in splits {earlier.split} and {later.split} look alike, such as"
                f" {' and '.join(pairs[0])}; if they show the same place, put them into the same split"
            )
            report = found[later.split]
            found[later.split] = dataclasses.replace(report, notes=[*report.notes, note])
    return list(found.values())


def _examples(
    name: str, split: str, data_dir: str | Path
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]:
    """Yield id, image and label of at most `SHOWN` records, spread evenly over the split."""
    source = PreparedSplit(name, split, data_dir)
    for index in np.linspace(0, len(source) - 1, min(SHOWN, len(source))).round().astype(int).tolist():
        example = source[index]
        yield example["id"], example["image"], example["label"]


if __name__ == "__main__":
    command.run(main)
