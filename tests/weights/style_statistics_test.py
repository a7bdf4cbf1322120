"""Files of style statistics: round trip, errors, the published file, and the runs that may use the shipped file."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment.style_injection import sample_codes
from crossearth_jax.benchmark import SETTINGS
from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import (
    Provenance,
    from_moments,
    load_statistics,
    save_statistics,
    targets_among,
)
from crossearth_jax.weights.torch_writer import write_torch_zip

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "train"
TEMPERATE = "blue_marble/temperate_green"
ARID = "blue_marble/arid_green"


def statistics(**provenance):
    rng = np.random.default_rng(0)
    defaults = {"network": "mobile", "digest": "", "count": 2000, "sources": ("a folder", "b.tif:3,2,1")}
    factor = rng.normal(size=(100, 40))
    return from_moments(rng.normal(size=100), factor @ factor.T, Provenance(**defaults | provenance))


def test_file_gives_back_what_was_written(tmp_path):
    written = statistics(domains=(TEMPERATE,), allowed_targets=(TEMPERATE,))
    save_statistics(tmp_path / "s.npz", written)
    read = load_statistics(tmp_path / "s.npz", "mobile")
    assert read.provenance == written.provenance
    for name in ("mean", "covariance", "factor"):
        found, expected = getattr(read, name), getattr(written, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(read.factor @ read.factor.T, read.covariance, rtol=1e-5, atol=1e-4)  # float32 factor
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_published_statistics_sample_the_golden_codes(tmp_path):
    published = np.load(GOLDEN / "style_statistics_pbn.npz")
    golden = np.load(GOLDEN / "style_augmentor.npz")
    content = {
        "pbn_embedding_mean": published["mean"].astype(np.float32),
        "pbn_embedding_covariance": published["covariance"],
        "imagenet_embedding_mean": published["imagenet_mean"],
    }
    write_torch_zip(tmp_path / "checkpoint_embeddings.pth", content)
    read = load_statistics(tmp_path / "checkpoint_embeddings.pth", "inception")
    assert (read.provenance.network, read.provenance.count) == ("inception", 79_433)
    np.testing.assert_allclose(read.factor @ read.factor.T, published["covariance"], atol=1e-6)
    # The signs of singular vectors are arbitrary. Where ours differ from the golden ones, the noise is flipped too.
    signs = np.sign(np.sum(read.factor * golden["A"], axis=0)).astype(np.float32)
    sampled = sample_codes(read.sampler, jnp.asarray(golden["z"] * signs))
    np.testing.assert_allclose(sampled, golden["sampled"], atol=1e-5)


def test_refuses_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    write_torch_zip(tmp_path / "other.pth", {"weights": np.zeros(3, np.float32)})
    for name in ("missing.npz", "text.npz", "other.npz"):
        with pytest.raises(UserError, match=rf"cannot read .*{name}: .*; expected a file of crossearth_jax"):
            load_statistics(tmp_path / name, "mobile")
    with pytest.raises(UserError, match="has no pbn_embedding_mean"):
        load_statistics(tmp_path / "other.pth", "inception")


def test_refuses_statistics_of_another_network(tmp_path):
    save_statistics(tmp_path / "s.npz", statistics(network="inception"))
    with pytest.raises(UserError, match="of the 'inception' style network, expected 'mobile'"):
        load_statistics(tmp_path / "s.npz", "mobile")
    with pytest.raises(UserError, match="no statistics are shipped for the 'inception' style network"):
        load_statistics(None, "inception")
    with pytest.raises(UserError, match="digest 00ff, the loaded one has"):
        statistics(digest="00ff").check_network({"style/a": jnp.zeros(2)})


def test_targets_are_refused_unless_their_maker_allowed_them():
    assert statistics(domains=(TEMPERATE,)).check_targets(TEMPERATE, "") == ()
    with pytest.raises(UserError, match=rf"estimated from {ARID}, which a run trained on {TEMPERATE} is scored on"):
        statistics(domains=(TEMPERATE, ARID)).check_targets(TEMPERATE, "")
    with pytest.raises(UserError, match=TEMPERATE):
        statistics(domains=(TEMPERATE, ARID), allowed_targets=(ARID,)).check_targets("blue_marble/cold_green", "")
    allowed = statistics(domains=(TEMPERATE, ARID), allowed_targets=(ARID,))
    assert allowed.check_targets(TEMPERATE, "") == (ARID,)


def test_unlabelled_images_may_hold_every_target_of_their_dataset():
    assert targets_among(["blue_marble/unlabelled", TEMPERATE], TEMPERATE, "") == ("blue_marble/unlabelled",)


def test_shipped_statistics_belong_to_the_shipped_network_and_leak_no_target():
    shipped = load_statistics(None, "mobile")
    shipped.check_network(load_style(StyleNetwork("mobile")))
    for setting in SETTINGS.values():
        assert shipped.check_targets(setting.source, "") == ()
    assert shipped.provenance.domains == ()
    root = pathlib.Path(__file__).parents[2]
    files = {source.split(":")[0] for source in shipped.provenance.sources}
    assert files == {str(path.relative_to(root)) for path in (root / "data" / "scenes").glob("*.tif")}
    assert shipped.provenance.count == 1027
    assert np.linalg.matrix_rank(shipped.covariance) == 100
