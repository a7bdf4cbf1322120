"""The page and the Markdown file of the benchmark's results: every setting with its score, or with what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from crossearth_jax.benchmark import Domain, OpenRow, Setting, Taxonomy
from crossearth_jax.reporting import rendering
from crossearth_jax.reporting.score_tables import NOTHING, Block, Entry, Table, number
from crossearth_jax.reporting.table_files import as_markdown

TITLE = "Benchmark results"
PROTOCOL = (
    "Every model is either a published file or the model that a run exported; no target domain was used to select the "
    "checkpoint of a run. Images are resized by the rule of their domain and scored with a sliding window. The scores "
    "are resized to the size of the labels, and ignored pixels are not counted. There is one confusion matrix per "
    "target. Means over targets are unweighted. In-domain rows are reference points and are not part of any mean."
)
TWO_CLASSES = (
    "In settings with two classes the score is the IoU of the object class, because the published numbers are too low "
    "to be means over both classes. The column Two-class mean shows the mean over object and background."
)
NOT_PUBLISHED = "A published score is shown only if its source says to which setting it belongs."


class Row(NamedTuple):
    """One row: a setting scored with one checkpoint, or a setting that could not be scored."""

    setting: Setting
    target: Domain
    result: Mapping[str, Any] | None  # an entry of results.json
    missing: tuple[str, ...]  # the reasons if there is no result

    @property
    def score(self) -> float | None:
        """The object's IoU in a two-class setting, else the mIoU, in percent."""
        if self.result is None:
            return None
        return self.result["object_iou"] if self.setting.object else self.result["miou"]


def html_page(rows: Sequence[Row], open_rows: Sequence[OpenRow], checkpoints: str) -> str:
    """Return the self-contained HTML page."""
    return rendering.render(
        "benchmark.html",
        title=TITLE,
        lead=_lead(rows, checkpoints),
        notes=_notes(rows),
        settings=main_table(rows, open_rows),
        models=model_table(rows),
        classes=list(class_tables(rows)),
        missing=missing_lines(rows),
    )


def markdown_page(rows: Sequence[Row], open_rows: Sequence[OpenRow], checkpoints: str) -> str:
    """Return the same numbers as Markdown."""
    return rendering.render(
        "benchmark.md",
        title=TITLE,
        lead=_lead(rows, checkpoints),
        notes=_notes(rows),
        settings=as_markdown(main_table(rows, open_rows)),
        models=as_markdown(model_table(rows)),
        classes=[as_markdown(table) for table in class_tables(rows)],
        missing=missing_lines(rows),
    )


def _lead(rows: Sequence[Row], checkpoints: str) -> str:
    settings = {row.setting.name for row in rows}
    scored = {row.setting.name for row in rows if row.result is not None}
    return f"{len(scored)} of {len(settings)} settings are scored, with the checkpoints in {checkpoints}."


def _notes(rows: Sequence[Row]) -> list[str]:
    two = any(row.setting.object for row in rows)
    unpublished = any(row.setting.published is None for row in rows)
    return [PROTOCOL, *([TWO_CLASSES] if two else []), *([NOT_PUBLISHED] if unpublished else [])]


