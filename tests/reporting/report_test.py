"""The report of the made-up run of conftest.py: its numbers, its order, and that the page needs no other file."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from crossearth_jax import report
from crossearth_jax.config import UserError
from crossearth_jax.reporting.content import curve_groups
from crossearth_jax.reporting.run import Series, read_run

GROUPS = ["In-domain", "Cross-climate", "Cross-season", "Cross-climate and season", "All unseen domains"]


class Page(HTMLParser):
    """Checks nesting and collects table rows, links and what the page would load."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.links, self.loads, self.anchors = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors += [attributes["id"]] if "id" in attributes else []
        self.loads += [(tag, attributes[key]) for key in ("src", "srcset", "data", "poster") if key in attributes]
        self.links += [attributes["href"]] if tag == "a" else []
        self.loads += [(tag, attributes["href"])] if "href" in attributes and tag == "link" else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(fake_run, tmp_path_factory):
    path = report.write_report(fake_run, tmp_path_factory.mktemp("out"))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(fake_run):
    return json.loads((fake_run / "results.json").read_text())


def markdown_rows(text, title):
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line[1:-1].split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [[value.strip(" *") for value in row] for row in rows]


def unseen_mean(results, value):
    return np.mean([value(cell) for cell in results.values() if cell["cross_domain"]])


def test_page_shows_the_measured_numbers_and_the_mean_of_unseen_cells_only(page, results):
    rows = Page(page).rows
    for name, cell in results.items():
        title = cell["target"].split("/")[1].replace("_", " ")
        scores = [cell["miou"], cell["baselines"]["colour"]["miou"], cell["baselines"]["majority"]["miou"]]
        expected = [title + name, "", *(f"{score:.1f}" for score in scores), ", ".join(cell["classes"])]
        assert expected in rows
    mean = f"{unseen_mean(results, lambda cell: cell['miou']):.1f}"
    colour = f"{unseen_mean(results, lambda cell: cell['baselines']['colour']['miou']):.1f}"
    (row,) = [row for row in rows if row and row[0] == "Mean of all 7 unseen"]
    assert row[2:4] == [mean, colour]
    everything = np.mean([cell["miou"] for cell in results.values()])
    assert mean != f"{everything:.1f}", "the made-up numbers must tell the two means apart"
    assert f'<div class="value">{mean}</div>' in page


def test_groups_come_in_order_and_in_domain_stands_alone(page):
    rows = Page(page).rows
    titles = [row[0] for row in rows if len(row) == 1]
    assert titles[: len(GROUPS)] == GROUPS
    first = [row[0].split("temperate_green2")[0] for row in rows[rows.index(["In-domain"]) :][1:3]]
    assert first == ["temperate green", "Cross-climate"]


def test_class_table_mutes_what_a_setting_does_not_score(page, results):
    iou = results["temperate_green2arid_green"]["iou"]
    assert f'<td class="muted">{iou["forest"]:.1f}</td>' in page
    assert f'<td class="gain" style="--heat:{iou["water"] / 100:.3f}">{iou["water"]:.1f}</td>' in page


def test_gap_is_the_difference_to_the_in_domain_cell(page, results):
    home, away = results["temperate_green2temperate_green"]["iou"], results["temperate_green2arid_brown"]["iou"]
    shared = ["water", "shrub_grass", "cropland"]
    change = {name: away[name] - home[name] for name in shared}
    mean = np.mean(list(change.values()))
    cells = [f"{value:+.1f}".replace("-", "\u2212") for value in (mean, *change.values())]
    expected = ["arid brown", cells[0], cells[1], "\u2013", cells[2], cells[3], "\u2013"]
    assert expected in Page(page).rows


def test_confusion_rows_are_percent_of_the_truth(page, fake_run):
    with np.load(fake_run / "evaluation" / "temperate_green2cold_brown.npz") as file:
        counts = file["confusion"]
    for name, row in zip(("water", "cropland"), counts[[0, 3]], strict=True):
        assert [name, *(f"{v:.0f}" for v in 100 * row / row.sum())] in Page(page).rows


def test_page_stands_alone_and_its_links_lead_somewhere(page):
    parsed = Page(page)
    assert len(parsed.loads) == 8 * 4 * 4 + 8 * 3
    assert all(tag == "img" and uri.startswith("data:image/") for tag, uri in parsed.loads)
    assert not re.search(r"url\((?!#)|@import|<script|https?://", page)
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.anchors)
    assert "confusion" in parsed.anchors and len(set(parsed.anchors)) == len(parsed.anchors)


def test_every_image_has_a_description(page):
    assert page.count("<img ") == page.count(" alt=")


