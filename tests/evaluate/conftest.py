"""A small dataset, written as a test wants it."""

import json

import pytest

CORPUS = [
    {"_id": "d1", "title": "", "text": "a needle that points north"},
    {"_id": "d2", "title": "", "text": "a sea mammal"},
]
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def write(tmp_path):
    def write(corpus=CORPUS, queries=({"_id": "q1", "text": "compass"},), qrels=HEADER + "q1\td1\t1\n", encoding="utf-8"):
        folder = tmp_path / "data"
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name).write_bytes(text.encode(encoding))
        (folder / "qrels" / "test.tsv").write_bytes(qrels.encode(encoding))
        return folder

    return write
