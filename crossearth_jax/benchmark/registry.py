"""Look up the facts of domains and the settings of a source.

The facts of a prepared domain are stored beside its data, in `domain.json`. Training, evaluation and reports therefore
treat domains of the benchmark and users' own domains alike. Domains of the benchmark can also be looked up before they
are prepared.

A source is one domain ("blue_marble/arid_green") or several domains, joined by "+", that are trained on together. For a
source of the benchmark, the settings are those of the benchmark. For any other source they are generated: one row for
each domain of the source and one for every other domain of the same dataset (or datasets) with the same taxonomy.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossearth_jax.benchmark import DOMAINS, SETTINGS
from crossearth_jax.benchmark.facts import Domain, Resize, Setting, Taxonomy
from crossearth_jax.config import UserError
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.runtime.buckets import local_path

DOMAIN_FILE = "domain.json"
SCHEMA_VERSION = 1

REGION, BANDS, RESOLUTION = "region", "spectral_band", "resolution"  # gaps of generated settings
SAME_RESOLUTION = 1.25  # ratio of two ground resolutions up to which they do not count as a gap


def data_folder(data_dir: str | Path) -> Path:
    """Return the folder of all prepared datasets.

    Raises:
      UserError: it is in a bucket, from which records cannot be read (array_record reads local files).
    """
    remedy = "copy the prepared data to a local disk (gcloud storage rsync, aws s3 sync) or mount the bucket"
    return local_path(data_dir, "data_dir", remedy).expanduser()


def prepared_directory(name: str, data_dir: str | Path) -> Path | None:
    """Return the folder of the newest prepared version of the domain `name`; None if there is none."""
    root = data_folder(data_dir) / name
    versions = [path.parent for path in root.glob("*/dataset_info.json") if path.parent.name[0].isdigit()]
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")), default=None)


def write_domain(directory: Path, domain: Domain) -> None:
    """Write the facts of `domain` beside its prepared data.

    Raises:
      UserError: the file cannot be written.
    """
    facts = dataclasses.asdict(domain)
    taxonomy = facts.pop("taxonomy")
    write_json(directory / DOMAIN_FILE, {"schema_version": SCHEMA_VERSION, "domain": facts, "taxonomy": taxonomy})


def read_domain(directory: Path) -> Domain:
    """Read the facts from the folder of a prepared domain.

    Raises:
      UserError: the file is missing, damaged or of a newer version.
    """
    path = directory / DOMAIN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] > SCHEMA_VERSION:
            raise UserError(
                f"{path} has the schema version {content['schema_version']}, this program reads {SCHEMA_VERSION}; "
                "update crossearth_jax"
            )
        facts, taxonomy = content["domain"], content["taxonomy"]
        return Domain(
            **{
                **facts,
                "taxonomy": taxonomy and _taxonomy(taxonomy),
                "sizes": {split: tuple(size) for split, size in facts["sizes"].items()},
                "pixels": {split: tuple(counts) for split, counts in facts["pixels"].items()},
                "resize": facts["resize"] and Resize(**{**facts["resize"], "box": tuple(facts["resize"]["box"])}),
                "bands": tuple(facts["bands"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); prepare the domain again") from None


def _taxonomy(values: dict[str, Any]) -> Taxonomy:
    return Taxonomy(
        name=values["name"],
        classes=tuple(values["classes"]),
        palette=tuple((r, g, b) for r, g, b in values["palette"]),
    )


def known_domains(data_dir: str | Path) -> list[str]:
    """Return the names of the benchmark's domains and of all other domains prepared in `data_dir`."""
    root = data_folder(data_dir)
    found = {path.parent.parent.relative_to(root).as_posix() for path in root.glob(f"*/*/*/{DOMAIN_FILE}")}
    return [*DOMAINS, *sorted(found - set(DOMAINS))]


def is_known(name: str, data_dir: str | Path) -> bool:
    """Return whether `name` is a domain of the benchmark or is prepared in `data_dir`."""
    return name in DOMAINS or (name.count("/") == 1 and prepared_directory(name, data_dir) is not None)


