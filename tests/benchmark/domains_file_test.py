"""Valid contents of domains.toml, and the one-line errors for invalid ones."""

import re

import pytest

from crossearth_jax.benchmark.domains_file import (
    BlockSplit,
    CocoLabels,
    ColourLabels,
    FolderSplit,
    GroupSplit,
    NumberLabels,
    VectorLabels,
    WholeSplit,
    read_domains_file,
    tile_edges,
)
from crossearth_jax.config import UserError

TAXONOMY = '[taxonomy]\nclasses = ["building", "road", "land"]\n'
DOMAIN = TAXONOMY + '[domains.city]\nimages = "*.jpg"\nlabels = "*.png"\n'


def read(folder, text, name="domains.toml"):
    file = folder / name
    file.write_text(text, "utf-8")
    return read_domains_file(file)


def test_everything_of_a_file(tmp_path):
    (tmp_path / "roads.gpkg").touch()
    (tmp_path / "area.gpkg").touch()
    file = read(
        tmp_path,
        """
name = "my_places"

[taxonomy]
classes = ["building", "road", "land"]
palette = ["#c83c3c", "#5a5a5a", "#c8b478"]

[domains.dubai]
images = "dubai/image/*.jpg"
labels = "/elsewhere/*.png"
split = { by = "group", group = "t(\\\\d+)_.*", test = ["7", "8"] }

[domains.town]
images = ["a/*.tif", "b/*.tif"]
bands = ["nir", 2, "green"]
range = "p2,p98"
gsd = 0.3
tile = 256
split = { by = "block", test = 0.3, block = 100 }

[domains.town.labels]
vector = "roads.gpkg"
column = "kind"
background = "land"
area = "area.gpkg"
classes = { street = "road" }
ignore = "unknown"
order = ["road", "building"]
""",
    )
    assert (file.name, file.taxonomy.name, file.taxonomy.classes) == (
        "my_places",
        "my_places",
        ("building", "road", "land"),
    )
    assert file.taxonomy.palette == ((200, 60, 60), (90, 90, 90), (200, 180, 120))
    dubai, town = file.find()
    assert dubai.key == "my_places/dubai"
    assert dubai.images == (str(tmp_path / "dubai/image/*.jpg"),)
    assert dubai.labels == NumberLabels(files=("/elsewhere/*.png",), table={0: 0, 1: 1, 2: 2, 255: 255}, stated=False)
    assert dubai.split == GroupSplit(group=r"t(\d+)_.*", validation=(), test=("7", "8"))
    assert (dubai.tile, dubai.gsd, dubai.bands, dubai.percentiles) == (512, None, None, None)
    assert isinstance(town.labels, VectorLabels)
    assert town.labels.file == tmp_path / "roads.gpkg"
    assert town.labels.rule.names == {"building": 0, "road": 1, "land": 2, "street": 1, "unknown": 255}
    assert (town.labels.rule.background, town.labels.rule.order) == (2, (1, 0))
    assert (town.bands, town.percentiles, town.value_range) == ("nir,2,green", (2, 98), None)
    assert town.split == BlockSplit(validation=0.0, test=0.3, block=100.0, seed=0)


def test_defaults(tmp_path):
    file = read(tmp_path, DOMAIN)
    assert (file.name, list(file.domains)) == ("domains", ["city"])
    assert file.domains["city"].split == WholeSplit(split="test")
    assert len(set(file.taxonomy.palette)) == 3
    with pytest.raises(UserError, match="has no domain 'citi'; did you mean 'city'"):
        file.find(["citi"])


def test_labels_as_colours_and_numbers(tmp_path):
    by_class = '{ building = ["#ff0000", "#fe0000"], road = "#000000" }'
    colours = f'labels = {{ files = "*.png", colours = {by_class}, ignore = ["#ffffff"] }}'
    city = read(tmp_path, DOMAIN.replace('labels = "*.png"', colours)).domains["city"]
    assert isinstance(city.labels, ColourLabels)
    assert city.labels.table == {(255, 0, 0): 0, (254, 0, 0): 0, (0, 0, 0): 1, (255, 255, 255): 255}
    numbers = 'labels = { files = "*.png", ids = { building = [1, 2], road = 300 }, ignore = [0] }'
    city = read(tmp_path, DOMAIN.replace('labels = "*.png"', numbers)).domains["city"]
    assert isinstance(city.labels, NumberLabels)
    assert city.labels.table == {1: 0, 2: 0, 300: 1, 0: 255, 255: 255}
    assert city.labels.stated


def test_mmseg_layout_says_images_labels_and_splits(tmp_path):
    for part in ("img_dir", "ann_dir"):
        for split in ("train", "val"):
            (tmp_path / "set" / part / split).mkdir(parents=True)
    city = read(tmp_path, TAXONOMY + '[domains.city]\nmmseg = "set"\n').domains["city"]
    assert city.split == FolderSplit(train=("train",), validation=(), test=("val",))
    assert city.images == tuple(str(tmp_path / f"set/img_dir/{split}/**/*") for split in ("train", "val"))
    (tmp_path / "set/ann_dir/test").mkdir()
    (tmp_path / "set/ann_dir/test/1.png").touch()
    city = read(tmp_path, TAXONOMY + '[domains.city]\nmmseg = "set"\n').domains["city"]
    assert city.split == FolderSplit(train=("train",), validation=("val",), test=("test",))


