"""Functions of Python's standard library, each with the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
import sysconfig
from pathlib import Path

from nano.sources.splitting import clean, held_out


def build_code() -> list[dict]:
    rows, seen = [], set()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library).with_suffix("").as_posix().replace("/", ".")
        if re.search(r"site-packages|(^|\.)(test|tests|idlelib|lib2to3)\b", module):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or len(node.body) < 2 or not (docstring := ast.get_docstring(node)):
                continue
            query = clean(docstring.split("\n\n")[0])[:150]
            if len(query) < 15 or query in seen:
                continue
            seen.add(query)
            node.body = node.body[1:]
            name = f"{module}.{node.name}"
            rows.append({"id": name, "query": query, "code": ast.unparse(node)[:600], "held_out": held_out("code", query)})
    return rows
