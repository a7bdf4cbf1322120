"""The example domains of the project can be prepared without changes."""

from pathlib import Path

import numpy as np
import pytest
from crossearth_data.own import plan  # pyright: ignore[reportMissingImports]

from crossearth_jax.benchmark.domains_file import read_domains_file
from crossearth_jax.benchmark.own_files import image_sizes

DATA = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("dubai_sample/domains.toml", {"inland": {"train": 18, "test": 9}, "coast": {"train": 9, "test": 36}}),
        ("scenes/water.toml", {"virginia": {"train": 68, "test": 32}, "olinda": {"train": 17, "test": 8}}),
    ],
)
def test_every_class_occurs_and_splits_are_as_documented(file, expected):
    domains = read_domains_file(DATA / file)
    for name, counts in expected.items():
        made = plan.make_plan(domains.domains[name])
        found = {split: [plan.inspect(piece) for piece in pieces] for split, pieces in made.pieces.items()}
        assert {split: sum(len(one.sizes) for one in pieces) for split, pieces in found.items()} == counts
        assert not [one.fault for pieces in found.values() for one in pieces if one.fault]
        for pieces in found.values():
            histogram = np.sum([one.histogram for one in pieces], axis=0)
            assert (histogram[: len(domains.taxonomy.classes)] > 0).all()
            assert histogram[len(domains.taxonomy.classes) : 255].sum() == 0


def test_sizes_are_known_without_reading():
    sizes = image_sizes(read_domains_file(DATA / "dubai_sample/domains.toml").domains["inland"])
    assert (sizes.smallest, sizes.largest) == ((544, 398), (644, 510))
    sizes = image_sizes(read_domains_file(DATA / "scenes/water.toml").domains["virginia"])
    assert (sizes.smallest, sizes.largest) == ((51, 51), (51, 51))  # half a block of 102 pixels; some have 52


def test_the_sample_stays_small():
    assert sum(file.stat().st_size for file in (DATA / "dubai_sample").rglob("*") if file.is_file()) < 5e6
