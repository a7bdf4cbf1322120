"""Records are decoded exactly; damaged records are reported or replaced."""

import io

import numpy as np
import pytest
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.inputs.sources import (
    CorruptRecordError,
    JoinedSource,
    MemorySource,
    PreparedSplit,
    SkippingSource,
    dataset_directory,
)

NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def record(value, **changes):
    image, label = np.full((2, 3, 3), value, np.uint8), np.full((2, 3), value, np.uint8)
    return {"image": png(image), "label": png(label), "id": b"tile"} | changes


@pytest.fixture
def split(data_dir):
    return PreparedSplit("blue_marble/temperate_brown", "test", data_dir)


def test_a_record_is_decoded(split):
    assert len(split) == 19
    first = split[0]
    assert first["image"].shape == (32, 32, 3) and first["image"].dtype == np.uint8
    assert first["label"].shape == (32, 32) and set(np.unique(first["label"])) <= {0, 1, 2, 3, 4, IGNORE}
    assert (first["index"], first["domain"]) == (0, "blue_marble/temperate_brown")
    assert first["id"].startswith("brown_")
    assert len({split[i]["id"] for i in range(19)}) == 19


def test_channels_keep_their_order(split):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 10, 20, 30
    split._records = [record(1, image=png(pixels))]
    np.testing.assert_array_equal(split[0]["image"], pixels)


def test_without_labels_everything_is_ignored(split):
    unlabelled = record(3)
    del unlabelled["label"]
    split._records = [unlabelled]
    np.testing.assert_array_equal(split[0]["label"], np.full((2, 3), IGNORE))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"image": b"not a png"}, "its 9 bytes are not an image file"),
        ({"image": png(NOISE)[:2000]}, "truncated"),
        ({"image": png(np.zeros((2, 3), np.uint8))}, "expected an image of mode RGB, found L"),
        ({"label": png(np.zeros((2, 2), np.uint8))}, "its label"),
    ],
)
def test_a_corrupt_record_is_named(split, damage, reason):
    split._records = [record(0), record(1, **damage)]
    with pytest.raises(CorruptRecordError, match=rf"blue_marble/temperate_brown, split test: record 1 .*{reason}"):
        split[1]


def test_skipping_takes_the_next_readable_record(split):
    split._records = [record(0), record(1, image=b""), record(2, image=b""), record(3), record(4, image=b"")]
    source = SkippingSource(split)
    assert [source[i]["index"] for i in range(5)] == [0, 3, 3, 3, 0]
    assert source.corrupt == {1, 2, 4}
    np.testing.assert_array_equal(source[1]["label"], np.full((2, 3), 3))


def test_skipping_ends_when_nothing_is_left(split):
    split._records = [record(0, image=b""), record(1, image=b"")]
    with pytest.raises(UserError, match="not one record can be read"):
        SkippingSource(split)[0]


def test_memory_holds_the_same_examples(split):
    memory = MemorySource(split)
    assert len(memory) == len(split)
    for index in (0, 18):
        np.testing.assert_array_equal(memory[index]["image"], split[index]["image"])
        np.testing.assert_array_equal(memory[index]["label"], split[index]["label"])


def test_joined_sources_count_on(random_split):
    joined = JoinedSource([random_split("a/b", [(4, 5), (6, 7)]), random_split("c/d", [(8, 9)])])
    assert len(joined) == 3 and [joined.size(index) for index in range(3)] == [(4, 5), (6, 7), (8, 9)]
    assert [(joined[i]["domain"], joined[i]["id"], joined[i]["index"]) for i in range(3)] == [
        ("a/b", "0", 0), ("a/b", "1", 1), ("c/d", "0", 2),
    ]  # fmt: skip


def test_mistakes_are_explained(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"not prepared in .*crossearth_jax\.prepare blue_marble/cold_green --data_dir"):
        PreparedSplit("blue_marble/cold_green", "train", data_dir)
    with pytest.raises(UserError, match="has no split 'eval'; it has train, validation, test"):
        PreparedSplit("blue_marble/temperate_brown", "eval", data_dir)
    (tmp_path / "a/b/incomplete.X1_1.0.0").mkdir(parents=True)
    (tmp_path / "a/b/incomplete.X1_1.0.0/dataset_info.json").touch()
    with pytest.raises(UserError, match="not prepared"):
        dataset_directory("a/b", tmp_path)


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        (tmp_path / "a/b" / version).mkdir(parents=True)
        (tmp_path / "a/b" / version / "dataset_info.json").touch()
    assert dataset_directory("a/b", tmp_path).name == "1.10.0"
