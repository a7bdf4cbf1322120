"""Writes the report of a run (`report.md`, self-contained `report.html`), or a comparison of several runs.

```
python -m crossearth_jax.report RUN                      # into the run's own folder
python -m crossearth_jax.report RUN RUN… --out=FOLDER    # comparison.md and comparison.html
```
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from crossearth_jax import command
from crossearth_jax.config import UserError
from crossearth_jax.reporting import page
from crossearth_jax.reporting.run import Run, read_run


def write_report(workdir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes `report.md` and `report.html` of an evaluated run and returns the page's path.

    Args:
      workdir: folder with `config.json` and `results.json`; `metrics.jsonl` and `evaluation/*.npz` add the
        training curves, confusion matrices and examples.
      out: folder to write to; the run's own by default.

    Raises:
      UserError: an input is missing or malformed, or the output cannot be written.
    """
    run = read_run(Path(workdir))
    return _write(Path(out or workdir), "report", page.run_page(run), page.run_markdown(run))


def write_comparison(workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Writes `comparison.md` and `comparison.html` of several runs into `out` and returns the page's path.

    Raises:
      UserError: as `write_report`.
    """
    runs = _titled([read_run(Path(workdir)) for workdir in workdirs])
    return _write(Path(out), "comparison", page.comparison_page(runs), page.comparison_markdown(runs))


def _titled(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the shortest end of their paths that tells them apart."""
    paths = [run.path.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("the same run is given twice; give different run folders")
    length = next(n for n in range(1, max(map(len, paths)) + 1) if len({p[-n:] for p in paths}) == len(paths))
    return {"/".join(path[-length:]): run for path, run in zip(paths, runs, strict=True)}


def _write(folder: Path, stem: str, html: str, markdown: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for end, text in ((".md", markdown), (".html", html)):
            temporary = folder / f".{stem}{end}.tmp"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / f"{stem}{end}")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from None
    logging.info("wrote %s", folder / f"{stem}.html")
    return folder / f"{stem}.html"


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of an evaluated run")
    parser.add_argument("--out", help="folder to write to (default: the run's own)")
    options = parser.parse_args(arguments)
    if len(options.runs) == 1:
        write_report(options.runs[0], options.out)
    elif options.out is None:
        raise UserError("a comparison of several runs belongs to none of them; give --out=FOLDER")
    else:
        write_comparison(options.runs, options.out)


if __name__ == "__main__":
    command.run(main)
