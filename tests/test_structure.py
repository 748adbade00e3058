"""The house: which file may know of which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "m0"
# Lower rows know of upper rows only (see docs/README.md).
ROWS = [
    ["errors"],
    ["config"],
    ["rotary", "attention"],
    ["images"],
    ["vision", "decoder", "head", "prompt"],
    ["model"],
    ["checkpoint"],
    ["hub", "lora"],
    ["reranker"],
    ["cli", "__init__"],
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
NEVER = {"transformers", "peft", "timm", "torchvision", "matplotlib"}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(LEVEL)


@pytest.mark.parametrize("name", LEVEL)
def test_imports_point_one_way(name):
    for module in imports(PACKAGE / f"{name}.py"):
        head, _, rest = module.partition(".")
        assert head not in NEVER, f"{name} imports {module}"
        if head == "m0" and rest:
            assert LEVEL[rest] < LEVEL[name] or name == "__init__", f"{name} imports {module}"


def test_the_model_knows_no_adapters_no_files_and_no_pictures():
    known = {module for module in imports(PACKAGE / "model.py") if module.startswith("m0.")}
    assert known == {"m0.attention", "m0.config", "m0.decoder", "m0.errors", "m0.head", "m0.rotary", "m0.vision"}