def find_domain(name: str, data_dir: str | Path) -> Domain:
    """Return the facts of the domain `name`.

    They are read from its prepared data. A domain of the benchmark that is not prepared has the built-in facts.

    Args:
      name: "<dataset>/<config>".
      data_dir: folder of all prepared datasets.

    Raises:
      UserError: there is no such domain, or its facts cannot be read.
    """
    directory = prepared_directory(name, data_dir) if name.count("/") == 1 else None
    if directory is not None and ((directory / DOMAIN_FILE).exists() or name not in DOMAINS):
        return read_domain(directory)
    if name not in DOMAINS:
        known = known_domains(data_dir)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise UserError(
            f"unknown domain '{name}'; {hint}; prepare its domains.toml first if it is a domain of your own"
        )
    return DOMAINS[name]


def source_domains(source: str, data_dir: str | Path) -> tuple[Domain, ...]:
    """Return the facts of each domain in `source` (one name, or several joined by "+").

    Raises:
      UserError: a domain is unknown or named twice, or the domains do not have the same taxonomy.
    """
    names = source.split("+")
    if len(set(names)) < len(names):
        raise UserError(f"the source '{source}' names a domain twice; name each once (weights: data.source_weights)")
    domains = tuple(find_domain(name, data_dir) for name in names)
    for other in domains[1:]:
        if other.taxonomy != domains[0].taxonomy:
            raise UserError(
                f"{domains[0].name} has the classes {', '.join(domains[0].classes)}, {other.name} has "
                f"{', '.join(other.classes)}; domains that are trained on together need the same taxonomy"
            )
    return domains


def settings_from(source: str, data_dir: str | Path) -> list[Setting]:
    """Return the settings that train on `source`: those of the benchmark, or generated ones (see the module docstring).

    Raises:
      UserError: see `source_domains`.
    """
    rows = [setting for setting in SETTINGS.values() if setting.source == source]
    if rows or source in DOMAINS:
        return rows
    sources = source_domains(source, data_dir)
    datasets = {domain.dataset for domain in sources}
    names = [name for name in known_domains(data_dir) if name.split("/")[0] in datasets]
    others = [find_domain(name, data_dir) for name in names if name not in source.split("+")]
    targets = [*sources, *(domain for domain in others if domain.taxonomy == sources[0].taxonomy)]
    rows = [_generated(source, sources, target) for target in targets if target.taxonomy and target.eval_split]
    return [row for row in rows if row.classes]


def _generated(source: str, sources: Sequence[Domain], target: Domain) -> Setting:
    trained_on = "+".join(domain.config for domain in sources)
    return Setting(
        name=f"{trained_on}2{target.config}",
        source=source,
        target=target.name,
        gap=() if target in sources else _gap(sources, target),
        classes=_shared_classes(sources, target),
    )


def _gap(sources: Sequence[Domain], target: Domain) -> tuple[str, ...]:
    """Return what differs between a target and all of its sources; different domains count as different regions."""
    bands = all(domain.bands != target.bands for domain in sources)
    resolution = all(_other_resolution(domain.gsd, target.gsd) for domain in sources)
    return (REGION, *((BANDS,) if bands else ()), *((RESOLUTION,) if resolution else ()))


def _other_resolution(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return False
    return max(first, second) / min(first, second) > SAME_RESOLUTION


def _shared_classes(sources: Sequence[Domain], target: Domain) -> tuple[str, ...]:
    """Return the classes that occur in a train split of the sources and in the evaluation split of the target.

    A class counts as present where label pixels were not counted.
    """

    def occurs(domain: Domain, split: str, index: int) -> bool:
        return split not in domain.pixels or domain.pixels[split][index] > 0

    return tuple(
        name
        for index, name in enumerate(target.classes)
        if occurs(target, target.eval_split, index) and any(occurs(domain, "train", index) for domain in sources)
    )


def settings_of(source: str, names: Sequence[str], data_dir: str | Path) -> list[Setting]:
    """Return the settings called `names`, which must train on `source`; without names, all settings of the source.

    Raises:
      UserError: a name is unknown or trains on another source, or the source is unknown.
    """
    rows = {setting.name: setting for setting in settings_from(source, data_dir)}
    for name in names:
        if name in rows:
            continue
        if name in SETTINGS:
            raise UserError(
                f"setting {name} trains on {SETTINGS[name].source}, this run on {source}; score the settings of "
                "several trainings with --mode=evaluate --checkpoints=DIR"
            )
        raise UserError(f"unknown setting '{name}'; settings of {source}: {', '.join(rows) or 'none'}")
    return [rows[name] for name in names] or list(rows.values())
