"""The public API explains itself: every public class and function has a docstring, which says shapes, errors and sources.

Read from the source, so that nothing is imported and inherited docstrings do not count. Exceptions are listed below, each with its
reason; a test fails where one is no longer needed.
"""

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import m0

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "m0"
FOLDERS = ("interp", "explain", "evaluate", "train", "model", "checkpoints/adapters")
FILES = (
    "reranker.py",
    "errors.py",
    "engine/options.py",
    "engine/results.py",
    "engine/cascade.py",
    "engine/prefix_cache.py",
    "inputs/document.py",
    "inputs/prompt.py",
    "inputs/reading.py",
    "inputs/images.py",
    "inputs/records/fields.py",
    "inputs/records/reading.py",
    "inputs/records/record.py",
    "inputs/records/shapes.py",
    "inputs/policy.py",
    "inputs/passages.py",
    "inputs/pages/page.py",
    "inputs/pages/reading.py",
    "inputs/pages/ranges.py",
)
AXIS = r"(?:\s*\.\.\.|[^(),.;:]{1,40})"
SHAPE = re.compile(rf"\({AXIS},(?:{AXIS},)*(?:{AXIS})?\)|any shape|one number", re.IGNORECASE)
"""(tokens, hidden), (tokens,), (3, tokens), (...), or in words."""
SOURCE = re.compile(r"[\w'-]+(?: et al\.| & [A-Z][\w'-]+)?,?\s(?:19|20)\d{2}\b")
"""Vig et al. 2020; Zhang & Sennrich 2019; nostalgebraist 2020."""
NO_MISTAKE = {"AssertionError", "AttributeError", "KeyError", "NotImplementedError", "StopIteration"}
"""What is raised for Python's own protocols, or can never be seen from outside."""

NO_DOCSTRING: dict[str, str] = {}
"""Without a docstring, and why."""
NO_SHAPES: dict[str, str] = {}
"""Takes or gives tensors and says no shape, and why."""
NO_RAISES: dict[str, str] = {}
"""Raises an error and does not say so, and why."""
METHODS = {
    "train.losses": {
        "bce": "cross-entropy itself, older than any paper on ranking",
        "weighted_loss": "a sum of the others",
    },
    "explain.attention": {"raw_attention": "the pattern as it is"},
    "explain.gradient": {"compute_baseline": "a part of integrated gradients, which name their source"},
    "explain.perturb": {"find_players": "words and regions, no method"},
    "interp.patching": {
        "run_variants": "runs what the others ask for",
        "record_activations": "runs what the others ask for",
        "token_label": "a name",
    },
    "interp.ablation": {
        "head_ablation": "this project's own measure",
        "standard_cuts": "an argument of `attention_knockout`, which names its source",
    },
    "interp.lens": {"direct_logit_attribution": "`DirectAttribution`, which it returns, names the source"},
}
"""Files in which every public function is somebody's method; and the functions that are not, with the reason."""
SOURCED = (
    "evaluate.metrics.estimate",
    "evaluate.metrics.winoground",
    "explain.rules.attnlrp_rules",
    "explain.rules.frozen_rules",
    "interp.edits.add",
    "interp.edits.replace",
    "interp.lens.DirectAttribution",
    "model.decoder.Attention",
    "model.decoder.Decoder",
    "model.decoder.DecoderLayer",
    "model.decoder.MLP",
    "model.fused.QuickGELU",
    "model.fused.RMSNorm",
    "model.fused.SwiGLU",
    "model.vision.PatchEmbed",
    "model.vision.PatchMerger",
    "model.vision.VisionAttention",
    "model.vision.VisionBlock",
    "model.vision.VisionMLP",
    "model.vision.VisionTower",
    "engine.prefix_cache.DocumentCache",
)
"""What else comes out of a paper."""


