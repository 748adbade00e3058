"""Finding models: shipped, in a directory, fetched; and a hub that does not answer."""

import subprocess
import sys
from pathlib import Path

import pytest

from m0.errors import DownloadError
from m0.hub import fetch, locate


def test_m0_nano_is_shipped():
    assert (locate("m0-nano") / "model.safetensors").exists()


def test_a_directory(tmp_path):
    assert locate(tmp_path) == tmp_path


def test_what_m0_fetch_brought_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = Path("weights/some-model")
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    assert locate("someone/some-model") == target


OFFLINE = """
import sys
from m0.errors import DownloadError
from m0 import Reranker
from m0.hub import fetch
for call in (Reranker.from_pretrained, fetch):
    try:
        call("nobody/no-such-model")
    except DownloadError as error:
        print(error)
"""


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_no_network_gets_one_sentence(tmp_path, environment):
    import os

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
