"""The pages keep their word: every Python snippet runs, every command is one that the parser takes, every link leads somewhere.

A page's snippets run in order and share their names, in a folder that holds the demo and nothing else. One that needs what is not
here (a network, a GPU, the released weights) has `<!-- not run: why -->` in the line above it, which no reader sees, and is counted
in NOT_RUN.
"""

import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from m0.cli.arguments import parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").rglob("*.md")])
NOT_RUN = {"docs/reference/adapters.md": 1, "docs/guides/vector-store.md": 2}
"""Snippets by page that are marked as not run."""
FORMULAS = {
    "docs/reference/bad-input.md": ("folder: 3 PDF, ",),
    "docs/guides/evaluation.md": ("corpus.jsonl ", "queries.jsonl ", "qrels/test.tsv "),
    "docs/explanation/head.md": ("relevance = sigmoid(logit - 2.65)",),
    "docs/explanation/prompt.md": ("**Document**:",),
    "docs/guides/training.md": ('{"query": "a red heart", ',),
}
"""Indented lines that are neither commands nor programs, by how they begin."""
DRAWINGS: dict[str, int] = {}
"""Fenced blocks that name no language."""
MARK = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """A block of code as a page shows it."""

    page: str
    line: int
    language: str | None
    """Of a fenced block; None: it is indented."""
    lines: tuple[str, ...]
    marked: bool = False

    @property
    def code(self):
        return "\n".join(self.lines)


def blocks_of(text, page):
    """Fenced blocks of any kind, and indented ones."""
    found, lines = [], text.split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        if fence := re.match(r"( *)(`{3,}|~{3,})(.*)", line):
            indent, marks, language = fence.groups()
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == marks)
            inside = tuple(inner.removeprefix(indent) for inner in lines[number + 1 : end])
            marked = number > 0 and bool(MARK.fullmatch(lines[number - 1].strip()))
            found.append(Block(page, number + 1, language.strip(), inside, marked))
            number = end + 1
        elif re.match(r"(?: {4}|\t)\s*\S", line) and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (re.match(r" {4}|\t", lines[end]) or not lines[end].strip()):
                end += 1
            found.append(Block(page, number + 1, None, tuple(inner.strip() for inner in lines[number:end] if inner.strip())))
            number = end
        else:
            number += 1
    return found


TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = {page: blocks_of(text, page) for page, text in TEXTS.items()}
PYTHON = {page: [block for block in blocks if block.language == "python"] for page, blocks in BLOCKS.items()}


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder with the demo, far from the repository."""
    shutil.copytree(ROOT / "docs" / "demo", tmp_path / "here" / "docs" / "demo")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert [path.name for path in Path().iterdir()] == ["docs"]  # a page must not litter a reader's folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page, blocks in PYTHON.items() if blocks])
def test_snippets_run(page, demo):
    names: dict = {"__name__": "docs"}
    for block in PYTHON[page]:
        if not block.marked:
            # As many lines above as in the page, so that a traceback shows the page's own.
            exec(compile("\n" * block.line + block.code, str(ROOT / page), "exec"), names)


def test_no_snippet_slips_through():
    """What is fenced says what it is, what is indented is a command or known to be none, and what is not run is counted."""
    assert {
        page: sum(block.marked for block in blocks) for page, blocks in BLOCKS.items() if any(b.marked for b in blocks)
    } == NOT_RUN
    assert sum(text.count("<!-- not run") for text in TEXTS.values()) == sum(NOT_RUN.values())
    fenced = [block for blocks in BLOCKS.values() for block in blocks if block.language is not None]
    assert {block.language for block in fenced} <= {"python", "toml", ""}
    unnamed = [block.page for block in fenced if not block.language]
    assert {page: unnamed.count(page) for page in unnamed} == DRAWINGS
    assert sum(map(len, PYTHON.values())) >= 40
    for blocks in BLOCKS.values():
        for block in blocks:
            for line in block.lines if block.language is None else ():
                assert is_command(line) or line.startswith(FORMULAS.get(block.page, ())), f"{block.page}: {line}"


def test_what_counts_as_a_block():
    text = "a\n```python\nx\n```\n\n    m0 info\n    y\n\n- item\n    no block\n\n<!-- not run: no network -->\n```python no\nz\n```\n~~~\nw\n~~~"
    found = blocks_of(text, "page")
    assert [(block.language, block.code, block.marked) for block in found] == [
        ("python", "x", False),
        (None, "m0 info\ny", False),
        ("python no", "z", True),
        ("", "w", False),
    ]


# --- commands -----------------------------------------------------------------------------------------------------------

PROGRAMS = ("m0", "torchrun", "python", "make", "pip", "source")
COMMANDS = next(action.choices for action in parser()._actions if action.choices and "rank" in action.choices)
MAKE = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
EXTRAS = set(
    re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("optional-dep")[2], re.MULTILINE)
)


def is_command(line):
    return line.split(maxsplit=1)[0] in PROGRAMS


def arguments_of(words):
    """What m0 is given by a command line of its own, of torchrun or of Python; None where it is another program's."""
    if words[0] == "m0":
        return words[1:]
    for module in ("m0", "m0.cli.main"):
        if module in words and words[words.index(module) - 1] == "-m":
            return words[words.index(module) + 1 :]
    return None


