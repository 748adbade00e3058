"""The site's pages hang together: navigation, links and anchors, the API's names, the command line's options, the glossary's places.

Without MkDocs; `make docs` builds the site itself.
"""

import re
from importlib import import_module
from pathlib import Path

import pytest

import m0
from m0 import evaluate, explain, interp, train
from m0.cli.arguments import parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAVIGATION = re.findall(r"^ *- (?:.+: )?(\S+\.md)$", CONFIG.partition("\nnav:")[2], re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "weights").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
API = {page: text for page, text in TEXTS.items() if page.parent == DOCS / "reference" / "api"}
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|!\[[^\]]*\]\(([^()\s]+)\)")


def prose(text):
    """A page without its code, in which brackets are no links."""
    text = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(text):
    """Of a page's headings, as both GitHub and MkDocs make them, and those that the page sets itself."""
    found = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)) | set(re.findall(r'\b(?:id|name)="([^"]+)"', text))
    without_code = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *#*$", without_code, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        kept = re.sub(r"[^\w\s-]", "", shown.lower()).strip()
        if re.sub(r"\s", "-", kept) == re.sub(r"[-\s]+", "-", kept):
            found.add(re.sub(r"\s", "-", kept))
    return found


# --- navigation ---------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once_and_exists():
    assert sorted(NAVIGATION) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents)
    assert len(NAVIGATION) >= 40


def test_there_are_four_kinds_of_pages():
    sections = re.findall(r"^  - (\w+):", CONFIG.partition("\nnav:")[2], re.MULTILINE)
    assert sections == ["Home", "Tutorials", "Guides", "Reference", "Explanation"]
    for kind in ("tutorials", "guides", "reference", "explanation"):
        assert any(page.startswith(f"{kind}/") for page in NAVIGATION)


def test_the_site_needs_nothing_from_outside():
    assert re.search(r"^  font: false$", CONFIG, re.MULTILINE)
    assert "://" not in CONFIG
    plugins = re.findall(
        r"^  - ([\w-]+)", CONFIG.partition("\nplugins:")[2].partition("\nmarkdown_extensions:")[0], re.MULTILINE
    )
    assert plugins == ["search", "mkdocstrings"]


# --- links --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    for link, picture in LINK.findall(prose(TEXTS[page])):
        target = link or picture
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found == ROOT or ROOT in found.parents, target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


def test_what_counts_as_an_anchor():
    assert anchors("# What may be given\n## `m0 rank`, now\n### A & B\n```python\n# no\n```\n::: m0.errors.M0Error\n") == {
        "what-may-be-given",
        "m0-rank-now",
        "m0.errors.M0Error",
    }
    assert LINK.findall(prose("[a](b.md) ![c](d.png) `[e](f)` [g [h]](i#j)")) == [("b.md", ""), ("", "d.png"), ("i#j", "")]


# --- the API ------------------------------------------------------------------------------------------------------------


def resolved(name):
    """What a dotted name stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


NAMED = [name for text in API.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


def test_api_pages_name_what_exists_each_once():
    assert len(NAMED) == len(set(NAMED)) >= 100
    for name in NAMED:
        assert getattr(resolved(name), "__doc__", None), name


def test_everything_public_is_in_the_api_pages():
    shown = [resolved(name) for name in NAMED]
    for module in (m0, interp, explain, evaluate, train):
        for name in module.__all__:
            thing = getattr(module, name)
            is_value = isinstance(thing, interp.Selector) or not callable(thing)
            assert any(thing is one for one in shown) or (is_value and f"`{name}`" in "".join(API.values())), name
    for name, function in explain.METHODS.items():
        assert any(function is one for one in shown), name
        assert f"| `{name}` | `{function.__name__}` |" in TEXTS[DOCS / "reference/api/explain.md"]


def test_api_pages_read_well_without_the_site():
    """Each says in words what it is about, before the first definition, and names what it defines."""
    for page, text in API.items():
        before = text.partition(":::")[0]
        assert len(before.split()) >= 25, page
        for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
            last = name.rpartition(".")[2]
            assert len(re.findall(rf"\b{last}\b", text)) >= 1


# --- the command line ---------------------------------------------------------------------------------------------------

COMMANDS = next(action.choices for action in parser()._actions if action.choices and "rank" in action.choices)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_command_line_has_every_option_and_default(command):
    text = TEXTS[DOCS / "reference/command-line.md"]
    section = re.search(rf"^## m0 {command}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL).group(1)
    rows = dict(re.findall(r"^\| (`-.+?) \| (.+?) \|", section, re.MULTILINE))
    shown = {option: default for options, default in rows.items() for option in re.findall(r"--[\w-]+", options)}
    known = {
        option: action.default
        for action in COMMANDS[command]._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    assert shown.keys() == known.keys()
    for option, default in known.items():
        if isinstance(default, int | str) and not isinstance(default, bool) and not shown[option].startswith("as "):
            assert shown[option] == str(default), option
    places = [action for action in COMMANDS[command]._actions if not action.option_strings]
    assert len(re.findall(r"^\| `[A-Z]+` \|", section, re.MULTILINE)) == len(places)


def test_every_command_has_a_section():
    sections = re.findall(r"^## m0 (\w+)$", TEXTS[DOCS / "reference/command-line.md"], re.MULTILINE)
    assert sections == list(COMMANDS)


# --- the glossary -------------------------------------------------------------------------------------------------------

ROWS = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]*?) ?\|$", TEXTS[DOCS / "glossary.md"], re.MULTILINE)
TERMS = [row for row in ROWS if row[0] not in ("term", "---")]


def test_the_glossary_says_each_term_once_and_where_the_code_has_it():
    names = [name.strip().lower() for term, _, _ in TERMS for name in term.split(",")]
    assert len(names) == len(set(names)) >= 100
    for term, _, place in TERMS:
        if place:
            name, file = re.fullmatch(r"`([\w.]+)` in `(m0/[\w/]+\.py)`", place).groups()
            assert re.search(rf"\b{re.escape(name)}\b", (ROOT / file).read_text(encoding="utf-8")), term