def test_coco(tmp_path):
    (tmp_path / "x.json").touch()
    city = read(tmp_path, DOMAIN.replace('"*.png"', '{ coco = "x.json", background = "land" }')).domains["city"]
    assert isinstance(city.labels, CocoLabels)
    assert city.labels.rule.background == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("images", "imagse", r"line 3, domains.city: none is given, expected one of images"),
        ('labels = "*.png"', 'lables = "*.png"', r"domains.city.labels: is missing, .*'lables'"),
        ('labels = "*.png"', 'labels = "*.png"\nsplitt = "test"', r"line 6, domains.city.splitt: unknown key"),
        ('"*.png"', "3", r"line 5, domains.city.labels: found 3, expected a pattern"),
        ('"*.png"', '{ files = "*.png", colours = { house = "#ff0000" } }', r"\"house\" is not in taxonomy.classes"),
        ('"*.png"', '{ files = "*.png", colours = { road = "red" } }', r"found \"red\", expected a colour"),
        ('"*.png"', '{ vector = "no.gpkg", column = "a" }', r"line 5, domains.city.labels.vector: .*no.gpkg does not"),
        ('"*.png"', '"*.png"\nrange = "p98,p2"', r"line 6, domains.city.range: .* smaller number first"),
        ('"*.png"', '"*.png"\nrange = [0, 1]', r"line 6, domains.city.range: found \[0, 1\], expected \"p2,p98\""),
        ('"*.png"', '"*.png"\nbands = ["nir", "red"]', r"line 6, domains.city.bands: found .* three names or numbers"),
        ('"*.png"', '"*.png"\ngsd = -1', r"line 6, domains.city.gsd: found -1, expected metres"),
        ('"*.png"', '"*.png"\ntile = 8', r"domains.city.tile: found 8, expected a whole number of 32 or more"),
        ('"*.png"', '"*.png"\nsplit = { by = "grup", test = 1 }', r"line 6, domains.city.split.by: found 'grup'; did"),
        ('"*.png"', '"*.png"\nsplit = { by = "group", group = "t", test = "1" }', r"split.group: 't' has 0 groups"),
        ('"*.png"', '"*.png"\nsplit = { by = "random", test = 1.5 }', r"split.test: found 1.5, expected a share"),
        ('"*.png"', '"*.png"\nsplit = { by = "list", train = "no.txt" }', r"split.train: .*no.txt does not exist"),
        ('["building", "road", "land"]', '["building"]', r"line 2, taxonomy.classes: 1 are given, expected 2 to 254"),
        ('["building", "road", "land"]', '["a", "b", "a"]', r"taxonomy.classes: a is given twice"),
        ('"land"]', '"land"]\npalette = ["#000000"]', r"line 3, taxonomy.palette: 1 colours for 3 classes"),
        ("[taxonomy]", "[taxonomy]\ncolors = 3", r"line 2, taxonomy.colors: unknown key; known: classes, palette"),
        ("[domains.city]", "[domains.'my city']", r"line 3, domains.my city: the name of a domain may have"),
        ('"*.jpg"', "*.jpg", r"is not valid TOML: .*line 4"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_its_place(tmp_path, old, new, expected):
    with pytest.raises(UserError) as error:
        read(tmp_path, DOMAIN.replace(old, new))
    message = str(error.value)
    assert re.search(expected, message), message
    assert message.startswith(str(tmp_path / "domains.toml"))
    assert "\n" not in message


def test_bands_with_names(tmp_path):
    city = read(tmp_path, DOMAIN + "bands = { nir = 4, red = 3, green = 2 }\n").domains["city"]
    assert (city.bands, city.band_names) == ("4,3,2", ("nir", "red", "green"))


def test_name_of_the_dataset(tmp_path):
    with pytest.raises(UserError, match=r"would be called 'My Places'.*add name"):
        read(tmp_path, DOMAIN, "My Places.toml")
    assert read(tmp_path, f'name = "my_places"\n{DOMAIN}', "My Places.toml").name == "my_places"

    with pytest.raises(UserError, match=r"name: potsdam is a dataset of the benchmark"):
        read(tmp_path, DOMAIN, "potsdam.toml")


def test_absent_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*no.toml"):
        read_domains_file(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("length", "tile", "edges"),
    [
        (1024, 512, [0, 512, 1024]),
        (767, 512, [0, 767]),  # below 1.5 tiles
        (768, 512, [0, 384, 768]),
        (1300, 512, [0, 433, 867, 1300]),
        (100, 512, [0, 100]),
    ],
)
def test_tiles_are_equal_without_overlap_and_rest(length, tile, edges):
    assert tile_edges(length, tile) == edges
