"""Rank the real mixed documents of docs/demo with m0-nano and print the rankings.

python scripts/demo.py          (or: make demo)
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from m0 import Reranker
from m0.cli.formatting import format_table, snippet
from m0.cli.sources import read_sources

DEMO = Path(__file__).resolve().parent.parent / "docs" / "demo"
SHOWN = 6


def main() -> None:
    begin = time.monotonic()
    reranker = Reranker.from_pretrained("m0-nano")
    sources = list(read_sources(str(DEMO / "documents.jsonl")))
    documents = [source.document for source in sources]
    pictures = sum("image" in str(document) for document in documents)
    print(f"m0-nano ranks {len(documents)} documents, {pictures} of them with a picture, the rest text in several languages.")
    for query in json.loads((DEMO / "queries.json").read_text(encoding="utf-8")):
        ranking = reranker.rank(query, documents)
        names = [json.loads(line)["name"] for line in (DEMO / "names.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [(result.score, names[result.index], snippet(result.document)) for result in ranking[:SHOWN]]
        print(f"\n{query!r}, the best {SHOWN} of {len(documents)}:\n{format_table(rows)}")
    print(f"\n{time.monotonic() - begin:.1f} s in all. Try it: .venv/bin/m0 rank 'your query' your-folder/")


if __name__ == "__main__":
    main()
