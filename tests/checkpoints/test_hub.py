"""Finding models: shipped, in a directory, fetched from a hub of our own; and a hub that does not answer."""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from m0.checkpoints.hub import default_target, fetch, locate
from m0.errors import DownloadError


def test_m0_nano_is_shipped():
    assert (locate("m0-nano") / "model.safetensors").exists()


def test_a_directory(tmp_path):
    assert locate(tmp_path) == tmp_path


def test_what_m0_fetch_brought_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = Path("weights/someone/some-model")
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    assert locate("someone/some-model") == target


def test_owner_and_revision_keep_models_apart():
    """Somebody else's model of the same name, or another revision, is never taken for the one that lies there."""
    places = {default_target("a/m"), default_target("b/m"), default_target("a/m", "old"), default_target("a/m", "x/y")}
    assert len(places) == 4
    assert default_target("anyone/m0-nano") != Path("weights/m0-nano")


@pytest.mark.parametrize("name", [None, 5, b"\xff\xfe", "", "~nouser/x", "a" * 5000, "\0"])
def test_what_names_no_model_gets_one_sentence(name):
    with pytest.raises(DownloadError) as caught:
        locate(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m0-nano", "."])
def test_a_revision_goes_with_a_hub_id_only(name):
    with pytest.raises(DownloadError, match="revision 'main' goes with a hub id only"):
        locate(name, "main")


OFFLINE = """
import sys
from m0.errors import DownloadError
from m0 import Reranker
from m0.checkpoints.hub import fetch
for call in (Reranker.from_pretrained, fetch):
    try:
        call("nobody/no-such-model")
    except DownloadError as error:
        print(error)
"""


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_no_network_gets_one_sentence(tmp_path, environment):
    variables = {**os.environ, "HF_HOME": str(tmp_path), **environment}
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=300
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr
    assert all(line.startswith("nobody/no-such-model cannot be fetched: ") for line in lines)


@pytest.mark.parametrize("name", ["", "one-word", "a/b/c", "../x", "a b/c"])
def test_what_is_no_hub_id(name):
    with pytest.raises(DownloadError):
        fetch(name)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs: a file list, and files with size, hash and ranges."""

    folder: Path
    asked: ClassVar[list[str]] = []

    @property
    def commit(self):
        """Another one where the files are others: the client keeps the list of a commit's files."""
        return hashlib.sha1(repr(sorted(path.name for path in self.folder.iterdir())).encode()).hexdigest()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        Hub.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/models/someone/small"):
            files = sorted(path.name for path in self.folder.iterdir())
            if "/tree/" in self.path:
                listing = [
                    {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
                    for name in files
                ]
            else:
                listing = {"id": "someone/small", "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            self.send(json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        elif self.path.startswith("/someone/small/resolve/"):
            data = (self.folder / self.path.rpartition("/")[2]).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            self.send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}, body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, data, headers, body):
        start = 0
        if (span := self.headers.get("Range")) and span.startswith("bytes="):
            start = int(span.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


FETCH = """
import sys
from m0.cli.main import main
status = main(["fetch", "someone/small"])
status = status or main(["info", "someone/small"])
status = status or (main(["fetch", "nobody/nothing"]) != 2)
sys.exit(status)
"""


@contextlib.contextmanager
def served(folder, tmp_path):
    """A hub on this machine that has these files; yields the environment of a process that asks it."""
    Hub.folder = folder
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        server.shutdown()


def test_a_model_is_fetched_into_weights_and_found_there(tmp_path, tiny_directory):
    """`m0 fetch` against a hub on this machine: weights, config and tokenizer come, pickles and code stay."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for path in tiny_directory.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    with served(folder, tmp_path) as variables:
        command = [sys.executable, "-c", FETCH]
        result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, (result.stderr, Hub.asked)
    target = tmp_path / "weights" / "someone" / "small"
    assert (target / "model.safetensors").read_bytes() == (tiny_directory / "model.safetensors").read_bytes()
    assert (target / "preprocessor_config.json").exists()
    assert (target / "processor_config.json").exists()
    assert not list(target.glob("*.bin")) + list(target.glob("*.py"))
    assert "vision tower" in result.stdout
    assert "nobody/nothing cannot be fetched: the hub has no such model, or it is private." in result.stderr


AGAIN = """
from pathlib import Path
from m0.errors import DownloadError
from m0.checkpoints.hub import fetch
hub = Path("hub")
fetch("someone/small")
for old, new in (("model.safetensors", "model.safetensors.index.json"), ("processor_config.json", "preprocessor_config.json")):
    (hub / old).unlink()
    (hub / new).write_text("{}")
    try:
        print(fetch("someone/small"))
    except DownloadError as error:
        print(error)
    (Path("weights/someone/small") / old).unlink()
    print(fetch("someone/small"))
"""


def test_what_an_earlier_download_left_is_not_read_in_silence(tmp_path):
    """A model that is in shards now, whose single file of before would win; and so with its picture settings."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "processor_config.json"):
        (folder / name).write_text("{}")
    with served(folder, tmp_path) as variables:
        command = [sys.executable, "-c", AGAIN]
        result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=300)
    place = Path("weights/someone/small")
    told = "is not part of someone/small, but would be read in place of its"
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if "small" in line] == [
        f"{tmp_path / place}/model.safetensors {told} model.safetensors.index.json; remove it.",
        str(tmp_path / place),
        f"{tmp_path / place}/processor_config.json {told} preprocessor_config.json; remove it.",
        str(tmp_path / place),
    ]
