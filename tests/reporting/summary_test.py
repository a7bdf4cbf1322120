"""Groups, means and gaps of made-up settings, worked out by hand."""

import pytest

from crossearth_jax.reporting import summary
from crossearth_jax.reporting.run import Cell, Score


def cell(name, gap, miou, iou=None, classes=("a", "b"), **fields):
    return Cell(
        name=name,
        source=fields.pop("source", "data/source"),
        target=f"data/{name}",
        gap=gap,
        cross_domain=bool(gap),
        miou=miou,
        iou=iou or {"a": miou, "b": miou},
        classes=classes,
        accuracy=None,
        pixels=None,
        checkpoint_step=1,
        protocol="",
        baselines=fields.pop("baselines", {}),
        published=fields.pop("published", None),
        published_source="",
        style_distance=None,
    )


HOME = cell("home", (), 80.0)
CELLS = [
    cell("both", ("climate", "season"), 10.0),
    cell("climate_1", ("climate",), 40.0),
    cell("season", ("season",), 30.0),
    HOME,
    cell("climate_2", ("climate",), 60.0),
]


def test_groups_start_in_domain_and_end_with_the_widest_gap():
    found = [(g.title, g.cross_domain, [c.name for c in g.cells]) for g in summary.groups(CELLS)]
    assert found == [
        ("In-domain", False, ["home"]),
        ("Cross-climate", True, ["climate_1", "climate_2"]),
        ("Cross-season", True, ["season"]),
        ("Cross-climate and season", True, ["both"]),
    ]
    assert summary.gap_title(cell("x", ("region", "spectral_band"), 0.0)) == "Cross-region and spectral band"


def test_mean_of_unseen_leaves_the_in_domain_cell_out():
    assert summary.mean(summary.unseen(CELLS), summary.model) == pytest.approx((10 + 40 + 30 + 60) / 4)


def test_a_mean_needs_every_value():
    cells = [cell("x", ("climate",), 1.0, published=50.0), cell("y", ("climate",), 1.0)]
    assert summary.mean(cells, summary.published) is None
    assert summary.mean(cells[:1], summary.published) == 50.0
    assert summary.mean([], summary.model) is None


def test_baselines_are_read_and_ordered():
    scores = {"majority": Score(miou=5.0, iou={}), "colour": Score(miou=20.0, iou={}), "other": Score(miou=7.0, iou={})}
    cells = [cell("x", ("climate",), 1.0, baselines=scores), cell("y", ("climate",), 1.0)]
    assert summary.baseline_names(cells) == ("colour", "majority", "other")
    assert [summary.baseline("colour")(c) for c in cells] == [20.0, None]


def test_gap_compares_only_classes_that_both_score():
    reference = cell("home", (), 70.0, {"a": 80.0, "b": 60.0, "c": 50.0, "d": None}, ("a", "b", "d"))
    unseen = cell("away", ("climate",), 40.0, {"a": 50.0, "b": 65.0, "c": 10.0, "d": 5.0}, ("a", "b", "c", "d"))
    (gap,) = summary.gaps([reference, unseen])
    assert gap.change == {"a": -30.0, "b": 5.0}  # c is not scored in-domain, d has no pixel there
    assert gap.mean == -12.5


def test_no_gap_without_a_cell_of_the_same_source_in_domain():
    assert summary.gaps([cell("away", ("climate",), 40.0)]) == ()
    assert summary.gaps([HOME, cell("away", ("climate",), 40.0, source="data/other")]) == ()
    assert summary.gaps([HOME, cell("away", ("climate",), 40.0, {"z": 1.0}, ("z",))]) == ()
