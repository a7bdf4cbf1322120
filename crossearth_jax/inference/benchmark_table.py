"""The table of the benchmark: every setting, by whatever checkpoints and prepared datasets exist.

```
python -m crossearth_jax.main --config=configs/crossearth.py:all --mode=evaluate --checkpoints=DIR --workdir=OUT
```

Each cell (a checkpoint on a target) is one file in `OUT/cells`, written when it is finished; `results.json`,
`report.md` and `report.html` are made anew from them after every cell. The same command goes on where it was stopped,
and scores again only what has changed: the checkpoint, the prepared target or the protocol.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


@dataclasses.dataclass
class Cell:
    """A checkpoint on a target, with its result or the reasons why there is none.

    A setting without a checkpoint or without prepared data has one cell, without a checkpoint.
    """

    setting: Setting
    candidate: Candidate | None = None
    path: Path = Path()  # of its file, if it has a checkpoint
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)  # what its result is computed from
    result: dict[str, Any] | None = None  # an entry of results.json, and the confusion matrix
    missing: tuple[str, ...] = ("not scored yet",)  # why there is no result


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
    cells = find_cells(settings, config.data.data_dir, workdir, checkpoints)
    pending: dict[Candidate, list[Cell]] = {}
    for cell in cells:
        if cell.candidate is None:
            for reason in cell.missing:
                logging.warning("%s is not scored: %s", cell.setting.name, reason)
        elif cell.result is None:
            pending.setdefault(cell.candidate, []).append(cell)
    done, left = sum(cell.result is not None for cell in cells), sum(map(len, pending.values()))
    logging.info("%d cells: %d to score, %d scored before", done + left, left, done)
    report = write_table(cells, config.data.data_dir, workdir, checkpoints)
    for candidate, own in pending.items():
        try:  # models of one shape share their compiled program
            windows = candidate.load().sliding_windows(batch_size=config.evaluate.batch_size)
        except UserError as error:
            logging.error("%s is not scored: %s", candidate.path, error)
            for cell in own:
                cell.missing = (f"{candidate.label} cannot be used: {error}",)
            continue
        for cell in own:
            try:
                cell.result = score_cell(windows, cell.setting, candidate, config.data.data_dir)
            except UserError as error:
                logging.error("%s by %s is not scored: %s", cell.setting.name, candidate.label, error)
                cell.missing = (str(error),)
                continue
            if jax.process_index() == 0:
                write_json(cell.path, {"identity": cell.identity, "result": cell.result})
            report = write_table(cells, config.data.data_dir, workdir, checkpoints)
            logging.info("%s by %s: done, see %s", cell.setting.name, candidate.label, report)
        del windows  # the memory is needed for the next one
    report = write_table(cells, config.data.data_dir, workdir, checkpoints)
    if all(cell.result is None for cell in cells):
        raise UserError(f"not one of {len(settings)} settings can be scored; {report} says what each of them lacks")
    return report


def find_cells(settings: Sequence[Setting], data_dir: str, workdir: Path, checkpoints: Path) -> list[Cell]:
    """Pairs settings with checkpoints and prepared targets, and reads the results that are up to date.

    Every process of a run calls it before any cell is scored, so that all of them find the same results.

    Raises:
      UserError: `checkpoints` is no folder.
    """
    candidates = find_candidates(checkpoints)
    cells: list[Cell] = []
    for setting in settings:
        found, lacking = candidates.get(setting.source, []), lacking_data(setting.target, data_dir)
        reasons = (*(() if found else (lacking_checkpoint(setting, checkpoints),)), *((lacking,) if lacking else ()))
        if reasons:
            cells.append(Cell(setting, missing=reasons))
            continue
        info = dataset_directory(setting.target, data_dir) / "dataset_info.json"
        for candidate in found:
            cell = Cell(setting, candidate, workdir / "cells" / f"{setting.name} by {candidate.label}.json")
            cell.identity = {
                "version": VERSION,
                "setting": setting.name,
                "checkpoint": candidate.label,
                "checkpoint_state": candidate.fingerprint(),
                "data": hashlib.sha256(info.read_bytes()).hexdigest(),
                "resize": repr(find_domain(setting.target, data_dir).resize),
            }
            with contextlib.suppress(OSError, ValueError):  # no file yet, or a damaged one
                stored = json.loads(cell.path.read_text(encoding="utf-8"))
                if isinstance(stored, dict) and stored.get("identity") == cell.identity:
                    cell.result = stored["result"]
            cells.append(cell)
    return cells


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


def score_cell(windows: SlidingWindows, setting: Setting, candidate: Candidate, data_dir: str) -> dict[str, Any]:
    """The result of a cell."""
    domain = find_domain(setting.target, data_dir)
    found = score_domain(windows, domain, domain.eval_split, data_dir)
    return row(setting, domain.classes, found.confusion, candidate.step) | {
        "checkpoint": candidate.label,
        "kind": candidate.kind,
        "images": len(PreparedSplit(domain.name, domain.eval_split, data_dir)),
        "images_of_benchmark": domain.counts[domain.eval_split],
        "confusion": found.confusion.tolist(),
    }


def write_table(cells: Sequence[Cell], data_dir: str, workdir: Path, checkpoints: Path) -> Path:
    """Writes `results.json`, `report.md` and `report.html` of the cells that are finished; returns the page's path."""
    rows, results = [], {}
    for setting, group in itertools.groupby(cells, key=lambda cell: cell.setting):
        own, target = list(group), find_domain(setting.target, data_dir)
        for cell in own:
            if cell.result is not None:
                key = setting.name if len(own) == 1 else f"{setting.name} by {cell.result['checkpoint']}"
                results[key] = {name: value for name, value in cell.result.items() if name != "confusion"}
                rows.append(Row(setting, target, cell.result, ()))
        missing = dict.fromkeys(reason for cell in own if cell.result is None for reason in cell.missing)
        if missing:
            rows.append(Row(setting, target, None, tuple(missing)))
    page = workdir / "report.html"
    if jax.process_index() == 0:
        write_json(workdir / "results.json", results)
        open_rows = benchmark.OPEN_ROWS if any(benchmark.training_of(cell.setting.name) for cell in cells) else ()
        for path, text in (
            (workdir / "report.md", overview.markdown_page(rows, open_rows, str(checkpoints))),
            (page, overview.html_page(rows, open_rows, str(checkpoints))),
        ):
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return page
