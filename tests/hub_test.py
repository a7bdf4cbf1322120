"""Pushing and loading through a stand-in for a hub on this machine: no real one is asked."""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading

import jax
import numpy as np
import pytest
from reporting.conftest import write_run

import crossearth_jax
from crossearth_jax import push
from crossearth_jax.config import HeadConfig, ModelConfig, ReinsConfig, UserError, ViTConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights import hub
from crossearth_jax.weights.load import Weights
from crossearth_jax.weights.native import Description, digest, save_native
from crossearth_jax.weights.starting import starting_weights

MODEL = ModelConfig(
    classes=5,
    vit=ViTConfig(image_size=32, width=16, depth=4, heads=2, mlp_width=16, feature_blocks=(0, 1, 2, 3)),
    reins=ReinsConfig(tokens=4, rank=2),
    head=HeadConfig(width=16, heads=2, groups=4, encoder_layers=1, encoder_mlp_width=16, decoder_layers=1,
                    decoder_mlp_width=16),
)  # fmt: skip
NAMES = ("water", "forest", "shrub_grass", "cropland", "bare_snow")
PALETTE = tuple((i, 2 * i, 255 - i) for i in range(5))
DESCRIPTION = Description(model=MODEL, class_names=NAMES, palette=PALETTE, source="tiny, step 7", window=32, stride=21)


class StandIn(http.server.BaseHTTPRequestHandler):
    """The few requests that a push and a load make; repositories are {name: {revision: {path: bytes}}}."""

    def log_message(self, *arguments):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, **values):
        self.answer(200, json.dumps(values).encode(), Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        repositories = self.server.repositories
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            repositories.setdefault(name, {"main": {}})
            return self.json(url=f"{self.server.url}/{name}", id=name)
        if self.path == "/api/validate-yaml":
            return self.json(errors=[], warnings=[])
        name, action, revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/(\w+)", self.path).groups()
        if name.startswith("closed/"):
            return self.answer(403, b'{"error": "you may not"}', X_Error_Message="you may not")
        if action == "branch":
            repositories[name].setdefault(revision, {})
            return self.json()
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.json(files=files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repositories[name][revision][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.json(commitUrl=f"{self.server.url}/{name}/commit/0", commitOid="0" * 40, pullRequestUrl=None)

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repository = self.server.repositories.get(found[1]) if found else None
        if repository is None:
            return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if found[2] not in repository:
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        if found[3] not in repository[found[2]]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        content = repository[found[2]][found[3]]
        commit = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        server.repositories, server.seen = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        # What the library makes of HF_ENDPOINT when it is imported.
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between retries
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()  # may have been called already
        thread.join()


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(SegmentationModel(MODEL).init)(jax.random.key(0)))


@pytest.fixture
def weights_file(params, tmp_path):
    save_native(tmp_path / "tiny.safetensors", params, DESCRIPTION)
    return tmp_path / "tiny.safetensors"


def test_a_run_comes_back_as_it_was(server, params, tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("crossearth_jax.push.read", lambda _: Weights(params, DESCRIPTION))
    push.main([str(run), "hf://earth/tiny@v1", "--licence=apache-2.0"])
    assert f"is published: {server.url}/earth/tiny/commit/0" in capsys.readouterr().out
    files = server.repositories["earth/tiny"]["v1"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "results.json"}
    assert server.repositories["earth/tiny"]["main"] == {}
    assert json.loads(files["config.json"])["experiment"]["name"] == "blue_marble"
    assert files["results.json"] == (run / "results.json").read_bytes()
    assert {token for path, token in server.seen if "/models/" in path or "/repos/" in path} == {"Bearer hf_secret"}

    files["model.pth"] = b"never to be read"
    model = crossearth_jax.load("hf://earth/tiny@v1")
    assert model.class_names == NAMES and model.palette == PALETTE and (model.window, model.stride) == (32, 21)
    for name, value in params.items():
        np.testing.assert_array_equal(model.params[name], value)
    read = {path.split("/resolve/")[1] for path, _ in server.seen if "/resolve/" in path}
    assert read == {"v1/model.safetensors"}


def test_card_of_a_run_has_its_scores_classes_licence_and_origin(params, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("crossearth_jax.push.read", lambda _: Weights(params, DESCRIPTION))
    (tmp_path / "out").mkdir()
    push.write_repository(run, tmp_path / "out", "hf://earth/tiny", "apache-2.0")
    card = (tmp_path / "out" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    metadata = dict(line.split(": ", 1) for line in head.splitlines())
    assert json.loads(metadata["license"]) == "apache-2.0"
    (entry,) = json.loads(metadata["model-index"])
    results = json.loads((run / "results.json").read_text())
    found = {cell["dataset"]["name"]: cell["metrics"][0]["value"] for cell in entry["results"]}
    assert found == {cell["target"]: cell["miou"] for cell in results.values()}
    assert entry["name"] == "tiny"
    cold = results["temperate_green2cold_brown"]["miou"]
    assert f"| cold brown (temperate_green2cold_brown) | **{cold:.1f}** |" in body
    assert "| 1 | forest | #0102fe |" in body
    assert f"`{digest(params)}`" in body and "tiny, step 7" in body and "- Started from: random weights" in body
    assert 'crossearth_jax.load("hf://earth/tiny")' in body


def test_a_file_of_weights_is_pushed_without_scores(server, weights_file, caplog):
    push.main([str(weights_file), "hf://earth/bare"])
    assert "no --licence is given" in caplog.text
    files = server.repositories["earth/bare"]["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    card = files["README.md"].decode()
    assert 'license: "unknown"' in card and "## Results" not in card and "did not state a licence" in card


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://earth/absent", r"cannot load hf://earth/absent: .*Repository"),
        ("hf://earth/tiny@v2", r"cannot load hf://earth/tiny@v2: .*(Revision|rev)"),
        ("hf://earth/tiny", r"cannot load hf://earth/tiny: .*(Entry|does not exist)"),
        ("hf://earth", r"'hf://earth' is not an address on a hub, expected hf://organisation/name\[@revision\]"),
        ("hf://../../etc/passwd", "is not an address on a hub"),
    ],
)
def test_addresses_that_lead_nowhere(server, address, message):
    server.repositories["earth/tiny"] = {"main": {"pytorch_model.bin": b"a pickle"}}
    with pytest.raises(UserError, match=message):
        crossearth_jax.load(address)


def test_a_hub_that_refuses_or_is_away(server, weights_file, monkeypatch):
    with pytest.raises(UserError, match=r"cannot push to hf://closed/x: .*you may not"):
        push.push(weights_file, "hf://closed/x")
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot load hf://earth/tiny: "):
        crossearth_jax.load("hf://earth/tiny")


def test_training_starts_from_an_address(server, weights_file, params):
    server.repositories["earth/tiny"] = {"main": {"model.safetensors": weights_file.read_bytes()}}
    found = starting_weights("hf://earth/tiny", MODEL, NAMES)
    assert found.keys() == params.keys() and all(np.array_equal(found[name], params[name]) for name in params)
    with pytest.raises(UserError, match="cannot load hf://earth/absent"):
        starting_weights("hf://earth/absent", MODEL)


def test_a_file_that_is_no_safetensors_is_refused(server):
    server.repositories["earth/evil"] = {"main": {"model.safetensors": b"\x80\x02cos\nsystem\n."}}
    with pytest.raises(UserError, match=r"model\.safetensors"):
        crossearth_jax.load("hf://earth/evil")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="install the extra 'hub'"):
        hub.download(hub.parse("hf://earth/tiny"))
