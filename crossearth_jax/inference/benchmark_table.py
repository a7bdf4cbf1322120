"""The table of the benchmark: every setting, by whatever checkpoints and prepared datasets exist.

```
python -m crossearth_jax.main --config=configs/crossearth.py:all --mode=evaluate --checkpoints=DIR --workdir=OUT
```

Each cell (a checkpoint on a target) is one file in `OUT/cells`, written when it is finished; `results.json`,
`report.md` and `report.html` are made anew from them after every cell. The same command goes on where it was stopped,
and scores again only what has changed: the checkpoint, the prepared target or the protocol.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from crossearth_jax import benchmark
from crossearth_jax.benchmark import Setting
from crossearth_jax.benchmark.registry import find_domain, settings_from
from crossearth_jax.config import Config, UserError
from crossearth_jax.inference.candidates import Candidate, find_candidates
from crossearth_jax.inference.domains import score_domain
from crossearth_jax.inference.results import row
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.inputs.sources import PreparedSplit, dataset_directory, prepared_splits
from crossearth_jax.reporting import overview
from crossearth_jax.reporting.overview import Row
from crossearth_jax.runtime.atomic import replacing, write_json

VERSION = 1  # of what a cell holds; another one scores every cell again


class Cell(NamedTuple):
    """A checkpoint on a target."""

    setting: Setting
    candidate: Candidate
    path: Path  # of its file
    identity: dict[str, Any]  # what it was computed from


class Plan(NamedTuple):
    """What can be scored, and why the rest cannot."""

    cells: list[Cell]
    missing: dict[str, tuple[str, ...]]  # setting -> what is missing and how to get it


def fill_table(config: Config, workdir: Path, checkpoints: Path) -> Path:
    """Scores every cell that can be scored and is not up to date; returns the report's path.

    Args:
      config: names the settings (`evaluate.settings`, else those of `data.source`) and where data is prepared.
      workdir: folder of the table.
      checkpoints: folder of runs, published and converted files.

    Raises:
      UserError: there is nothing to score with; the report says what is missing.
    """
    names = config.evaluate.settings
    of_source = settings_from(config.data.source, config.data.data_dir)
    known = benchmark.SETTINGS | {setting.name: setting for setting in of_source}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown settings: {', '.join(unknown)}; known: {', '.join(known)}")
    settings = [known[name] for name in names] or of_source
    plan = make_plan(settings, config.data.data_dir, workdir, checkpoints)
    for name, reasons in plan.missing.items():
        for reason in reasons:
            logging.warning("%s is not scored: %s", name, reason)
    pending = [cell for cell in plan.cells if read_cell(cell) is None]  # before any is scored, on every process
    logging.info(
        "%d cells: %d to score, %d scored before", len(plan.cells), len(pending), len(plan.cells) - len(pending)
    )
    report = write_table(settings, plan, config.data.data_dir, workdir, checkpoints)
    for candidate, cells in _by_candidate(pending):
        for cell in score_cells(config, candidate, cells, plan.missing):
            report = write_table(settings, plan, config.data.data_dir, workdir, checkpoints)
            logging.info("%s by %s: done, see %s", cell.setting.name, candidate.label, report)
    report = write_table(settings, plan, config.data.data_dir, workdir, checkpoints)
    if all(read_cell(cell) is None for cell in plan.cells):
        raise UserError(f"not one of {len(settings)} settings can be scored; {report} says what each of them lacks")
    return report


def make_plan(settings: Sequence[Setting], data_dir: str, workdir: Path, checkpoints: Path) -> Plan:
    """Pairs settings with checkpoints and prepared targets.

    Raises:
      UserError: `checkpoints` is no folder.
    """
    candidates = find_candidates(checkpoints)
    plan = Plan([], {})
    for setting in settings:
        found, lacking = candidates.get(setting.source, []), lacking_data(setting.target, data_dir)
        reasons = [*([] if found else [lacking_checkpoint(setting, checkpoints)]), *([lacking] if lacking else [])]
        if reasons:
            plan.missing[setting.name] = tuple(reasons)
            continue
        for candidate in found:
            path = workdir / "cells" / f"{setting.name} by {candidate.label}.json"
            plan.cells.append(Cell(setting, candidate, path, _identity(setting, candidate, data_dir)))
    return plan


def lacking_checkpoint(setting: Setting, checkpoints: Path) -> str:
    """How to get a checkpoint for a setting that has none."""
    training = benchmark.training_of(setting.name)
    if training is None:
        return f"{checkpoints} holds no run trained on {setting.source}; train one into a folder there"
    train = (
        f"train one: python -m crossearth_jax.main --config=configs/crossearth.py:{training.name}"
        f" --workdir={checkpoints / training.name}"
    )
    if training.weights is None:
        return f"no checkpoint of {training.name} in {checkpoints}, and none was published; {train}"
    download = f"download {training.weights} from {benchmark.WEIGHTS_HOME}"
    other = [name for name in benchmark.OTHER_WEIGHTS if (checkpoints / name).exists() and setting.name in name]
    unread = "".join(f" ({name} is not read: {benchmark.OTHER_WEIGHTS[name]})" for name in other)
    return f"no checkpoint of {training.name} in {checkpoints}: {download}, or {train}{unread}"


def lacking_data(target: str, data_dir: str) -> str | None:
    """How to prepare a target that is not prepared; None if it is."""
    domain = find_domain(target, data_dir)
    split = domain.eval_split
    prepare = f"python -m crossearth_jax.prepare {target} --data_dir={data_dir}"
    if domain.dataset != "blue_marble":
        prepare += f" --manual_dir=FOLDER (data/{domain.dataset}/README.md says where to get its archives)"
    try:
        present = prepared_splits(target, data_dir)
    except UserError:
        return f"{target} is not prepared in {data_dir}: {prepare}"
    if split in present:
        return None
    return f"{target} is prepared in {data_dir} without its split {split}: delete the folder, then {prepare}"


def _identity(setting: Setting, candidate: Candidate, data_dir: str) -> dict[str, Any]:
    info = dataset_directory(setting.target, data_dir) / "dataset_info.json"
    return {
        "version": VERSION,
        "setting": setting.name,
        "checkpoint": candidate.label,
        "checkpoint_state": candidate.fingerprint(),
        "data": hashlib.sha256(info.read_bytes()).hexdigest(),
        "resize": repr(find_domain(setting.target, data_dir).resize),
    }


def read_cell(cell: Cell) -> dict[str, Any] | None:
    """The result in a cell's file if it was computed from what is there now."""
    try:
        stored = json.loads(cell.path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored["result"] if isinstance(stored, dict) and stored.get("identity") == cell.identity else None


def _by_candidate(cells: Sequence[Cell]) -> list[tuple[Candidate, list[Cell]]]:
    groups: dict[Candidate, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.candidate, []).append(cell)
    return list(groups.items())


def score_cells(
    config: Config, candidate: Candidate, cells: Sequence[Cell], missing: dict[str, tuple[str, ...]]
) -> Iterator[Cell]:
    """Writes the file of every cell of one checkpoint and yields it; what fails is added to `missing`.

    Models of one shape share their compiled program.
    """
    try:
        windows = candidate.load().sliding_windows(batch_size=config.evaluate.batch_size)
    except UserError as error:
        logging.error("%s is not scored: %s", candidate.path, error)
        missing.update({cell.setting.name: (f"{candidate.label} cannot be used: {error}",) for cell in cells})
        return
    for cell in cells:
        try:
            result = score_cell(windows, cell, config.data.data_dir)
        except UserError as error:
            logging.error("%s by %s is not scored: %s", cell.setting.name, candidate.label, error)
            missing[cell.setting.name] = (str(error),)
            continue
        if jax.process_index() == 0:
            write_json(cell.path, {"identity": cell.identity, "result": result})
        yield cell


def score_cell(windows: SlidingWindows, cell: Cell, data_dir: str) -> dict[str, Any]:
    """The content of a cell's file."""
    domain = find_domain(cell.setting.target, data_dir)
    found = score_domain(windows, domain, domain.eval_split, data_dir)
    return row(cell.setting, domain.classes, found.confusion, cell.candidate.step) | {
        "checkpoint": cell.candidate.label,
        "kind": cell.candidate.kind,
        "images": len(PreparedSplit(domain.name, domain.eval_split, data_dir)),
        "images_of_benchmark": domain.counts[domain.eval_split],
        "confusion": found.confusion.tolist(),
    }


def write_table(settings: Sequence[Setting], plan: Plan, data_dir: str, workdir: Path, checkpoints: Path) -> Path:
    """Writes `results.json`, `report.md` and `report.html` of the cells that are finished; returns the page's path."""
    rows, results = [], {}
    for setting in settings:
        target = find_domain(setting.target, data_dir)
        cells = [cell for cell in plan.cells if cell.setting is setting]
        scored = [result for cell in cells if (result := read_cell(cell)) is not None]
        for result in scored:
            key = setting.name if len(cells) == 1 else f"{setting.name} by {result['checkpoint']}"
            results[key] = {name: value for name, value in result.items() if name != "confusion"}
        rows += [Row(setting, target, result, ()) for result in scored]
        if len(scored) < max(len(cells), 1):
            rows.append(Row(setting, target, None, plan.missing.get(setting.name, ("not scored yet",))))
    page = workdir / "report.html"
    if jax.process_index() == 0:
        write_json(workdir / "results.json", results)
        open_rows = benchmark.OPEN_ROWS if any(map(benchmark.training_of, plan.missing | results)) else ()
        for path, text in (
            (workdir / "report.md", overview.markdown_page(rows, open_rows, str(checkpoints))),
            (page, overview.html_page(rows, open_rows, str(checkpoints))),
        ):
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return page
