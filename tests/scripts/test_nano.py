"""m0-nano: what is shipped fits its card, knows what the demo shows, and favours neither texts nor pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from m0.checkpoints.files import list_tensors
from tests.conftest import NANO

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "docs" / "demo"


def test_size():
    files = sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file())
    assert files < 40e6
    parameters = sum(tensor.num_bytes // 2 for tensor in list_tensors(NANO) if tensor.type in ("F16", "BF16"))
    assert 5e6 < parameters < 15e6


def test_the_card_records_every_licence():
    card = (NANO / "README.md").read_text(encoding="utf-8")
    for words in (
        "emoji-datasource-google",
        "cldr-annotations-full",
        "debian-handbook",
        "developers-reference",
        "maint-guide",
        "debian-faq",
        "openclipart-png",
        "PSF-2.0",
        "GPL-2+",
        "Unicode-3.0",
        "CC BY-SA 3.0",
        "Apache-2.0",
    ):
        assert words in card


def names():
    return [json.loads(line)["name"] for line in (DEMO / "names.jsonl").read_text(encoding="utf-8").splitlines()]


def documents():
    from m0.cli.sources import read_sources

    return [source.document for source in read_sources(str(DEMO / "documents.jsonl"))]


def test_the_demos_names_fit_its_documents():
    assert len(names()) == len(documents()) == len(set(names()))


@pytest.mark.parametrize(
    "case", json.loads((DEMO / "expected.json").read_text(encoding="utf-8")), ids=lambda case: case["query"]
)
def test_the_demo_is_true(nano, case):
    """Every document that is about the query stands above every document that is not."""
    ranking = nano.rank(case["query"], documents())
    order = [names()[result.index] for result in ranking]
    assert set(order[: len(case["relevant"])]) == set(case["relevant"])


def test_the_demo_prints_its_rankings():
    result = subprocess.run([sys.executable, str(ROOT / "scripts" / "demo.py")], capture_output=True, text=True, check=True)
    for query in json.loads((DEMO / "queries.json").read_text(encoding="utf-8")):
        assert repr(query) in result.stdout
    assert "rank   score" in result.stdout