@dataclass(frozen=True)
class Item:
    """A public class, function, method or property."""

    name: str
    """As model.attention.Packing.plan"""
    node: ast.ClassDef | ast.FunctionDef
    module: ast.Module
    owner: ast.ClassDef | None = None

    @cached_property
    def docstring(self):
        """Its own; of a setter and of overloads the getter's or the implementation's counts."""
        return ast.get_docstring(self.node) or ""

    @property
    def is_class(self):
        return isinstance(self.node, ast.ClassDef)

    @cached_property
    def signature(self):
        """Annotations of arguments and result, as text."""
        if self.is_class:
            return ""
        arguments = self.node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        found = [one.annotation for one in every if one is not None and one.annotation is not None]
        return " ".join(ast.unparse(one) for one in [*found, *([self.node.returns] if self.node.returns else [])])


def public_items():
    paths = [path for folder in FOLDERS for path in sorted((PACKAGE / folder).rglob("*.py"))]
    for path in [*paths, *(PACKAGE / name for name in FILES)]:
        module = ast.parse(path.read_text(encoding="utf-8"))
        prefix = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in module.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield Item(f"{prefix}.{node.name}", node, module)
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and not is_setter(inner):
                        yield Item(f"{prefix}.{node.name}.{inner.name}", inner, module, node)


def is_setter(node):
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in node.decorator_list)


ITEMS = {item.name: item for item in public_items()}


def uses_tensors(item):
    return re.search(r"\b(?:Tensor|Rotation|KeysValues)\b", item.signature) is not None


def errors_of(item):
    """Names of the errors that a function raises itself or through private helpers of its file; of a class, when it is made."""
    functions = {node.name: node for node in ast.walk(item.module) if isinstance(node, ast.FunctionDef)}
    if item.is_class:
        own = {node.name: node for node in item.node.body if isinstance(node, ast.FunctionDef)}
        waiting = [own[name] for name in ("__init__", "__post_init__") if name in own]
    else:
        waiting = [item.node]
    seen, found = set(), set()
    while waiting:
        node = waiting.pop()
        seen.add(node.name)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
                name = ast.unparse(inner.exc.func).rpartition(".")[2]
                if name.endswith("Error") and name not in NO_MISTAKE:
                    found.add(name)
            if isinstance(inner, ast.Call):
                called = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
                if called.startswith("_") and not called.startswith("__") and called in functions and called not in seen:
                    waiting.append(functions[called])
    return found


def names_errors(item):
    text = item.docstring
    if item.is_class:
        text += " ".join(
            ast.get_docstring(node) or ""
            for node in item.node.body
            if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__")
        )
    return "Raises" in text or "raises" in text


def problems(wrong, exceptions):
    """Items that are wrong and not excepted, and exceptions that are not wrong."""
    found = {name for name, item in ITEMS.items() if wrong(item)}
    return sorted(found - exceptions.keys()), sorted(exceptions.keys() - found)


def test_everything_public_has_a_docstring():
    assert problems(lambda item: not item.docstring, NO_DOCSTRING) == ([], [])


def test_shapes_of_tensors_are_said():
    assert problems(lambda item: uses_tensors(item) and not SHAPE.search(item.docstring), NO_SHAPES) == ([], [])


def test_errors_are_said():
    assert problems(lambda item: bool(errors_of(item)) and not names_errors(item), NO_RAISES) == ([], [])


def test_sources_are_named():
    """Of a paper's method, in its own docstring."""
    wanted = set(SOURCED)
    for file, free in METHODS.items():
        functions = {
            name for name, item in ITEMS.items() if name.rpartition(".")[0] == file and isinstance(item.node, ast.FunctionDef)
        }
        excepted = {f"{file}.{name}" for name in free}
        assert excepted <= functions
        wanted |= functions - excepted
    assert [name for name in sorted(wanted) if not SOURCE.search(ITEMS[name].docstring)] == []


def test_names_of_the_package_are_documented():
    """Everything in `m0.__all__` is a class of these files."""
    assert {
        name for name in m0.__all__ if not any(item.is_class and item.node.name == name for item in ITEMS.values())
    } == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(tokens, hidden)", True),
        ("(documents,)", True),
        ("(..., in) -> (..., out)", True),
        ("(layers, rows, ...)", True),
        ("of any shape", True),
        ("(see below)", False),
        ("(Ainslie et al. 2023, GQA)", False),
    ],
)
def test_what_counts_as_a_shape(text, found):
    assert bool(SHAPE.search(text)) is found
