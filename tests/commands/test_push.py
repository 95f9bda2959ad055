"""Uploads to a hub that this file plays on the local machine."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from commands.push import push, upload


class Hub(ThreadingHTTPServer):
    """Keeps the files of commits; refuses everybody if ``closed``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.closed = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing, because tests print nothing."""

    def do_POST(self) -> None:
        hub: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if hub.closed:
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            hub.made.append(json.loads(body))
            self.answer(200, {"url": f"{hub.address}/me/flowers", "id": "me/flowers"})
        elif self.path == "/api/validate-yaml":  # of the card
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            small = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer(200, {"files": small})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            done = {"commitUrl": f"{hub.address}/me/flowers/commit/1", "commitOid": "1", "success": True}
            self.answer(200, done)
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        hub: Any = self.server
        found = {"id": "me/flowers", "siblings": [], "sha": "0", "xetEnabled": False}
        self.answer(401 if hub.closed else 200, found)

    def answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "merged").mkdir()
    names = ("model.safetensors", "config.json", "README.md", "notes.txt")
    for name in names:
        (tmp_path / "merged" / name).write_text(f"content of {name}")
    (tmp_path / "merged/README.md").write_text("---\nlibrary_name: timm\n---\n# A model\n")
    return tmp_path / "merged"


def test_files_arrive(hub: Hub, folder: Path) -> None:
    """Over HTTP, as huggingface_hub sends them; of the folder only weights, JSON and the card."""
    api = HfApi(endpoint=hub.address, token="hf_test")
    upload(api, folder, "me/flowers", True, None, "First")
    expected = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "README.md")}
    assert hub.files == expected
    assert hub.made[0]["name"] == "flowers"


def test_the_hub_refuses(hub: Hub, folder: Path) -> None:
    hub.closed = True
    with pytest.raises(ValueError, match=r"the hub refused: .*; log in by `hf auth login`, .*merged is unchanged"):
        upload(HfApi(endpoint=hub.address, token="hf_bad"), folder, "me/flowers", False, None, "First")
    assert hub.files == {}


def test_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="cannot be reached"):  # tests run with HF_HUB_OFFLINE
        push(folder, "me/flowers")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ValueError, match=rf"the hub http://127.0.0.1:{port} cannot be reached .*is unchanged"):
        upload(HfApi(endpoint=f"http://127.0.0.1:{port}", token="x"), folder, "me/flowers", False, None, "First")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repo='a/b/c': expected USER/NAME"):
        push(folder, "a/b/c")
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no README\.md, the model card"):
        push(folder, "me/flowers")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        push(folder, "me/flowers")
    with pytest.raises(FileNotFoundError, match="no such folder; nothing was uploaded"):
        push(tmp_path / "other", "me/flowers")
