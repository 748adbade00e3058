"""The notebooks run: each one's code cells in order, in a folder beside the demo, as in Jupyter but without it."""

import ast
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def run(source, label, names):
    """Run a cell. Where its last line is a value, ask the value for what a notebook would show of it."""
    tree = ast.parse(source, label)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, label, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), label, "eval"), names)
        for show in ("_repr_html_", "_repr_png_"):
            if hasattr(value, show):
                assert getattr(value, show)()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "docs" / "demo", tmp_path / "docs" / "demo")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where Jupyter starts a notebook
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(load(path)["cells"]):
        if cell["cell_type"] == "code":
            run("".join(cell["source"]), f"{path.name}, cell {number}", names)
    assert not list(Path().iterdir())  # a notebook must not litter a reader's folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_format(path):
    """nbformat 4.5, outputs empty, ids unique; files that are named exist."""
    notebook = load(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["cell_type"] in {"code", "markdown"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        for word in "".join(cell["source"]).split("`")[1::2]:
            assert not word.startswith("docs/") or (ROOT / word).exists(), word


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 2