def check_command(line):
    words = shlex.split(line, comments=True)
    if (arguments := arguments_of(words)) is not None:
        parser().parse_args(arguments)
    elif words[0] == "make":
        assert set(words[1:]) <= MAKE
    elif words[0] == "pip":
        assert {extra for group in re.findall(r"\[(.+?)\]", line) for extra in group.split(",")} <= EXTRAS
    elif words[0] == "python":
        check_script(words)
    else:
        assert words[0] == "source"


def check_script(words):
    source = (ROOT / words[1]).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))


SHOWN = [
    line for blocks in BLOCKS.values() for block in blocks if block.language is None for line in block.lines if is_command(line)
]
INLINE = sorted({span for text in TEXTS.values() for span in re.findall(r"`([^`\n]+)`", text) if is_command(span)})


@pytest.mark.parametrize("line", SHOWN)
def test_commands_that_are_shown_are_taken(line, monkeypatch):
    check_command(line)


@pytest.mark.parametrize("span", INLINE)
def test_commands_within_a_sentence_have_such_options(span):
    """They need not be whole: `m0 rank --adapter` names an option."""
    words = shlex.split(span)
    if (arguments := arguments_of(words)) is None:
        check_command(span)
    elif arguments:
        known = COMMANDS[arguments[0]]._option_string_actions
        assert all(word in known for word in arguments if word.startswith("--"))


def test_options_within_a_sentence_exist():
    known = {option for command in COMMANDS.values() for option in command._option_string_actions}
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py"))
    for page, text in TEXTS.items():
        for option in re.findall(r"`(--[\w-]+)", text):
            assert option in known or f'"{option}"' in scripts, f"{page}: {option}"


def test_there_are_commands_to_check():
    assert sum(line.startswith("m0 ") for line in SHOWN) >= 8
    assert sum(line.startswith("torchrun ") for line in SHOWN) >= 3
    for wrong in ("m0 rank", "m0 rank q x --no-such-option", "m0 shout q", "torchrun -m m0 rank"):
        with pytest.raises(SystemExit):
            check_command(wrong)
    for wrong in ("make nothing", "pip install '.[nothing]'"):
        with pytest.raises(AssertionError):
            check_command(wrong)


def test_settings_that_are_shown_are_taken(tmp_path):
    from m0.train import TrainConfig

    shown = [block for blocks in BLOCKS.values() for block in blocks if block.language == "toml"]
    assert shown
    for number, block in enumerate(shown):
        path = tmp_path / f"{number}.toml"
        path.write_text(block.code, encoding="utf-8")
        assert TrainConfig.load(path).stages


# --- links --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", TEXTS[page]):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_pages_name_only_files_that_exist():
    for page, text in TEXTS.items():
        for name in re.findall(r"`((?:tests|scripts|m0|docs)/[\w/.-]+\.\w+)`", text):
            assert (ROOT / name).exists(), (page, name)
