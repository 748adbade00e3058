"""Writes the files of this folder with the programs that README.md names. Run where these are installed: python make.py"""

import io
import json
from pathlib import Path

import datasets
import duckdb
import pandas
import polars
from haystack import Document as HaystackDocument
from haystack.dataclasses import ByteStream
from langchain_core.documents import Document as LangChainDocument
from langchain_core.load import dumps
from PIL import Image

HERE = Path(__file__).parent
TEXTS = [
    "A needle that points north.",
    'The "whale" is a mammal;\nit lives in the sea, not on land.',
    "Ein rotes Herz für 5 €.",
]
ROWS = {"id": ["compass", "whale", "heart"], "text": TEXTS, "year": [1994, None, 2021], "tags": ["a,b", "c\td", ""]}


def png(colour):
    """A picture of one colour, encoded."""
    data = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(data, "PNG")
    return data.getvalue()


def write(name, lines):
    (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


red, blue = png((200, 0, 0)), png((0, 0, 200))
(HERE / "red.png").write_bytes(red)

documents = [
    LangChainDocument(page_content=text, metadata={"source": "x.txt", "page": n}, id=str(n)) for n, text in enumerate(TEXTS)
]
write("langchain.jsonl", [document.model_dump_json() for document in documents])
write("langchain_dumps.jsonl", [dumps(document) for document in documents])

documents = [HaystackDocument(content=text, meta={"source": "x.txt", "page": n}) for n, text in enumerate(TEXTS)]
documents += [HaystackDocument(blob=ByteStream(red, mime_type="image/png"), meta={"page": 3})]
documents += [HaystackDocument(meta={"file_path": "red.png"})]
write("haystack.jsonl", [json.dumps(document.to_dict(flatten=False)) for document in documents])
write("haystack_flat.jsonl", [json.dumps(document.to_dict()) for document in documents])

pages = datasets.Dataset.from_dict(
    {"corpus-id": [11, 12], "image": [{"bytes": red, "path": None}, {"bytes": blue, "path": "b.png"}]}
)
pages.cast_column("image", datasets.Image()).to_parquet(HERE / "datasets_pages.parquet")
pages.cast_column("image", datasets.Image()).to_csv(HERE / "datasets_pages.csv")
pairs = datasets.Dataset.from_dict({"anchor": ["a compass", "a whale"], "positive": TEXTS[:2]})
pairs.to_json(HERE / "sentence_transformers_pairs.jsonl")
pairs.add_column("negative", TEXTS[1:]).to_json(HERE / "sentence_transformers_triples.jsonl")

table = pandas.DataFrame(ROWS)
table.to_csv(HERE / "pandas.csv")
table.to_csv(HERE / "pandas.tsv", sep="\t", index=False)
table.to_csv(HERE / "pandas_excel.csv", sep=";", index=False, encoding="utf-8-sig", lineterminator="\r\n")
table.to_csv(HERE / "pandas_cp1252.csv", index=False, encoding="cp1252")
table.to_json(HERE / "pandas.json", orient="records")
table.to_json(HERE / "pandas_columns.json", indent=1)
table.to_json(HERE / "pandas_lines.jsonl", orient="records", lines=True)
table.to_parquet(HERE / "pandas.parquet")

rows = polars.DataFrame(ROWS)
rows.write_csv(HERE / "polars.csv")
rows.write_json(HERE / "polars.json")
rows.write_ndjson(HERE / "polars.ndjson")
rows.write_parquet(HERE / "polars.parquet")

for name, options in {"csv": "", "json": "(ARRAY true)", "parquet": ""}.items():
    duckdb.sql(f"COPY (SELECT * FROM rows) TO '{HERE / f'duckdb.{name}'}' {options}")
