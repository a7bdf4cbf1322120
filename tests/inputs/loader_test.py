"""The training stream depends only on seed and step, for any number of processes, workers and sources."""

import dataclasses
import itertools
import multiprocessing

import numpy as np
import pytest
from absl import flags

from crossearth_jax.benchmark import DOMAINS, IGNORE
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs import loader
from crossearth_jax.inputs.loader import train_iterator
from crossearth_jax.inputs.sources import PreparedSplit

DOMAIN, IMAGES = "blue_marble/temperate_brown", 62  # in the train split


@pytest.fixture
def config(data_dir):
    return DataConfig(source=DOMAIN, data_dir=data_dir, batch_size=8)


@pytest.fixture
def from_disk(monkeypatch):
    """Read records from disk, as for datasets that do not fit into memory."""
    monkeypatch.setattr(loader, "MEMORY_LIMIT", 0)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def indices(batches):
    return np.concatenate([batch["index"] for batch in batches])


def test_batches_hold_the_records_they_name(config, data_dir):
    (batch,) = take(train_iterator(config, seed=1), 1)
    assert batch["image"].shape == (8, 64, 64, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8, 64, 64) and batch["label"].dtype == np.uint8
    assert batch["index"].dtype == np.int32
    split = PreparedSplit(DOMAIN, "train", data_dir)
    for row, index in enumerate(batch["index"].tolist()):
        np.testing.assert_array_equal(batch["image"][row], split[index]["image"])
        np.testing.assert_array_equal(batch["label"][row], split[index]["label"])


