"""The house: which file may know of which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "m0"
# Lower rows know of upper rows only (see docs/README.md).
ROWS = [
    ["errors", "mapped", "progress", "graphemes"],
    ["lora_config", "truncation"],
    ["calls", "parallel", "torchrun", "paths", "texts", "json_part", "depth", "frames"],
    ["config_file", "listed"],
    ["config"],
    ["rotary", "linear"],
    ["attention"],
    ["fused", "images"],
    ["stream", "vision", "decoder", "head"],
    ["prompt"],
    ["model"],
    ["batch", "cascade", "tensor_parallel", "picture_files"],
    ["checkpoint", "quantize"],
    ["peft_format"],
    ["hub", "lora", "documents"],
    ["interp"],
    ["explain"],
    ["reranker"],
    ["train", "evaluate"],
    ["sources", "table"],
    ["cli", "__init__"],
    ["__main__"],
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
NEVER = {"transformers", "peft", "timm", "torchvision", "matplotlib", "scipy", "ir_measures", "bm25s"}
MAY = {"matplotlib": ("train", "interp"), "scipy": ("evaluate",), "ir_measures": ("evaluate",), "bm25s": ("evaluate",)}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files(name):
    """A module's file, or those of a package."""
    return sorted((PACKAGE / name).glob("*.py")) or [PACKAGE / f"{name}.py"]


def test_every_module_has_its_place():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.stem for path in PACKAGE.glob("*.py")} | packages == set(LEVEL)


@pytest.mark.parametrize("name", LEVEL)
def test_imports_point_one_way(name):
    for path in files(name):
        for module in imports(path):
            head, _, rest = module.partition(".")
            other = rest.partition(".")[0]
            assert head not in NEVER or name in MAY.get(head, ()), f"{path} imports {module}"
            if head == "m0" and rest and other != name:
                assert LEVEL[other] < LEVEL[name] or name == "__init__", f"{path} imports {module}"


def test_the_model_knows_no_adapters_no_files_and_no_pictures():
    known = {module for module in imports(PACKAGE / "model.py") if module.startswith("m0.")}
    assert known == {"m0.attention", "m0.config", "m0.decoder", "m0.errors", "m0.head", "m0.rotary", "m0.vision"}


def test_importing_and_ranking_need_no_compiler():
    """torch._dynamo takes longer to import than a model takes to load."""
    code = "import sys, m0; m0.Reranker.from_pretrained('m0-nano').rank('a', ['b']); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
