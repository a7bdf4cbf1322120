"""The facts of the benchmarks are consistent."""

import pytest

from crossearth_jax.benchmark import DOMAINS, SETTINGS, TAXONOMIES, used_splits


def test_rows_of_blue_marble():
    gaps = [setting.gap for setting in SETTINGS.values() if setting.source.startswith("blue_marble/")]
    assert gaps == [("climate",)] * 12 + [("season",)] * 4 + [()] * 4 + [("climate", "season")] * 12
    assert SETTINGS["temperate_green2arid_brown"].classes == ("water", "shrub_grass", "cropland")
    assert SETTINGS["arid_green2arid_green"].classes == ("water", "shrub_grass", "cropland", "bare_snow")


def test_every_name_resolves():
    for name, domain in DOMAINS.items():
        assert name == f"{domain.dataset}/{domain.config}"
        assert domain.counts.keys() == domain.sizes.keys()
        assert domain.taxonomy is None or domain.eval_split in {*domain.counts, ""}
    for name, setting in SETTINGS.items():
        assert name == setting.name and "/" not in name
        assert setting.cross_domain == (setting.source != setting.target)
        assert "train" in used_splits(setting.source)
        assert DOMAINS[setting.target].eval_split in used_splits(setting.target)
        taxonomy = DOMAINS[setting.source].taxonomy
        assert taxonomy == DOMAINS[setting.target].taxonomy
        order = [taxonomy.classes.index(name) for name in setting.classes]
        assert order == sorted(order) and len(order) > 1


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=lambda taxonomy: taxonomy.name)
def test_classes_have_distinct_names_and_colours(taxonomy):
    assert len(set(taxonomy.classes)) == len(taxonomy.classes)
    assert len(set(taxonomy.palette)) == len(taxonomy.palette) == len(taxonomy.classes)
    assert all(0 <= value <= 255 for colour in taxonomy.palette for value in colour)
