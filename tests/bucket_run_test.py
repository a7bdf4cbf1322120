"""A run in a bucket, from the first step to the report, against stand-ins for the services on this machine.

`gs://` is served by gcp-storage-emulator, `s3://` by moto. Both are programs of their own, reached over HTTP by the
same clients (gcsfs, s3fs, and TensorStore for the checkpoints) as the real services.
"""

import dataclasses
import json
import socket
import subprocess
import sys
import time
import urllib.request

import fsspec
import numpy as np
import pytest
from reporting.conftest import write_run

import crossearth_jax
from crossearth_jax.config import HeadConfig, UserError
from crossearth_jax.inference.evaluate import evaluate
from crossearth_jax.report import write_report
from crossearth_jax.reporting.run import read_run
from crossearth_jax.runtime.buckets import any_path, local_copy
from crossearth_jax.training import loop
from crossearth_jax.training.weights_file import ensure_exported
from crossearth_jax.weights.starting import starting_weights

# Besides what the emulator does, downloads say which generation of an object they are, which TensorStore asks for.
GCS = """
from gcp_storage_emulator import __main__
from gcp_storage_emulator.handlers import objects

def download(request, response, storage, *rest, plain=objects.download):
    plain(request, response, storage, *rest)
    if response.status < 300:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]

objects.download = download
__main__.main()
"""


@pytest.fixture(scope="module")
def serve():
    """Return a function that starts a server on a free port and returns its address."""
    servers = []

    def start(*arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, *(text.replace("PORT", str(port)) for text in arguments)]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.1)
        raise TimeoutError(arguments)

    yield start
    for server in servers:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def gs(serve, environment):
    """Return the address of an empty bucket of Google Cloud Storage."""
    address = serve("-c", GCS, "start", "--host=127.0.0.1", "--port=PORT", "--in-memory", "--default-bucket=bucket")
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        environment.setenv(name, address)
    environment.setenv("GOOGLE_CLOUD_PROJECT", "project")
    environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # a client that the stand-in has no service for
    return "gs://bucket"


@pytest.fixture(scope="module")
def s3(serve, environment):
    """Return the address of an empty bucket of S3."""
    address = serve("-m", "moto.server", "--host=127.0.0.1", "--port=PORT")
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        environment.setenv(name, value)
    request = urllib.request.Request(f"{address}/bucket", method="PUT")
    urllib.request.urlopen(request).close()
    return "s3://bucket"


@pytest.fixture(scope="module")
def config(tiny_config):
    """Return a configuration that compiles quickly: a linear head, and segmentation without styles."""
    return dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, mim=None, head=HeadConfig(kind="linear")),
        style=None,
        mim=None,
        loss=dataclasses.replace(tiny_config.loss, pixel_weight=1.0),
        evaluate=dataclasses.replace(tiny_config.evaluate, settings=("temperate_green2temperate_brown",)),
        optimizer=dataclasses.replace(tiny_config.optimizer, accumulate=1),
    )


@pytest.fixture(scope="module")
def run(gs, config):
    """Train two steps, then the other two in a new start; return the folder in the bucket and the state."""
    workdir = any_path(f"{gs}/runs/tiny")
    loop.train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), workdir)
    return workdir, loop.train(config, workdir)


def test_a_run_in_a_bucket_continues_as_a_local_one(run, config, tmp_path):
    workdir, resumed = run
    local = loop.train(config, tmp_path)
    for name, value in local.state.trainable.items():
        np.testing.assert_array_equal(resumed.state.trainable[name], value, err_msg=name)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((workdir / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    events = [path.name for path in workdir.iterdir() if path.name.startswith("events.out.tfevents")]
    assert len(events) == 2


def test_a_run_in_a_bucket_is_evaluated_there(run, config):
    workdir, trained = run
    assert ensure_exported(workdir, "last") == workdir / "model.safetensors"
    model = crossearth_jax.load(str(workdir))
    for name, value in model.params.items():
        np.testing.assert_array_equal(value, trained.params[name], err_msg=name)
    evaluate(config, workdir, model)
    found = read_run(workdir)
    assert [cell.name for cell in found.cells] == ["temperate_green2temperate_brown"]
    assert len(found.metrics["loss"].steps) == 4


def test_weights_are_read_from_s3(run, s3, config):
    local_folder = any_path(f"{s3}/runs/tiny")
    with local_copy(run[0] / "model.safetensors") as file:
        fsspec.filesystem("s3").put_file(str(file), f"{local_folder}/model.safetensors")
    model = crossearth_jax.load(f"{s3}/runs/tiny")
    again = crossearth_jax.load(f"{s3}/runs/tiny/model.safetensors")
    assert model.description == again.description and model.description.step == 4
    started = starting_weights(f"{s3}/runs/tiny", config.model, model.class_names)
    for name, value in model.params.items():
        np.testing.assert_array_equal(again.params[name], value)
        np.testing.assert_array_equal(started[name], value)
    with pytest.raises(UserError, match=r"cannot read s3://bucket/absent\.pth: it does not exist"):
        crossearth_jax.load(f"{s3}/absent.pth")
    with pytest.raises(UserError, match=r"no checkpoints can be kept in s3://bucket/run, since orbax"):
        loop.train(config, any_path(f"{s3}/run"))


def test_a_report_is_written_to_s3(s3, tmp_path):
    write_run(tmp_path / "run")
    fsspec.filesystem("s3").put(str(tmp_path / "run"), "s3://bucket/reported", recursive=True)
    page = write_report(f"{s3}/reported")
    assert str(page) == "s3://bucket/reported/report.html"
    assert write_report(tmp_path / "run").read_text().splitlines()[0] == page.read_text().splitlines()[0]
    assert {path.name for path in (page.parent / "figures").iterdir()} == {
        path.name for path in (tmp_path / "run" / "figures").iterdir()
    }
