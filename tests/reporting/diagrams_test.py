"""The SVG of a diagram in the page, the files beside it, and the content of a report's diagrams."""

from xml.etree import ElementTree

import numpy as np
import pytest

from crossearth_jax.reporting import diagrams, plots
from crossearth_jax.reporting.run import ClassFeatures, Series, read_run


def test_running_mean_is_symmetric():
    np.testing.assert_allclose(diagrams.running_mean(np.array([1.0, 2, 9, 4, 5]), 1), [1, 4, 5, 6, 5])
    line = 3.0 + 2.0 * np.arange(30)
    np.testing.assert_allclose(diagrams.running_mean(line, 4), line, rtol=1e-12)
    np.testing.assert_allclose(diagrams.running_mean(line, 0), line, rtol=1e-12)


@pytest.fixture(scope="module")
def svg():
    steps = np.arange(1, 900)
    series = {"mask & <b>": Series(steps=steps, values=1.0 / steps), "dice": Series(steps=steps, values=2.0 / steps)}
    return diagrams.inline(diagrams.curves("Loss <terms>", series, logarithmic=True))


def test_curves_are_well_formed_and_take_the_page_s_colours(svg):
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.attrib["aria-label"] == "Loss <terms>" and "width" not in root.attrib
    texts = [text.text for text in root.iter("text")]
    assert {"Loss <terms>", "mask & <b>", "dice", "step"} <= set(texts)
    assert "var(--series-1)" in svg and "var(--series-2)" in svg and "var(--muted)" in svg
    for leftover in (*diagrams.SERIES[:2], diagrams.MUTED, "<metadata", "<style", "http", "DejaVu"):
        assert leftover not in svg, leftover


def test_curves_are_thinned(svg):
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    longest = max(len(path.attrib["d"].split("L")) for path in root.iter("path"))
    assert longest <= diagrams.MAX_POINTS


def test_files_are_the_same_every_time_and_in_fixed_colours(tmp_path):
    line = {"loss": Series(steps=np.arange(1, 9), values=np.arange(8.0))}
    for name in ("a", "b"):
        diagrams.save(diagrams.curves("Loss", line), tmp_path / name)
    for end in ("svg", "pdf"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
    svg = (tmp_path / "a.svg").read_text()
    assert diagrams.SERIES[0] in svg and "var(--" not in svg and ">Loss</text>" in svg


def offsets(axes, label):
    (found,) = [points for points in axes.collections if points.get_label() == label]
    return np.asarray(found.get_offsets())


def test_scores_are_drawn_in_rows_in_domain_first(fake_run):
    run = read_run(fake_run)
    diagram = plots.scores(run.cells, {"mine": {cell.name: cell.miou for cell in run.cells}}, "mIoU")
    (axes,) = diagram.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["temperate green", "tropical green"]
    by_name = {cell.name: cell.miou for cell in run.cells}
    assert offsets(axes, "mine")[0].tolist() == [by_name["temperate_green2temperate_green"], 0]


def test_losses_are_drawn_beside_the_in_domain_score(fake_run):
    run = read_run(fake_run)
    (axes,) = plots.losses(run).figure.axes
    iou = {cell.name: cell.iou for cell in run.cells}
    assert offsets(axes, "In-domain").tolist() == [[iou["temperate_green2temperate_green"]["water"], 0]]
    assert offsets(axes, "Cross-season").tolist() == [[iou["temperate_green2temperate_brown"]["water"], 0]]


def test_every_feature_is_drawn_in_both_views():
    features = ClassFeatures(
        values=np.zeros((5, 2), np.float32),
        classes=np.array([0, 1, 1, 0, 1]),
        domains=np.array([0, 0, 1, 1, 1]),
        class_names=("water", "land"),
        domain_names=("x/home", "x/away"),
    )
    points = np.arange(10.0).reshape(5, 2)
    left, right = plots.feature_maps(features, {"water": (0, 0, 255)}, points, "pca").figure.axes
    np.testing.assert_array_equal(offsets(left, "land"), points[[1, 2, 4]])
    np.testing.assert_array_equal(offsets(right, "away"), points[2:])
