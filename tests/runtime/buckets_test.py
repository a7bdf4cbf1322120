"""Which paths are local, which are in buckets, and which are refused by the commands without leaving a folder."""

from pathlib import Path

import pytest
from etils import epath

import crossearth_jax
from crossearth_jax import estimate_style, export, prepare
from crossearth_jax.benchmark.domains_file import read_domains_file
from crossearth_jax.benchmark.registry import known_domains, prepared_directory
from crossearth_jax.config import UserError
from crossearth_jax.predict import output_paths
from crossearth_jax.runtime import buckets
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.training.checkpoint import check_folder


@pytest.mark.parametrize("path", ["runs/first", "/data/runs", "a:b/c", "~/runs", Path("runs"), "C:/runs"])
def test_local_paths(path):
    assert buckets.any_path(path) == Path(path)
    assert not buckets.is_remote(path)


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_buckets(path):
    found = buckets.any_path(path)
    assert isinstance(found, epath.Path) and str(found / "model.safetensors") == f"{path}/model.safetensors"
    assert buckets.resolved(found) == buckets.any_path(found) == found


@pytest.mark.parametrize(
    "path", ["memory://run", "file:///data/run", "gs:/bucket/run", "s3:///run", "hf://a/b", Path("gs://bucket/run")]
)
def test_other_schemes(path):
    with pytest.raises(UserError, match=r"expected a local path, gs://BUCKET/… or s3://BUCKET/…"):
        buckets.any_path(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://b/run needs the package gcsfs; install the extra 'bucket'"):
        buckets.any_path("gs://b/run")


def test_a_bucket_that_does_not_answer(monkeypatch):
    def exists(path):
        raise RuntimeError("Unable to locate\ncredentials")

    monkeypatch.setattr(epath.Path("s3://b").__class__, "exists", exists)
    with pytest.raises(UserError, match=r"cannot reach s3://b/run: Unable to locate credentials; check the address, "):
        crossearth_jax.load("s3://b/run")


REFUSED = {
    "map": lambda: output_paths(["a.tif"], "gs://b/map.tif"),
    "maps": lambda: output_paths(["a.tif"], "s3://b/maps"),
    "data_dir": lambda: known_domains("gs://b/data"),
    "prepared": lambda: prepared_directory("blue_marble/arid_green", "s3://b/data"),
    "prepare": lambda: prepare.main(["blue_marble", "--data_dir=gs://b/data"]),
    "manual_dir": lambda: prepare.main(["potsdam", "--manual_dir=gs://b/archives"]),
    "domains_file": lambda: read_domains_file("gs://b/domains.toml"),
    "export": lambda: export.main(["runs/a", "--out=gs://b/model.onnx"]),
    "images": lambda: estimate_style.main(["gs://b/photos", "--out=a.npz"]),
    "checkpoints": lambda: check_folder(buckets.any_path("s3://b/run")),
    "json": lambda: write_json("memory://b/a.json", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_in_a_bucket_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        REFUSED[name]()
    assert "\n" not in str(error.value)
    assert "://b" in str(error.value)
    assert not list(tmp_path.iterdir())  # no local folder `gs:`
