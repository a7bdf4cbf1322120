"""The results table of the benchmark: all settings, scored with the checkpoints and prepared datasets that exist.

```
python -m crossearth_jax.main --config=configs/crossearth.py:all --mode=evaluate --checkpoints=DIR --workdir=OUT
```

The result of each cell (a checkpoint scored on a setting) is one file in `OUT/cells`, written when the cell is
finished. `results.json`, `report.md` and `report.html` are written again after every cell. After an interruption the
same command continues. It scores a cell again only if the checkpoint, the prepared target, the target's resizing rule
or the format of the cell has changed.
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
from crossearth_jax.inference.calibration import scored_temperatures
from crossearth_jax.inference.candidates import Candidate, find_candidates
from crossearth_jax.inference.domains import score_domain
from crossearth_jax.inference.results import row
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.inputs.sources import PreparedSplit, dataset_directory, prepared_splits
from crossearth_jax.reporting import overview
from crossearth_jax.reporting.overview import Row
from crossearth_jax.runtime.atomic import replacing, write_json
from crossearth_jax.runtime.buckets import AnyPath

VERSION = 1  # format of a cell's file; after a change of it every cell is scored again


@dataclasses.dataclass
class Cell:
    """A checkpoint on a setting, with its result or the reasons why it has none.

    A setting that lacks a checkpoint or prepared data has a single cell whose `candidate` is None.
    """

    setting: Setting
    candidate: Candidate | None = None
    path: AnyPath = Path()  # its file, if it has a checkpoint
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)  # everything on which its result depends
    result: dict[str, Any] | None = None  # an entry of results.json, plus the confusion matrix
    missing: tuple[str, ...] = ("not scored yet",)  # the reasons while there is no result


def fill_table(config: Config, workdir: AnyPath, checkpoints: Path) -> AnyPath:
    """Score every cell that can be scored and has no up-to-date result; return the path of the HTML report.

    Args:
      config: gives the settings (`evaluate.settings`, else all of `data.source`) and the folder of the prepared data.
      workdir: folder for the table.
      checkpoints: folder that holds runs, published files and converted files.

    Raises:
      UserError: a setting is unknown, or no cell could be scored; the report then lists what each setting lacks.
    """
    names = config.evaluate.settings
    of_source = settings_from(config.data.source, config.data.data_dir)
    known = benchmark.SETTINGS | {setting.name: setting for setting in of_source}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown settings: {', '.join(unknown)}; known settings: {', '.join(known)}")
    settings = [known[name] for name in names] or of_source
    cells = find_cells(settings, config.data.data_dir, workdir, checkpoints, config.evaluate.flips)
    pending: dict[Candidate, list[Cell]] = {}
    for cell in cells:
        if cell.candidate is None:
            for reason in cell.missing:
                logging.warning("%s is not scored: %s", cell.setting.name, reason)
        elif cell.result is None:
            pending.setdefault(cell.candidate, []).append(cell)
    done, left = sum(cell.result is not None for cell in cells), sum(map(len, pending.values()))
    logging.info("%d cells: %d to score, %d already scored", done + left, left, done)
    report = write_table(cells, config.data.data_dir, workdir, checkpoints)
    for candidate, own in pending.items():
        try:  # models of the same architecture share one compiled program
            segmentor = candidate.load()
            windows = segmentor.sliding_windows(batch_size=config.evaluate.batch_size, flips=config.evaluate.flips)
        except UserError as error:
            logging.error("%s is not scored: %s", candidate.path, error)
            for cell in own:
                cell.missing = (f"{candidate.label} cannot be used: {error}",)
            continue
        for cell in own:
            try:
                cell.result = score_cell(
                    windows, cell.setting, candidate, config.data.data_dir, segmentor.description.temperature
                )
            except UserError as error:
                logging.error("%s by %s is not scored: %s", cell.setting.name, candidate.label, error)
                cell.missing = (str(error),)
                continue
            if jax.process_index() == 0:
                write_json(cell.path, {"identity": cell.identity, "result": cell.result})
            report = write_table(cells, config.data.data_dir, workdir, checkpoints)
            logging.info("%s by %s: done, see %s", cell.setting.name, candidate.label, report)
        del windows, segmentor  # frees the parameters before the next model is loaded
    report = write_table(cells, config.data.data_dir, workdir, checkpoints)
    if all(cell.result is None for cell in cells):
        raise UserError(f"none of the {len(settings)} settings could be scored; {report} lists what each of them lacks")
    return report


def find_cells(
    settings: Sequence[Setting], data_dir: str, workdir: AnyPath, checkpoints: Path, flips: bool = False
) -> list[Cell]:
    """Pair the settings with checkpoints and prepared targets, and read the results that are up to date.

    Every process of a run calls it before any cell is scored, so that all of them find the same results.

    Raises:
      UserError: `checkpoints` is not a folder.
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
            cell.identity |= {"flips": True} if flips else {}
            with contextlib.suppress(OSError, ValueError):  # no file yet, or a damaged one
                stored = json.loads(cell.path.read_text(encoding="utf-8"))
                if isinstance(stored, dict) and stored.get("identity") == cell.identity:
                    cell.result = stored["result"]
            cells.append(cell)
    return cells


