"""Write the report of a run (`report.md`, self-contained `report.html`), or a comparison of several runs.

The tables are also written to `tables/` (Markdown, LaTeX with booktabs, CSV) and the diagrams to `figures/` (SVG, PDF).

```
python -m crossearth_jax.report RUN                      # into the run's own folder
python -m crossearth_jax.report RUN RUN… --out=FOLDER    # comparison.md and comparison.html
```
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from absl import logging

from crossearth_jax.config import UserError
from crossearth_jax.reporting import diagrams, page, table_files
from crossearth_jax.reporting.content import Content, comparison_content, run_content
from crossearth_jax.reporting.projection import METHODS
from crossearth_jax.reporting.run import Run, read_run
from crossearth_jax.runtime import command
from crossearth_jax.runtime.atomic import replacing
from crossearth_jax.runtime.buckets import AnyPath, any_path, make_folder, resolved


def write_report(
    workdir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, projection: str = "tsne"
) -> AnyPath:
    """Write `report.md`, `report.html`, `tables/` and `figures/` of an evaluated run; return the path of the page.

    Args:
      workdir: folder with `config.json` and `results.json`; `metrics.jsonl` and `evaluation/*.npz` add the
        training curves, confusion matrices, features and examples.
      out: folder to write to; the run's own by default.
      projection: method that projects the class features to two dimensions, a key of `reporting.projection.METHODS`.

    Raises:
      UserError: an input is missing or malformed, or the output cannot be written.
    """
    run = read_run(any_path(workdir))
    content = run_content(run, projection)
    pages = {".md": page.run_markdown(run, content), ".html": page.run_page(run, content)}
    return _write(any_path(out or workdir), "report", pages, content)


def write_comparison(workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> AnyPath:
    """Write `comparison.md`, `comparison.html`, `tables/` and `figures/` of several runs; return the path of the page.

    Raises:
      UserError: a run is given twice, an input is missing or malformed, or the output cannot be written.
    """
    runs = _titled([read_run(any_path(workdir)) for workdir in workdirs])
    content = comparison_content(runs)
    pages = {".md": page.comparison_markdown(runs, content), ".html": page.comparison_page(runs, content)}
    return _write(any_path(out), "comparison", pages, content)


def _titled(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by name: the shortest end of their paths that distinguishes them."""
    paths = [resolved(run.path).parts for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("the same run is given twice; give different run folders")
    length = next(n for n in range(1, max(map(len, paths)) + 1) if len({p[-n:] for p in paths}) == len(paths))
    return {"/".join(path[-length:]): run for path, run in zip(paths, runs, strict=True)}


def _write(folder: AnyPath, stem: str, pages: Mapping[str, str], content: Content) -> AnyPath:
    """Write the diagrams and tables, then the pages, so that a new page always has its files."""
    try:
        for name in ("tables", "figures"):
            make_folder(folder / name)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from None
    for name, diagram in content.diagrams.items():
        diagrams.save(diagram, folder / "figures" / name)
    for name, table in content.tables.items():
        texts = {
            "md": table_files.as_markdown(table),
            "tex": table_files.as_latex(table, name),
            "csv": table_files.as_csv(table),
        }
        for end, text in texts.items():
            _write_text(folder / "tables" / f"{name}.{end}", text)
    for end, text in pages.items():
        _write_text(folder / (stem + end), text)
    logging.info("wrote %s", folder / f"{stem}.html")
    return folder / f"{stem}.html"


def _write_text(path: AnyPath, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Write the report or comparison that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m crossearth_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of an evaluated run")
    parser.add_argument("--out", help="folder to write to (default: the run's own)")
    parser.add_argument(
        "--projection",
        choices=METHODS,
        default="tsne",
        help="projection of the class features; umap needs the extra umap",
    )
    options = parser.parse_args(arguments)
    if len(options.runs) == 1:
        write_report(options.runs[0], options.out, options.projection)
    elif options.out is None:
        raise UserError("a comparison needs a folder of its own; give --out=FOLDER")
    else:
        write_comparison(options.runs, options.out)


if __name__ == "__main__":
    command.run(main)