def test_header_names_checkpoint_and_protocol(page):
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["Checkpoint"] == "step 4,000"
    assert facts["Source domain"] == "blue_marble/temperate_green"
    assert facts["Protocol"] == "last checkpoint; no target domain was used for model selection"


def test_markdown_has_the_same_numbers(fake_run, page, results, tmp_path):
    report.write_report(fake_run, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = markdown_rows(text, "Results")
    assert rows[0] == ["Target", "This model", "Colour only", "Majority class", "Scored classes"]
    mean = f"{unseen_mean(results, lambda cell: cell['miou']):.1f}"
    assert [row[:2] for row in rows if row[0].startswith("Mean of all")] == [["Mean of all 7 unseen", mean]]
    assert {len(row) for row in rows} == {5}
    class_rows = markdown_rows(text, "IoU by class")
    assert [row[0] for row in class_rows if row[0] not in GROUPS][2:] == [
        f"{climate} {season}"
        for climate, season in [
            ("temperate", "green"),
            *((climate, "green") for climate in ("tropical", "arid", "cold")),
            ("temperate", "brown"),
            *((climate, "brown") for climate in ("tropical", "arid", "cold")),
        ]
    ]


def test_hostile_names_are_escaped(make_run):
    run = make_run("run")
    results = json.loads((run / "results.json").read_text())
    evil = '<img src=x onerror="alert(1)">|&'
    for cell in results.values():
        cell["protocol"] = evil
        cell["published"] = {"miou": 50.0, "source": evil}
        cell["iou"] = {evil if name == "water" else name: value for name, value in cell["iou"].items()}
    (run / "results.json").write_text(json.dumps(results))
    page = report.write_report(run).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;|&amp;" in page
    assert all(uri.startswith("data:") for _, uri in Page(page).loads)
    assert "<img" not in (run / "report.md").read_text(encoding="utf-8").replace("\\<img", "")


def test_published_numbers_and_style_distances_get_columns(make_run):
    run = make_run("run")
    results = json.loads((run / "results.json").read_text())
    for i, cell in enumerate(results.values()):
        cell["published"] = {"miou": 60.0 + i, "source": "Table 3"} if i < 2 else None
        cell["style_distance"] = 1.5 * i
        cell |= {"ece": 20.0 + i, "ece_calibrated": 3.0 + i, "temperature": 1.75}
    (run / "results.json").write_text(json.dumps(results))
    rows = Page(report.write_report(run).read_text(encoding="utf-8")).rows
    first = next(row for row in rows if row[0].startswith("tropical green"))
    assert first[5] == "60.0Table 3" and float(first[7]) == float(first[6]) - 17
    (head,) = [row for row in rows if row and row[-1] == "Style distance"]
    gap = next(row for row in rows[rows.index(head) :] if row[0] == "cold green")
    assert gap[-1] == "3.0"
    (mean,) = [row for row in rows if row and row[0] == "Mean of all 7 unseen"]
    assert mean[5] == "\u2013"  # two published numbers do not give a mean of seven
    unseen = [number for number, cell in enumerate(results.values()) if cell["cross_domain"]]
    assert mean[6:8] == [f"{20 + np.mean(unseen):.1f}", f"{3 + np.mean(unseen):.1f}"]
    assert "ECE calibrated" in (run / "report.md").read_text("utf-8")


def with_features(run):
    """Add features of two classes in two domains; in the second, those of class 1 lie among those of class 0."""
    values = np.array([[0.0, 1], [0, 2], [9, 1], [9, 2], [0, 1], [1, 1]], np.float16)
    np.savez(
        run / "evaluation" / "class_features.npz",
        features=values,
        classes=np.array([0, 0, 1, 1, 0, 1], np.uint8),
        domains=np.array([0, 0, 0, 0, 1, 1], np.uint16),
        class_names=np.array(["water", "forest"]),
        domain_names=np.array(["blue_marble/temperate_green", "blue_marble/cold_green"]),
    )
    return run


def test_features_are_drawn_and_counted(make_run):
    run = with_features(make_run("run"))
    parsed = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert "features" in parsed.anchors
    start = parsed.rows.index(["Domain", "water", "forest"])
    assert parsed.rows[start + 1 : start + 3] == [["temperate green", "100.0", "100.0"], ["cold green", "100.0", "0.0"]]
    np.savez(run / "evaluation" / "class_features.npz", features=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"class_features\.npz cannot be read .*classes"):
        report.write_report(run)


def test_largest_losses_say_what_a_class_is_taken_for(page, results, fake_run):
    home = results["temperate_green2temperate_green"]["iou"]
    changes = {
        (cell["target"], name): cell["iou"][name] - home[name]
        for cell in results.values()
        for name in cell["classes"]
        if cell["cross_domain"] and name in results["temperate_green2temperate_green"]["classes"]
    }
    target, name = min(changes, key=changes.get)
    rows = Page(page).rows
    row = rows[rows.index(["Class", "Target", "In-domain IoU", "IoU", "Change", "Missed as", "False alarms on"]) + 1]
    setting = next(key for key, cell in results.items() if cell["target"] == target)
    assert row[:4] == [name, target.split("/")[1].replace("_", " "), *(f"{results[key]['iou'][name]:.1f}" for key in (
        "temperate_green2temperate_green", setting))]  # fmt: skip
    with np.load(fake_run / "evaluation" / f"{setting}.npz") as file:
        counts, names = file["confusion"], file["classes"].tolist()
    index = names.index(name)
    wrong = counts[index] * (np.arange(len(names)) != index)
    assert row[5] == f"{names[wrong.argmax()]} {100 * wrong.max() / counts[index].sum():.0f} %"


def test_tables_and_diagrams_lie_beside_the_page(fake_run, tmp_path, results):
    report.write_report(fake_run, tmp_path)
    tables = {"results", "classes", "gap", "losses"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.{end}" for name in tables for end in ("md", "tex", "csv")
    }
    drawn = {"results", "losses", "examples", "training_loss", "training_loss_terms", "training_learning_rate"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{end}" for name in drawn | {"training_images_s"} for end in ("svg", "pdf")
    }
    with (tmp_path / "tables" / "results.csv").open() as file:
        rows = {row["Target"]: row for row in csv.DictReader(file)}
    cell = results["temperate_green2cold_brown"]
    assert rows["cold brown"]["This model"] == f"{cell['miou']:.1f}"
    assert rows["cold brown"]["Group"] == "Cross-climate and season"
    assert (tmp_path / "tables" / "gap.md").read_text() in (tmp_path / "report.md").read_text()


def test_style_examples_are_shown_as_pairs(make_run):
    run = make_run("run")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.savez(run / "evaluation" / "style_examples.npz", images=images, restyled=255 - images)
    page = report.write_report(run).read_text(encoding="utf-8")
    assert [f'alt="style {i}: restyled"' in page for i in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_run_without_training_or_examples_still_has_its_table(make_run):
    run = make_run("run")
    (run / "metrics.jsonl").unlink()
    for path in (run / "evaluation").iterdir():
        path.unlink()
    page = report.write_report(run).read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == ["results", "classes", "gap", "configuration"]


def test_metrics_skip_nulls_and_a_cut_last_line(make_run):
    run = make_run("run")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    series = read_run(run).metrics["loss"]
    assert (series.steps.tolist(), series.values.tolist()) == ([1], [2.0])


def test_curves_are_grouped():
    line = Series(steps=np.array([1, 2]), values=np.array([1.0, 2.0]))
    flat = Series(steps=np.array([1, 2]), values=np.array([0.0, 0.0]))
    names = ["loss", "loss/mask/last", "loss/mask/0", "loss/mim", "learning_rate", "images_per_second"]
    groups = curve_groups({name: line for name in names} | {"nonfinite": flat})
    assert {title: list(series) for title, series in groups.items()} == {
        "Loss": ["loss"],
        "Loss terms": ["mask/last", "mim"],
        "Learning rate": ["learning_rate"],
        "Images/s": ["images_per_second"],
    }


def test_comparison_means_only_what_all_runs_share(make_run, tmp_path):
    first, second = make_run("first"), make_run("second", seed=1, confusion=0.5, seed_of_config=7)
    results = {run: json.loads((run / "results.json").read_text()) for run in (first, second)}
    del results[second]["temperate_green2arid_brown"]
    (second / "results.json").write_text(json.dumps(results[second]))
    report.main([str(first), str(second), f"--out={tmp_path / 'out'}"])
    rows = Page((tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")).rows
    shared = [name for name, cell in results[second].items() if cell["cross_domain"]]
    means = [f"{np.mean([results[run][name]['miou'] for name in shared]):.1f}" for run in (first, second)]
    assert ["Mean of 6", *means] in rows
    (missing,) = [row for row in rows if row[0].startswith("arid brown")]
    assert missing[2] == "\u2013"
    assert ["seed", "42", "7"] in rows
    assert ["Target", "first", "second"] in rows
    water = [f"{np.mean([results[run][name]['iou']['water'] for name in shared]):.1f}" for run in (first, second)]
    assert ["water6 settings", *water] in rows
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        f"{name}.{end}" for name in ("comparison", "training_loss") for end in ("svg", "pdf")
    }
    assert (tmp_path / "out" / "tables" / "comparison_classes.tex").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "results.json").unlink(), r"results\.json is missing; evaluate the run first"),
        (lambda run: (run / "config.json").unlink(), r"config\.json is missing; give the folder of a run"),
        (lambda run: (run / "results.json").write_text("{"), r"results\.json is not valid JSON"),
        (lambda run: (run / "results.json").write_text("[]"), r"results\.json holds a list, expected an object"),
        (lambda run: (run / "results.json").write_text("{}"), r"holds no settings; evaluate"),
        (
            lambda run: (run / "results.json").write_text('{"a2b": {"iou": {}}}'),
            r"setting 'a2b' has no 'miou'; evaluate the run again",
        ),
        (
            lambda run: (run / "results.json").write_text('{"a2b": {"iou": {}, "miou": "x"}}'),
            r"setting 'a2b' has miou = 'x', which has the wrong type",
        ),
        (
            lambda run: (run / "evaluation" / "temperate_green2arid_green.npz").write_bytes(b"PK\x03\x04"),
            r"temperate_green2arid_green\.npz cannot be read",
        ),
        (
            lambda run: np.savez(run / "evaluation" / "temperate_green2arid_green.npz", classes=np.array(["a"])),
            r"temperate_green2arid_green\.npz cannot be read .*confusion",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text("x\n{}\n"),
            r"metrics\.jsonl, line 1 is not a JSON object with a step",
        ),
    ],
)
def test_damaged_runs_are_named(make_run, damage, message):
    run = make_run("run")
    damage(run)
    with pytest.raises(UserError, match=message):
        report.write_report(run)
    assert not list(run.glob("report.*")) and not list(run.glob(".report*"))


