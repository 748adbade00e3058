"""Every Python snippet of the README and the docs runs, page by page, from the repository's root."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for code in SNIPPET.findall(page.read_text(encoding="utf-8")):
        if code.startswith("x = x + self_attn"):
            continue  # the formula of a block, not a program
        exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_pages_name_only_files_that_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:tests|scripts|m0|docs)/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), (page.name, name)
