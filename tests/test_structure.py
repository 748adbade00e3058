"""The house: which file may know of which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "m0"
OF_THE_WHOLE = {"reranker", "calls", "paths", "gpu", "moved", "structure", "wheel"}
"""The face, what may run beside what, `~` wherever a path is given, GPUs, old names, this file, what is shipped."""
GROUND = {"errors", "paths", "json_part", "locks", "_moved"}
"""Files that any room may use, and that use nothing but each other."""
ROOMS = ["model", "inputs", "checkpoints", "engine", "interp", "explain", "reranker", ("evaluate", "train"), "cli"]
"""Each knows of those before it only; rooms of one floor do not know of each other."""
FLOOR = {name: floor for floor, some in enumerate(ROOMS) for name in ((some,) if isinstance(some, str) else some)}
ENTRANCES = {"__init__", "__main__"}
MOST_LINES, MOST_OF_A_FUNCTION = 400, 60
"""Of code, without the docstring; longer only with a comment `# Long: why` above."""
OF_MARKUP = {"lxml", "bs4", "markdownify", "charset_normalizer", "mammoth", "markitdown", "pptx"}
NEVER = {
    "transformers",
    "peft",
    "timm",
    "torchvision",
    "matplotlib",
    "scipy",
    "ir_measures",
    "bm25s",
    "pypdfium2",
    "pyarrow",
    *OF_MARKUP,
}
MAY = {
    "matplotlib": ("train", "interp"),
    "scipy": ("evaluate",),
    "ir_measures": ("evaluate",),
    "bm25s": ("evaluate",),
    "pypdfium2": ("inputs",),
    "pyarrow": ("inputs",),
    **dict.fromkeys(OF_MARKUP, ("inputs",)),
}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def inner(path):
    """What a file imports of m0, as paths of files."""
    found = set()
    for module in imports(path):
        if module == "m0" or module.startswith("m0."):
            parts = module.split(".")[1:]
            target = PACKAGE.joinpath(*parts)
            found.add(target / "__init__.py" if target.is_dir() else target.with_suffix(".py"))
    return found


def test_every_file_lies_in_a_room():
    for path in files():
        assert room_of(path) in {*FLOOR, *GROUND, *ENTRANCES}, path


def test_tests_mirror_the_rooms():
    """One folder a room, three for what lies beside m0/, and at the top what is of the whole."""
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    rooms = {name for name in FLOOR if (PACKAGE / name).is_dir()}
    assert folders == rooms | {"parity", "scripts", "docs"}
    assert {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")} == OF_THE_WHOLE


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    for module in imports(path):
        head = module.partition(".")[0]
        assert head not in NEVER or room in MAY.get(head, ()), f"{path} imports {module}"
    for other in inner(path):
        assert other.exists(), f"{path} imports {other}"
        theirs = room_of(other)
        if room in ENTRANCES or theirs == room or theirs in ENTRANCES:
            continue
        assert room not in GROUND or theirs in GROUND, f"{path} imports {other}"
        if theirs not in GROUND:
            assert FLOOR[theirs] < FLOOR[room], f"{path} imports {other}"


def test_no_file_is_in_a_circle():
    """Imports inside functions count, too."""
    uses = {path: inner(path) - {path} for path in files()}
    done = set()
    while uses:
        free = [path for path, others in uses.items() if not (others - done) & uses.keys()]
        assert free, f"circle among {sorted(str(p.relative_to(PACKAGE)) for p in uses)}"
        done |= set(free)
        uses = {path: others for path, others in uses.items() if path not in done}


def test_the_model_uses_itself_alone():
    for path in sorted((PACKAGE / "model").glob("*.py")):
        for module in imports(path):
            head = module.partition(".")[0]
            mine = module.startswith("m0.model") or module in {"m0.errors", "m0.paths", "m0.json_part"}
            assert head in {"torch", "einops", *sys.stdlib_module_names} or mine, f"{path} imports {module}"


def test_the_network_knows_no_adapters_no_files_and_no_pictures():
    known = {module for module in imports(PACKAGE / "model/reranker_model.py") if module.startswith("m0.")}
    assert known == {
        f"m0.{name}"
        for name in ("model.attention", "model.config", "model.decoder", "errors", "model.head", "model.rotary", "model.vision")
    }


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            comment = text.splitlines()[node.lineno - 2].strip().startswith("# Long:")
            assert lines <= MOST_OF_A_FUNCTION or comment, f"{node.name} has {lines} lines"


def test_importing_and_ranking_need_no_compiler():
    """torch._dynamo takes longer to import than a model takes to load."""
    code = "import sys, m0; m0.Reranker.from_pretrained('m0-nano').rank('a', ['b']); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