def test_every_epoch_is_another_permutation(config):
    stream = indices(take(train_iterator(config, seed=1), 31))  # 4 epochs of 62
    epochs = stream.reshape(4, IMAGES)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(IMAGES))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_seed_decides_the_order(config):
    first, again, other = (indices(take(train_iterator(config, seed=seed), 3)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_every_batch(config, count):
    whole = take(train_iterator(config, seed=3), 10)
    parts = [take(train_iterator(config, 3, index, count), 10) for index in range(count)]
    joined = [{name: np.concatenate([p[i][name] for p in parts]) for name in whole[0]} for i in range(10)]
    assert_equal(joined, whole)
    # All processes together read every record once per epoch, even if the epoch ends inside a batch.
    np.testing.assert_array_equal(np.sort(indices(joined)[:IMAGES]), np.arange(IMAGES))


def test_a_step_can_be_started_from(config):
    whole = take(train_iterator(config, seed=4), 12)
    assert_equal(take(train_iterator(config, seed=4, start_step=9), 3), whole[9:])
    # A run can also continue with another number of processes.
    (half,) = take(train_iterator(config, 4, 1, 2, start_step=11), 1)
    np.testing.assert_array_equal(half["image"], whole[11]["image"][4:])


def test_reading_from_disk_gives_the_same_stream(config, monkeypatch):
    expected = take(train_iterator(config, seed=6), 9)
    monkeypatch.setattr(loader, "MEMORY_LIMIT", 0)
    assert_equal(take(train_iterator(config, seed=6), 9), expected)
    assert_equal(take(train_iterator(config, seed=6, start_step=4), 5), expected[4:])


def test_worker_processes_give_the_same_stream(config, from_disk, monkeypatch):
    # As in a notebook, where no command has parsed the flags. `unparse_flags` would also silence absl's log.
    monkeypatch.setitem(vars(flags.FLAGS), "__flags_parsed", False)
    config = dataclasses.replace(config, workers=2)
    expected = take(train_iterator(dataclasses.replace(config, workers=0), seed=7), 7)
    # The run continues with another number of workers.
    iterator = train_iterator(config, seed=7, start_step=3)
    assert_equal(take(iterator, 3), expected[3:6])
    # A worker that is killed, e.g. for lack of memory, is reported instead of being waited for.
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(UserError, match=r"reader process of .*temperate_brown, split train died .*exit code -9"):
        take(iterator, 10)
    iterator.close()


def test_corrupt_records_stop_or_are_replaced(config, monkeypatch):
    read = PreparedSplit.__getitem__

    def damaged(self, index):
        if index == 5:
            self._records = [{"image": b"", "id": b""}] * IMAGES
        return read(PreparedSplit(self.domain, self.split, config.data_dir) if index != 5 else self, index)

    monkeypatch.setattr(PreparedSplit, "__getitem__", damaged)
    with pytest.raises(UserError, match="record 5 cannot be read"):
        train_iterator(config, seed=0)
    skipping = dataclasses.replace(config, corrupt_records="skip")
    stream = indices(take(train_iterator(skipping, seed=8), 31))[:IMAGES]
    np.testing.assert_array_equal(np.sort(stream), np.sort([*range(5), *range(6, IMAGES), 6]))
    # The replacement is marked, once per epoch.
    batches = take(train_iterator(skipping, seed=8), 31)
    replaced = np.concatenate([batch["replaced"] for batch in batches])
    assert replaced.sum() == 4 and (indices(batches)[replaced] == 6).all()


def test_larger_training_images_are_cut_at_random(data_dir, config, monkeypatch):
    facts = DOMAINS[DOMAIN]
    smaller = dataclasses.replace(facts, sizes={**facts.sizes, "train": (48, 80)})
    monkeypatch.setattr(loader, "source_domains", lambda *_: (smaller,))
    batches = take(train_iterator(config, seed=9), 16)  # as wide as the files, which are narrower than the stated size
    split = PreparedSplit(DOMAIN, "train", data_dir)
    starts = set()
    for batch in batches:
        for image, label, index in zip(batch["image"], batch["label"], batch["index"].tolist(), strict=True):
            whole = split[index]["image"]
            (start,) = [i for i in range(17) if (image == whole[i : i + 48]).all()]
            np.testing.assert_array_equal(label, split[index]["label"][start : start + 48])
            starts.add(start)
    assert len(starts) > 12


def test_mistakes_are_explained(config):
    with pytest.raises(UserError, match=r"batch of 8 images does not divide over 3 processes.*multiple of 3"):
        train_iterator(config, 0, 0, 3)
    with pytest.raises(UserError, match="corrupt_records is 'ignore', expected 'stop' or 'skip'"):
        train_iterator(dataclasses.replace(config, corrupt_records="ignore"), 0)
    with pytest.raises(UserError, match="unknown domain 'mars/north'; known: blue_marble"):
        train_iterator(dataclasses.replace(config, source="mars/north"), 0)


def test_a_small_image_comes_with_its_size(random_split):
    reader = loader._Reader(random_split(DOMAIN, [(64, 64), (40, 70)]), (64, 64), 5)
    batch = reader.read([0, 1], np.zeros((2, 2)))
    np.testing.assert_array_equal(batch["size"], [[64, 64], [40, 64]])
    assert (batch["label"][1, 40:] == IGNORE).all()


def test_several_sources_are_shuffled_as_one():
    order = loader.Order(seed=5, lengths=(4, 6))
    stream = [order.record(position) for position in range(30)]
    for epoch in np.reshape(stream, (3, 10)):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert stream == [loader.Order(seed=5, lengths=(10,)).record(position) for position in range(30)]


def test_weights_give_each_source_its_share_of_every_epoch():
    order = loader.Order(seed=5, lengths=(3, 7), weights=(3.0, 2.0))
    assert order.shares == (6, 4)
    epochs = np.reshape([order.record(position) for position in range(70)], (7, 10))
    assert [(epoch < 3).sum() for epoch in epochs] == [6] * 7
    for epoch in epochs:  # records 0 to 2, each twice in six visits
        np.testing.assert_array_equal(np.bincount(epoch[epoch < 3]), [2, 2, 2])
    # Four of seven records per epoch, continued in the next epoch: after seven epochs each was read four times.
    np.testing.assert_array_equal(np.bincount(epochs[epochs >= 3] - 3), [4] * 7)
    assert len(set(epochs[0][epochs[0] >= 3]) & set(epochs[1][epochs[1] >= 3])) == 1
    assert loader.Order(seed=0, lengths=(1, 1, 1), weights=(1.0, 1.0, 1.0)).shares == (1, 1, 1)


def test_windows_are_cut_from_larger_images(config):
    (batch,) = take(train_iterator(dataclasses.replace(config, window=32), seed=1), 1)
    (whole,) = take(train_iterator(config, seed=1), 1)
    assert batch["image"].shape == (8, 32, 32, 3) and (batch["size"] == 32).all()
    np.testing.assert_array_equal(batch["index"], whole["index"])
    for part, image in zip(batch["image"], whole["image"], strict=True):
        pieces = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3))
        assert (pieces == part).all(axis=(-3, -2, -1)).any()
