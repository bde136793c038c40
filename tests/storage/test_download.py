"""Checkpoints as safetensors, from a release and from a hub, whose servers here are on localhost."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import release_checkpoints
import torch
import yaml
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.hub import model_card, upload
from dng_lightning.modules import ClassifierModule, DiffusionModule
from dng_lightning.storage import download, resources, safe_checkpoint

ROOT = Path(__file__).resolve().parents[2]
Answer = tuple[int, dict[str, str], bytes]
Serve = Callable[[Callable[[str, str, bytes], Answer]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(answer)`: the address of a server that answers method, path and body by status, headers and body."""
    servers = []

    def start(answer: Callable[[str, str, bytes], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, content = answer(self.command, self.path, body)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = _reply  # the library's names

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


# --- safetensors ---


@pytest.mark.parametrize("name", ["digits", "digits-classifier", "mnist-noisy-classifier"])
def test_safetensors_hold_the_whole_checkpoint(name: str, tmp_path: Path):
    kind: Any = ClassifierModule if "classifier" in name else DiffusionModule
    noisy = {"noisy": True} if "noisy" in name else {}
    checkpoint = torch.load(resources.checkpoint(name), map_location="cpu", weights_only=True)
    safe_checkpoint.write(checkpoint, tmp_path / "model.safetensors")
    loaded, before = kind.load(str(tmp_path), **noisy), kind.load(name, **noisy)
    assert all(torch.equal(value, weights(before)[key]) for key, value in weights(loaded).items())
    assert (loaded.class_names, loaded.seen_classes) == (before.class_names, before.seen_classes)
    assert loaded.hparams == before.hparams
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_training_exports_both(tiny_checkpoint: Path, tmp_path: Path):
    shutil.copy(tiny_checkpoint / "model.safetensors", tmp_path)
    own, other = DiffusionModule.load(str(tiny_checkpoint)), DiffusionModule.load(str(tmp_path))
    assert all(torch.equal(value, weights(own)[key]) for key, value in weights(other).items())
    other.start_from(str(tmp_path / "model.safetensors"))


def test_damaged_safetensors_are_one_line(tiny_checkpoint: Path, tmp_path: Path):
    content = (tiny_checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(SettingError, match="is no checkpoint of a DiffusionModule"):
        DiffusionModule.load(str(tmp_path))


# --- releases ---


def test_the_digests_are_those_of_the_checkpoints():
    """If not: python scripts/release_checkpoints.py"""
    digests = json.loads((ROOT / "checkpoints" / "released.json").read_text())
    made = {
        folder.name: hashlib.sha256(release_checkpoints.archive(folder)) for folder in release_checkpoints.left_out()
    }
    assert digests == {name: digest.hexdigest() for name, digest in made.items()}
    wheel = (ROOT / "pyproject.toml").read_text()
    assert all(f'"!/checkpoints/{name}/"' in wheel for name in release_checkpoints.IN_THE_WHEEL)
    assert wheel.count('"!/checkpoints/') == len(release_checkpoints.IN_THE_WHEEL)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An installation without the classifier of digits, of which the release has the archive."""
    content = release_checkpoints.archive(ROOT / "checkpoints" / "digits-classifier")
    shipped = tmp_path / "package" / "checkpoints"
    shipped.mkdir(parents=True)
    (shipped / "released.json").write_text(json.dumps({"digits-classifier": hashlib.sha256(content).hexdigest()}))
    monkeypatch.setattr(resources, "_folder", lambda kind: tmp_path / "package" / kind)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return content


def test_a_released_checkpoint_is_fetched_by_its_name(
    installed: bytes, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def answer(method: str, path: str, body: bytes) -> Answer:
        asked.append(path)
        return 200, {}, installed

    monkeypatch.setenv("DNG_RELEASE_URL", serve(answer) + "/v1/")
    path = resources.checkpoint("digits-classifier")
    assert resources.name_of("digits-classifier") == path.parent.name == "digits-classifier"
    assert (path.parent / "config.yaml").exists()
    monkeypatch.delenv("DNG_RELEASE_URL")
    assert resources.checkpoint("digits-classifier") == path  # from the cache
    assert asked == ["/v1/digits-classifier.zip"]
    assert ClassifierModule.load("digits-classifier").class_names == tuple("0123456789")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".part", ".lock")]


@pytest.mark.parametrize(
    ("status", "change", "said"),
    [
        (200, lambda content: content[:-1] + b"x", "its SHA-256 is"),
        (404, lambda content: b"", "HTTP Error 404"),
        (200, None, "the download ended after"),
    ],
)
def test_what_is_not_the_release_is_one_line_and_leaves_nothing(
    status: int, change: Any, said: str, installed: bytes, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def answer(method: str, path: str, body: bytes) -> Answer:
        if change is None:  # as a connection that breaks
            return 200, {"Content-Length": str(len(installed))}, installed[:5000]
        return status, {}, change(installed)

    monkeypatch.setenv("DNG_RELEASE_URL", serve(answer))
    with pytest.raises(SettingError, match=said) as refused:
        resources.checkpoint("digits-classifier")
    assert "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.suffix == ".part"]


def test_without_a_connection_it_is_one_line(installed: bytes, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingError, match="use a checkout of the repository, or set DNG_RELEASE_URL"):
        resources.checkpoint("digits-classifier")
    monkeypatch.setenv("DNG_RELEASE_URL", "http://127.0.0.1:9")
    with pytest.raises(SettingError, match="refused"):
        resources.checkpoint("digits-classifier")
    with pytest.raises(SettingError, match="The nearest: digits-classifier"):
        resources.checkpoint("digit-classifier")


# --- the hub ---


class Hub:
    """What a hub has of one model, and the answers of its interface that the library asks for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commit = "0" * 39 + "1"

    def __call__(self, method: str, path: str, body: bytes) -> Answer:
        path = path.partition("?")[0]
        if path.startswith("/api/models/someone/digits/revision/") or path == "/api/models/someone/digits":
            siblings = [{"rfilename": name} for name in self.files]
            return self._json({"id": "someone/digits", "sha": self.commit, "siblings": siblings, "tags": []})
        if "/tree/" in path:
            return self._json([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in self.files.items()])
        if path.startswith(prefix := f"/someone/digits/resolve/{self.commit}/"):
            content = self.files[path.removeprefix(prefix)]
            tag = hashlib.sha1(content).hexdigest()
            return 200, {"X-Repo-Commit": self.commit, "ETag": f'"{tag}"'}, content
        if path == "/api/repos/create":
            return self._json({"url": "http://127.0.0.1/someone/digits", "name": "someone/digits"})
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": file["path"]} | regular for file in files]})
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
            self.files |= files
            address = "http://127.0.0.1/someone/digits/commit/1"
            return self._json({"commitUrl": address, "commitOid": self.commit, "success": True})
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _json(self, content: Any) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@pytest.fixture
def hub(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    library = pytest.importorskip("huggingface_hub", reason="HUGGINGFACE_HUB MISSING: no hub was tried (extra hub)")
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", serve(hub))
    monkeypatch.setenv("HF_TOKEN", "hf_0")
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(library.constants, "HF_HUB_DISABLE_XET", True)
    return hub


def test_a_checkpoint_goes_to_the_hub_and_comes_back(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert upload(tiny_checkpoint, "someone/digits") == "hf:someone/digits"
    assert {"model.safetensors", "config.yaml", "metrics.json", "README.md"} <= set(hub.files)
    assert "model.ckpt" not in hub.files
    _, front, text = hub.files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "dng_lightning"
    assert "dng predict --model.checkpoint hf:someone/digits" in text

    monkeypatch.setattr(download, "WANTED", download.WANTED)
    path = resources.checkpoint("hf:someone/digits")
    assert path.name == "model.safetensors"
    assert resources.name_of("hf:someone/digits@main") == "digits"
    own, back = DiffusionModule.load(str(tiny_checkpoint)), DiffusionModule.load("hf:someone/digits")
    assert all(torch.equal(value, weights(own)[key]) for key, value in weights(back).items())

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there: the cache has it
    assert resources.checkpoint("hf:someone/digits") == path
    with pytest.raises(SettingError, match="is not in the cache, and cannot be downloaded") as refused:
        resources.checkpoint("hf:someone/letters")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["hf:digits", "hf:a/b/c", "hf:", "hf:../x/y"])
def test_names_that_are_none(name: str):
    with pytest.raises(SettingError, match="is no name on the hub"):
        resources.checkpoint(name)


def test_a_model_card_of_a_classifier():
    card = model_card(ROOT / "checkpoints" / "digits-classifier", "someone/judge")
    assert "# judge" in card
    assert "1x8x8" in card
    assert "--model.classifier hf:someone/judge" in card
    with pytest.raises(SettingError, match=r"has no config\.yaml"):
        model_card(ROOT / "docs", "someone/judge")
