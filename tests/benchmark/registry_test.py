"""Facts of prepared domains, the benchmark's and a user's, and the settings that follow from them."""

import dataclasses
import json

import pytest

from crossearth_jax.benchmark import DOMAINS, SETTINGS, Domain, Resize, Taxonomy
from crossearth_jax.benchmark.registry import (
    DOMAIN_FILE,
    find_domain,
    is_known,
    known_domains,
    read_domain,
    settings_from,
    settings_of,
    source_domains,
    write_domain,
)
from crossearth_jax.config import UserError

LAND = Taxonomy(name="land", classes=("building", "road", "water"), palette=((255, 0, 0), (9, 9, 9), (0, 0, 255)))


def own(config, **values):
    facts = Domain(
        dataset="cities", config=config, description="", taxonomy=LAND, gsd=0.5, eval_split="test",
        counts={"train": 4, "test": 2}, sizes={"train": (64, 80), "test": (64, 64)},
    )  # fmt: skip
    return dataclasses.replace(facts, **values)


def put(data_dir, domain):
    """Write a folder with the files by which a prepared domain is recognised."""
    folder = data_dir / domain.name / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    write_domain(folder, domain)
    return folder


@pytest.fixture
def cities(tmp_path):
    """Write five domains; other than dubai: quito in bands and gsd, other in classes, nairobi without a test split."""
    put(tmp_path, own("dubai", pixels={"train": (5, 5, 0), "test": (5, 0, 9)}))
    put(tmp_path, own("lagos", gsd=0.6, pixels={"train": (1, 1, 1), "test": (7, 7, 7)}))
    put(tmp_path, own("quito", gsd=0.1, bands=("nir", "red", "green")))
    put(tmp_path, own("nairobi", eval_split="", counts={"train": 4}, sizes={"train": (64, 64)}))
    put(tmp_path, own("other", taxonomy=dataclasses.replace(LAND, classes=("a", "b", "c"))))
    return tmp_path


@pytest.mark.parametrize("name", ["blue_marble/unlabelled", "blue_marble/arid_brown", "casid/temms"])
def test_facts_survive_the_file(name, tmp_path):
    write_domain(tmp_path, DOMAINS[name])
    assert read_domain(tmp_path) == DOMAINS[name]


def test_every_field_survives_the_file(tmp_path):
    domain = own("dubai", resize=Resize(box=(3, 4), keep_ratio=False), pixels={"train": (1, 2, 3)}, gsd=None)
    write_domain(tmp_path, domain)
    assert read_domain(tmp_path) == domain
    content = json.loads((tmp_path / DOMAIN_FILE).read_text())
    assert content["schema_version"] == 1
    assert content["domain"].keys() | {"taxonomy"} == {field.name for field in dataclasses.fields(Domain)}
    assert content["taxonomy"].keys() == {"name", "classes", "palette"}


def test_prepared_facts_come_first(tmp_path):
    name = "casid/temms"
    assert find_domain(name, tmp_path) == DOMAINS[name]
    folder = put(tmp_path, dataclasses.replace(DOMAINS[name], gsd=7.0))
    assert find_domain(name, tmp_path).gsd == 7.0
    (folder / DOMAIN_FILE).unlink()  # prepared by an earlier version
    assert find_domain(name, tmp_path) == DOMAINS[name]
    newer = tmp_path / name / "10.0.0"
    folder.rename(newer)
    write_domain(newer, dataclasses.replace(DOMAINS[name], gsd=8.0))
    put(tmp_path, dataclasses.replace(DOMAINS[name], gsd=9.0))
    assert find_domain(name, tmp_path).gsd == 8.0  # version 10 is newer than 1


def test_known_names(cities):
    assert is_known("cities/dubai", cities) and is_known("casid/temms", cities)
    assert not is_known("cities/paris", cities) and not is_known("cities", cities) and not is_known("..", cities)
    own_names = ["cities/dubai", "cities/lagos", "cities/nairobi", "cities/other", "cities/quito"]
    assert known_domains(cities) == [*DOMAINS, *own_names]
    with pytest.raises(UserError, match="unknown domain 'cities/dubay'; did you mean cities/dubai"):
        find_domain("cities/dubay", cities)
    with pytest.raises(
        UserError, match=r"unknown domain 'mars'; known: blue_marble/.*, cities/quito; prepare its domains.toml"
    ):
        find_domain("mars", cities)


def test_damaged_files_are_explained(cities):
    path = cities / "cities" / "dubai" / "1.0.0" / DOMAIN_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(UserError, match="has the schema version 2, this program reads 1; update"):
        find_domain("cities/dubai", cities)
    path.write_text(json.dumps(content | {"domain": {"dataset": "cities"}}))
    with pytest.raises(UserError, match=r"domain\.json cannot be read .*prepare the domain again"):
        find_domain("cities/dubai", cities)
    path.unlink()
    with pytest.raises(UserError, match=r"domain\.json cannot be read .*prepare the domain again"):
        find_domain("cities/dubai", cities)


def test_settings_of_own_domains(cities):
    rows = {row.name: row for row in settings_from("cities/dubai", cities)}
    assert list(rows) == ["dubai2dubai", "dubai2lagos", "dubai2quito"]  # not of other classes, not without a test split
    assert [row.gap for row in rows.values()] == [(), ("region",), ("region", "spectral_band", "resolution")]
    assert [row.cross_domain for row in rows.values()] == [False, True, True]
    # Water is not in what is trained on, and roads are not in the city's own test split.
    assert rows["dubai2dubai"].classes == ("building",)
    assert rows["dubai2lagos"].classes == rows["dubai2quito"].classes == ("building", "road")
    assert {row.source for row in rows.values()} == {"cities/dubai"}
    assert settings_of("cities/dubai", ["dubai2quito"], cities) == [rows["dubai2quito"]]
    with pytest.raises(UserError, match="unknown setting 'U2D'; settings of cities/dubai: dubai2dubai, dubai2lagos"):
        settings_of("cities/dubai", ["U2D"], cities)


def test_settings_of_several_sources(cities):
    rows = {row.name: row for row in settings_from("cities/dubai+cities/lagos", cities)}
    assert list(rows) == ["dubai+lagos2dubai", "dubai+lagos2lagos", "dubai+lagos2quito"]
    assert [row.cross_domain for row in rows.values()] == [False, False, True]
    assert rows["dubai+lagos2dubai"].classes == ("building", "water")  # water is in the other source
    rows = settings_from("cities/quito+cities/dubai", cities)
    assert [row.gap for row in rows] == [(), (), ("region",)]  # lagos has the bands and pixels of dubai


def test_sources_need_the_same_classes(cities):
    assert [domain.config for domain in source_domains("cities/quito+cities/lagos", cities)] == ["quito", "lagos"]
    with pytest.raises(UserError, match=r"cities/dubai has the classes building, road, water, cities/other has a, b"):
        source_domains("cities/dubai+cities/other", cities)
    with pytest.raises(UserError, match="names a domain twice"):
        source_domains("cities/dubai+cities/dubai", cities)


def test_settings_of_the_benchmark_are_its_own(tmp_path):
    assert settings_from("casid/temms", tmp_path) == [row for row in SETTINGS.values() if row.source == "casid/temms"]
    assert settings_from("blue_marble/unlabelled", tmp_path) == []
    with pytest.raises(UserError, match="setting U2R trains on loveda/urban, this run on casid/temms"):
        settings_of("casid/temms", ["U2R"], tmp_path)