def test_command_line_mistakes(make_run, tmp_path):
    run = make_run("run")
    with pytest.raises(UserError, match=r"no run at .*nowhere"):
        report.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="give --out=FOLDER"):
        report.main([str(run), str(run)])
    with pytest.raises(UserError, match="the same run is given twice"):
        report.main([str(run), str(run), f"--out={tmp_path}"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        report.main([str(run), f"--out={tmp_path / 'file'}"])


def test_runs_of_the_same_name_are_told_apart(make_run, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    runs = [make_run("x/run"), make_run("y/run")]
    text = report.write_comparison(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert ["Target", "x/run", "y/run"] in Page(text).rows


def test_shifts_stand_apart_with_mean_and_change(make_run):
    run = make_run("shifted")
    plain = report.write_report(run).read_text()
    strengths = {
        "haze": {str(k): {"value": 0.1 * k, "miou": 60.0 - 5 * k, "iou": {"water": 60.0}} for k in (1, 2, 3)},
        "jpeg": {"1": {"value": 60.0, "miou": 62.0, "iou": {"water": 62.0}}},
    }
    content = {
        "schema_version": 1,
        "source": "blue_marble/temperate_green",
        "checkpoint_step": 4000,
        "clean": {"miou": 64.0, "iou": {"water": 64.0}},
        "shifts": {name: {"parameter": "number", "strengths": values} for name, values in strengths.items()},
    }
    (run / "shifts.json").write_text(json.dumps(content))
    text = report.write_report(run).read_text()
    page = Page(text)
    first = next(i for i, row in enumerate(page.rows) if row[0].startswith("Shift"))
    rows = page.rows[first : first + 5]
    assert [row[0].split("number")[0].strip() for row in rows] == ["Shift", "clean", "haze", "jpeg", "Mean of 2"]
    assert [cell.strip() for cell in rows[1][1:]] == ["", "", "", "64.0", ""]
    assert [cell.strip() for cell in rows[2][1:]] == ["55.0", "50.0", "45.0", "50.0", "\u221214.0"]
    # A shift that is not finished has no mean, so there is no mean over all shifts either.
    assert [cell.strip() for cell in rows[3][1:]] == ["62.0", "\u2013", "\u2013", "\u2013", "\u2013"]
    assert rows[4][-2].strip() == "\u2013"
    assert "test images under appearance shifts" in text and "shifts" in page.anchors
    assert "number: 0.1, 0.2, 0.3" in text
    assert "## Appearance shifts" in (run / "report.md").read_text()
    # Means over real domains do not change.
    of_results = [[row for row in Page(t).rows if row and row[0].startswith("Mean of")] for t in (plain, text)]
    assert of_results[0] == [row for row in of_results[1] if row[0] != "Mean of 2"]
    content["schema_version"] = 2
    (run / "shifts.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has the schema version 2, this program reads 1; score the shifts again"):
        report.write_report(run)