def lacking_checkpoint(setting: Setting, checkpoints: Path) -> str:
    """Return the reason why a setting has no checkpoint, and how to get one."""
    training = benchmark.training_of(setting.name)
    if training is None:
        return (
            f"no run trained on {setting.source} in {checkpoints}; train one there: python -m crossearth_jax.main "
            f"with the configuration of that source and --workdir={checkpoints / 'NAME'}"
        )
    train = (
        f"train one: python -m crossearth_jax.main --config=configs/crossearth.py:{training.name}"
        f" --workdir={checkpoints / training.name}"
    )
    if training.weights is None:
        return f"no checkpoint of {training.name} in {checkpoints}, and none was published; {train}"
    download = f"download {training.weights} from {benchmark.WEIGHTS_HOME} into this folder"
    other = [name for name in benchmark.OTHER_WEIGHTS if (checkpoints / name).exists() and setting.name in name]
    unread = "".join(f" ({name} is not read: {benchmark.OTHER_WEIGHTS[name]})" for name in other)
    return f"no checkpoint of {training.name} in {checkpoints}: {download}, or {train}{unread}"


def lacking_data(target: str, data_dir: str) -> str | None:
    """Return the reason why a target cannot be scored, and how to prepare it; None if its data are prepared."""
    domain = find_domain(target, data_dir)
    split = domain.eval_split
    prepare = f"python -m crossearth_jax.prepare {target} --data_dir={data_dir}"
    if target not in benchmark.DOMAINS:
        prepare = f"python -m crossearth_jax.prepare domains.toml --data_dir={data_dir} (the file that describes it)"
    elif domain.dataset != "blue_marble":
        prepare += f" --manual_dir=FOLDER (data/{domain.dataset}/README.md says where to get its archives)"
    try:
        present = prepared_splits(target, data_dir)
    except UserError:
        return f"{target} is not prepared in {data_dir}: {prepare}"
    if split in present:
        return None
    folder = dataset_directory(target, data_dir)
    return f"{target} is prepared in {data_dir} without its split {split}: delete {folder}, then {prepare}"


def score_cell(
    windows: SlidingWindows, setting: Setting, candidate: Candidate, data_dir: str, temperature: float | None
) -> dict[str, Any]:
    """Score a checkpoint on a setting and return the result of the cell."""
    domain = find_domain(setting.target, data_dir)
    found = score_domain(windows, domain, domain.eval_split, data_dir, temperatures=scored_temperatures(temperature))
    return row(setting, domain.classes, found.confusion, candidate.step, found.reliability, temperature) | {
        "checkpoint": candidate.label,
        "kind": candidate.kind,
        "images": len(PreparedSplit(domain.name, domain.eval_split, data_dir)),
        "images_of_benchmark": domain.counts[domain.eval_split],
        "confusion": found.confusion.tolist(),
    }


def write_table(cells: Sequence[Cell], data_dir: str, workdir: AnyPath, checkpoints: Path) -> AnyPath:
    """Write `results.json`, `report.md` and `report.html` with the cells scored so far; return the path of the page."""
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