def missing_lines(rows: Sequence[Row]) -> list[str]:
    """Return one line per reason, with the names of the settings that it prevents from being scored."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.missing:
            reasons.setdefault(reason, []).append(row.setting.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def main_table(rows: Sequence[Row], open_rows: Sequence[OpenRow] = ()) -> Table:
    """Return the table of all settings, grouped by gap; published numbers have their source and its reliability."""
    blocks = []
    for title, members in _gaps(rows).items():
        lines = [_line(row) for row in members]
        if members[0].setting.cross_domain:
            lines += _means(members)
        blocks.append(Block(title=title, rows=tuple(lines)))
    filler = [Entry(text=NOTHING, muted=True)] * 5
    if open_rows:
        lines = tuple((Entry(text=row.name), *filler, Entry(text=row.reason)) for row in open_rows)
        blocks.append(Block(title="Not defined in public sources", rows=lines))
    head = ("Setting", "Checkpoint", "Images", "Score", "Two-class mean", "Published", "Remark")
    return Table(
        caption="mIoU in percent; in settings with two classes the IoU of the object class, which is named.",
        head=tuple(Entry(text=title) for title in head),
        blocks=tuple(blocks),
        plain=(0, 1, 6),
    )


def _gaps(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows grouped by what differs between source and target; in-domain rows come last."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: not row.setting.cross_domain):
        gap = [name.replace("_", " ") for name in row.setting.gap]
        groups.setdefault(f"Unseen {' and '.join(gap)}" if gap else "In-domain, for reference", []).append(row)
    return groups


def _line(row: Row) -> tuple[Entry, ...]:
    setting, result = row.setting, row.result or {}
    known = setting.published
    published = number(None)
    if known is not None:
        published = number(known.miou, note=", ".join(filter(None, (known.source, known.confidence))))
    images = Entry(text=NOTHING, muted=True)
    state = "no score" if row.result is None else ""
    if row.result is not None:
        images = Entry(text=f"{result['images']:,}")
        if result["images"] != result["images_of_benchmark"]:
            state = f"{result['images']:,} of {result['images_of_benchmark']:,} images: not comparable"
    step = result.get("checkpoint_step")
    kind = result.get("kind", "")
    return (
        Entry(text=setting.name, note=f"{setting.source} → {setting.target}"),
        Entry(text=result.get("checkpoint", NOTHING), note=kind if step is None else f"{kind}, step {step:,}"),
        images,
        number(row.score, bold=row.result is not None, note=f"{setting.object} IoU" if setting.object else "mIoU"),
        number(result.get("miou") if setting.object else None),
        published,
        Entry(text=state),
    )


def _means(rows: Sequence[Row]) -> Iterator[tuple[Entry, ...]]:
    """Yield the rows with unweighted means over the settings of a gap, for published files and for own runs."""
    names = dict.fromkeys(row.setting.name for row in rows)
    if len(names) < 2:
        return
    for kinds, what in ((("published", "converted"), "published models"), (("run",), "own runs")):
        scores = {row.setting.name: row.score for row in rows if row.result and row.result["kind"] in kinds}
        if not scores:
            continue
        complete = len(scores) == len(names) and None not in scores.values()
        mean = sum(v for v in scores.values() if v is not None) / len(scores) if complete else None
        state = "" if complete else f"{len(scores)} of {len(names)} settings scored: no mean"
        blank = Entry(text="")
        yield (
            Entry(text=f"Mean of {len(names)}", bold=True), Entry(text=what), blank, number(mean, bold=True),
            blank, blank, Entry(text=state),
        )  # fmt: skip


def model_table(rows: Sequence[Row]) -> Table:
    """Return a table with the unweighted mean of each model over the unseen targets on which it is scored."""
    models: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.result is not None and row.setting.cross_domain:
            models.setdefault((row.result["checkpoint"], row.setting.source), []).append(row)
    lines = []
    for (label, source), members in models.items():
        scores = [row.score for row in members if row.score is not None]
        mean = sum(scores) / len(scores) if len(scores) == len(members) else None
        targets = ", ".join(row.setting.target for row in members)
        lines.append((Entry(text=label, note=source), number(mean, bold=True), Entry(text=targets)))
    return Table(
        caption="Unweighted mean of each model's scores over the unseen targets on which it is scored, in percent.",
        head=tuple(Entry(text=title) for title in ("Model", "Mean", "Targets")),
        blocks=(Block(title="", rows=tuple(lines)),),
        plain=(0, 2),
    )


def class_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield tables of class IoU, one for the settings of each taxonomy."""
    by_taxonomy: dict[Taxonomy, list[Row]] = {}
    for row in rows:
        if row.result is not None and row.target.taxonomy is not None:
            by_taxonomy.setdefault(row.target.taxonomy, []).append(row)
    for taxonomy, members in by_taxonomy.items():
        colours = zip(taxonomy.classes, taxonomy.palette, strict=True)
        heads = [Entry(text=title, swatch=colour) for title, colour in colours]
        lines = []
        for row in members:
            iou = (row.result or {})["iou"]
            entries = (number(iou.get(title), heat=(iou.get(title) or 0) / 100) for title in taxonomy.classes)
            lines.append((Entry(text=row.setting.name, note=(row.result or {})["checkpoint"]), *entries))
        yield Table(
            caption=f"{taxonomy.name} classes: IoU of each class in percent.",
            head=(Entry(text="Setting"), *heads),
            blocks=(Block(title="", rows=tuple(lines)),),
        )
