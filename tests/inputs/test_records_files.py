"""Files of records, as pandas, Polars, DuckDB, datasets, LangChain, Haystack and people write them."""

import csv
import io
import json
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from m0.errors import InputError, MissingExtraError
from m0.inputs.document import Document
from m0.inputs.images import ImageSettings
from m0.inputs.reading import read_parts
from m0.inputs.records import Fields, document_of, iterate_records, read_json_lines, read_records
from m0.inputs.records.tables import MAX_FIELD_CHARACTERS

DATA = Path(__file__).parents[1] / "data" / "records"
TEXTS = [
    "A needle that points north.",
    'The "whale" is a mammal;\nit lives in the sea, not on land.',
    "Ein rotes Herz für 5 €.",
]
TABLES = [
    path.name for path in sorted(DATA.iterdir()) if path.stem in {"pandas", "pandas_excel", "pandas_lines", "polars", "duckdb"}
]


def needs_arrow(name):
    if str(name).endswith(".parquet"):
        pytest.importorskip("pyarrow")


def written(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def texts(path, **options):
    return [document.content["text"] for document in read_records(path, **options)]


def failure(path, *arguments, **options):
    with pytest.raises(InputError) as error:
        list(read_records(path, *arguments, **options))
    return str(error.value).replace(str(path), path.name)


def test_there_are_files_of_every_kind():
    assert len(TABLES) == 13
    assert {Path(name).suffix for name in TABLES} == {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_programs(name):
    needs_arrow(name)
    documents = list(read_records(DATA / name))
    assert [document.content for document in documents] == [{"text": text} for text in TEXTS]
    assert [document.id for document in documents] == ["compass", "whale", "heart"]
    assert [document.metadata["tags"] for document in documents] == ["a,b", "c\td", ""]
    assert {str(document.metadata["year"]) for document in documents} <= {"1994", "2021", "1994.0", "2021.0", "", "None"}


@pytest.mark.parametrize("name", ["langchain.jsonl", "langchain_dumps.jsonl"])
def test_langchain(name):
    expected = [Document({"text": text}, str(n), {"source": "x.txt", "page": n}) for n, text in enumerate(TEXTS)]
    assert list(read_records(DATA / name)) == expected


@pytest.mark.parametrize("name", ["haystack.jsonl", "haystack_flat.jsonl"])
def test_haystack(name):
    documents = list(read_records(DATA / name))
    assert [document.content for document in documents[:3]] == [{"text": text} for text in TEXTS]
    assert all(document.metadata["source"] == "x.txt" and len(document.id) == 64 for document in documents[:3])
    colours = [read_parts(document.content, "document", ImageSettings())[0].pixels[0, 0].tolist() for document in documents[3:]]
    assert colours == [[200, 0, 0], [200, 0, 0]]
    assert documents[3].metadata["page"] == 3


def test_datasets_pages():
    pytest.importorskip("pyarrow")
    documents = list(read_records(DATA / "datasets_pages.parquet"))
    assert [document.id for document in documents] == ["11", "12"]
    colours = [read_parts(document.content, "document", ImageSettings())[0].pixels[0, 0].tolist() for document in documents]
    assert colours == [[200, 0, 0], [0, 0, 200]]


def test_datasets_writes_pictures_into_csv_that_nobody_can_read():
    assert failure(DATA / "datasets_pages.csv") == (
        'datasets_pages.csv, line 2: "image" is a picture as datasets writes it into CSV, which cannot be read back; '
        "have it write Parquet; none of its 2 records can be used."
    )


def test_sentence_transformers():
    assert texts(DATA / "sentence_transformers_pairs.jsonl") == TEXTS[:2]
    assert "several documents, positive, negative" in failure(DATA / "sentence_transformers_triples.jsonl")
    assert texts(DATA / "sentence_transformers_triples.jsonl", fields=Fields("negative")) == TEXTS[1:]


def test_encodings(tmp_path):
    assert texts(DATA / "pandas_cp1252.csv", encoding="cp1252") == TEXTS
    assert failure(DATA / "pandas_cp1252.csv") == (
        "pandas_cp1252.csv, line 5: the line is not UTF-8 at its byte 22 (--encoding, or encoding= in Python, names another); "
        "1 of its 3 records cannot be used."
    )
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    table = 'text\r\nfür\r\n"5\n€"\r\n'
    for codec in ("utf-8-sig", "utf-16", "utf-32"):  # with a byte order mark, which counts more than what is said
        assert texts(written(tmp_path, "a.jsonl", lines, codec), encoding="cp1252") == TEXTS
        assert texts(written(tmp_path, "a.json", f"[{lines.strip().replace(chr(10), ',')}]", codec)) == TEXTS
        assert texts(written(tmp_path, "a.csv", table, codec)) == ["für", "5\n€"]
    assert texts(written(tmp_path, "a.jsonl", lines, "utf-16-be"), encoding="utf-16-be") == TEXTS
    assert texts(written(tmp_path, "a.csv", "text\n日本\n", "shift_jis"), encoding="shift_jis") == ["日本"]
    for unknown in ("klingon", "base64", ""):
        assert failure(tmp_path / "a.jsonl", encoding=unknown) == (
            f"{unknown!r} is not an encoding that Python knows, such as utf-8, cp1252 or utf-16-le."
        )


def test_utf_16_without_its_mark(tmp_path):
    assert "holds a NUL" in failure(written(tmp_path, "a.csv", "text\nx\n", "utf-16-le"))
    assert "is not JSON" in failure(written(tmp_path, "a.jsonl", '"x"\n', "utf-16-le"))


def test_text_cut_within_a_character(tmp_path):
    path = written(tmp_path, "a.jsonl", '"one"\n"zwölf"\n'.encode("utf-16")[:-9])
    found = list(iterate_records(path))
    assert [record.number for record in found] == [1, 2]
    assert str(found[1].document).startswith("the file is not UTF-16-LE at byte 20 (")
    path = written(tmp_path, "a.json", b'["one", "\xff"]')
    assert failure(path).startswith("a.json, record 1: the file is not UTF-8 at byte 9 (")


# --- JSON -----------------------------------------------------------------------------------------------------------------


def test_bad_lines_are_counted_and_the_others_read(tmp_path):
    lines = ['{"text": "one"}', "", "{bad", '{"year": 3}', '"two"\r', "7", '{"text": "thr\xffee"}']
    path = written(tmp_path, "a.jsonl", "\n".join(lines).encode("latin-1"))
    reports, good = [], []
    for document in read_records(path, report=reports.append):
        good.append(document.content["text"])
        assert not reports
    assert good == ["one", "two"]
    [report] = reports
    assert (report.count, report.total, report.first.number) == (4, 6, 3)
    sentence = (
        "a.jsonl, line 3: the line is not JSON: Expecting property name enclosed in double quotes in column 2; "
        "4 of its 6 records cannot be used."
    )
    assert str(report).replace(str(path), path.name) == sentence
    assert failure(path) == sentence
    found = [
        (record.number, str(record.document)) for record in iterate_records(path) if isinstance(record.document, InputError)
    ]
    assert [number for number, _ in found] == [3, 4, 6, 7]
    assert found[2][1] == "the record is the number 7, but must be text, an object or a list of parts."


def test_the_good_ones_come_before_the_error(tmp_path):
    path = written(tmp_path, "a.jsonl", 'no\n"one"\n')
    documents = read_records(path)
    assert next(documents).content == {"text": "one"}
    with pytest.raises(InputError, match=r"line 1: .*; 1 of its 2 records cannot be used\."):
        next(documents)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a.jsonl holds no records."),
        ("\n \n", "a.jsonl holds no records."),
        ("[\n1]\n", "belongs into a .json file; none of its 2 records can be used."),
        ("{" * 3, "a.jsonl, line 1: the line is not JSON"),
        ("[" * 100_000, "lists in lists, too deep to read; it is the only record."),
        ("9" * 5000, "a.jsonl, line 1: "),
    ],
)
def test_no_json_lines(tmp_path, text, why):
    assert why in failure(written(tmp_path, "a.jsonl", text))


def test_lines_end_by_line_feeds_alone(tmp_path):
    text = "a\u2028b\x85c\x0bd"
    assert texts(written(tmp_path, "a.jsonl", json.dumps(text, ensure_ascii=False))) == [text]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**16])
def test_arrays_are_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("m0.inputs.records.lines.CHUNK_BYTES", chunk)
    monkeypatch.setattr("m0.inputs.records.json_text.CHUNK_BYTES", chunk)
    rows = ["ünï", {"text": 'a "quoted" [bracket], \\ and € \U0001f600', "n": [1, {"x": None}]}, ["a", {"text": "b"}]] * 3
    for ascii_only in (True, False):
        for indent in (None, 2):
            path = written(tmp_path, "a.json", "\n " + json.dumps(rows, ensure_ascii=ascii_only, indent=indent) + "\n")
            found = list(read_records(path))
            assert [document.content for document in found[:3]] == [
                {"text": "ünï"},
                {"text": rows[1]["text"]},
                [{"text": "a"}, {"text": "b"}],
            ]
            assert found[1].metadata == {"n": [1, {"x": None}]}
            assert len(found) == 9
            lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
            assert list(read_records(written(tmp_path, "a.jsonl", lines))) == found


def test_a_json_file_may_hold_lines_or_one_record(tmp_path):
    assert texts(written(tmp_path, "a.json", '\n"one"\n{"text": "two"}\n')) == ["one", "two"]
    assert texts(written(tmp_path, "a.json", '{"text": "one"}')) == ["one"]
    assert texts(written(tmp_path, "a.json", json.dumps({"text": "one", "n": {"a": 1}}, indent=2))) == ["one"]
    wrapped = written(tmp_path, "a.json", json.dumps({"version": 2, "data": [{"text": "one"}]}, indent=1))
    assert failure(wrapped) == (
        'a.json, record 1: the file is one object, whose records seem to stand under "data"; give that list alone; '
        "it is the only record."
    )
    assert failure(DATA / "pandas_columns.json") == (
        'pandas_columns.json, record 1: "text" is an object, but must be text; it is the only record.'
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "a.json holds no records."),
        (
            '["one", "two"',
            "record 3: the file is not JSON: the array is cut short in line 1; 1 of its 3 records cannot be used.",
        ),
        ('["one", "tw', "record 2: the file is not JSON: Unterminated string starting in line 1; what follows is not read"),
        (
            '["one",\n{"a" 1},\n"two"]',
            "record 2: the file is not JSON: Expecting ':' delimiter in line 2; what follows is not read",
        ),
        ('["one",]', "record 2: the file is not JSON: "),
        ('["one"] ["two"]', "record 2: more follows after the array's end in line 1; it is not read"),
        ('["one" "two"]', "record 2: the file is not JSON: '\"' stands where ']' should in line 1; what follows is not read"),
        ("[" * 100_000, "lists in lists, too deep to read"),
        ('{\n"text": "a",\n}', "record 1: the file is not JSON: "),
        ("nothing", "line 1: the line is not JSON"),
    ],
)
def test_no_json(tmp_path, text, why):
    assert why in failure(written(tmp_path, "a.json", text))


def test_a_wrong_array_is_not_read_to_its_end(tmp_path):
    path = written(tmp_path, "a.json", '["one", {"a" 1}' + ', "more"' * 1_000_000 + "]")
    tracemalloc.start()
    try:
        assert "Expecting ':' delimiter in line 1" in failure(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20  # of 8 MB
    finally:
        tracemalloc.stop()


# --- CSV and TSV ----------------------------------------------------------------------------------------------------------


def test_csv_as_python_writes_it(tmp_path):
    rows = [
        {"id": str(n), "text": text, "note": ' "x", '} for n, text in enumerate([*TEXTS, "a\r\nb", "tab\tand;semicolon", '"'])
    ]
    for suffix, dialect in ((".csv", "excel"), (".tsv", "excel-tab"), (".csv", "unix")):
        with open(tmp_path / f"a{suffix}", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
        found = list(read_records(tmp_path / f"a{suffix}"))
        assert [document.content["text"] for document in found] == [row["text"] for row in rows]
        assert [document.metadata for document in found] == [{"note": ' "x", '}] * len(rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id;text\n1;a, b\n"),
        ("a.csv", "id\ttext\n1\ta, b\n"),
        ("a.csv", "id|text\n1|a, b\n"),
        ("a.csv", "sep=;\r\nid;text\r\n1;a, b\r\n"),
        ("a.tsv", 'id,text\n1,"a, b"\n'),
        ("a.csv", '\n id , text \n1,"a, b"\n'),
        ("a.csv", '"id","text"\n"1","a, b"'),
    ],
)
def test_delimiters_are_told_from_the_header(tmp_path, name, text):
    assert list(read_records(written(tmp_path, name, text))) == [Document({"text": "a, b"}, "1")]


def test_a_single_column_is_not_split(tmp_path):
    assert texts(written(tmp_path, "a.csv", "text\na;b\n")) == ["a;b"]
    assert texts(written(tmp_path, "a.csv", "body; or more\na;b\n"), fields=Fields("body; or more")) == ["a;b"]


def test_a_header_may_hold_line_ends(tmp_path):
    document = next(read_records(written(tmp_path, "a.csv", 'text,"two\nlines"\nx,y\n')))
    assert document.metadata == {"two\nlines": "y"}


def test_ragged_rows_have_their_lines_number(tmp_path):
    path = written(tmp_path, "a.csv", 'id,text\n1,"two\nlines"\n\n2\n3,x,y\n4,z\n')
    found = {record.number: record.document for record in iterate_records(path)}
    assert {number for number, document in found.items() if isinstance(document, InputError)} == {5, 6}
    assert found[2].content == {"text": "two\nlines"}
    assert found[7] == Document({"text": "z"}, "4")
    assert failure(path) == (
        "a.csv, line 5: the row has 1 field by commas, but the header names 2 columns; 2 of its 4 records cannot be used."
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a.csv has no header that names its columns."),
        ("id,text\n", "a.csv holds no records."),
        (
            "1,some words\n2,more\n",
            "a.csv has no column that is known to hold text or a picture, only 1, some words; "
            "name one with --text-field or --image-field (in Python: Fields), where the first line must name the columns.",
        ),
        ("text,text\na,b\n", "a.csv has more than one column 'text', where the first line must name the columns."),
        ("text\ra\r", "a.csv ends its lines by carriage returns alone, as old Macs did; save it with line feeds."),
        ('id,"text\n', "a.csv, line 1: a quotation mark opens a field and none closes it."),
        (
            'id,text\n1,a\n2,"b\n3,c\n',
            "a.csv, line 3: a quotation mark opens a field and none closes it; 1 of its 2 records cannot be used.",
        ),
        (
            'id,text\n1,"a" b\n2,c\n',
            "a.csv, line 2: a quotation mark closes within a field; one that belongs to the text is written twice; "
            "1 of its 2 records cannot be used.",
        ),
        ("id,text\n1,a\rb\n", "a.csv, line 2: a carriage return stands within a field that is not quoted; it is the only record."),
        ("id,text\n1,a\0b\n", "a.csv, line 2: the line holds a NUL, so that the file is no text in this encoding; it is the only record."),
        ("id,text\n1,\n", "a.csv, line 2: the record has neither text nor a picture; it is the only record."),
    ],
)  # fmt: skip
def test_no_csv(tmp_path, text, sentence):
    assert failure(written(tmp_path, "a.csv", text)) == sentence


def test_a_missing_column_is_said_before_the_first_row(tmp_path):
    path = written(tmp_path, "a.csv", "id,body\n1,x\n")
    for fields, name in ((Fields("text"), "text"), (Fields("body", "image"), "image"), (Fields("body", id="docno"), "docno")):
        assert (
            failure(path, fields) == f"a.csv has no column {name!r}, only id, body, where the first line must name the columns."
        )
    assert texts(path, fields=Fields("body")) == ["x"]


def test_pictures_in_base64_are_longer_than_csv_allows(tmp_path):
    limit = csv.field_size_limit()
    path = written(tmp_path, "a.csv", f"id,image\n1,{'A' * (limit + 3)}=\n2,red.png\n")
    found = list(read_records(path))
    assert len(found[0].content["image"]) == limit + 4
    assert found[1].content == {"image": str(tmp_path / "red.png")}
    assert csv.field_size_limit() == limit


def test_a_field_without_end_ends_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("m0.inputs.records.tables.MAX_FIELD_CHARACTERS", 1000)
    path = written(tmp_path, "a.csv", 'id,text\n1,a\n2,"b\n' + "3,c\n" * 1000)
    assert failure(path) == (
        "a.csv, line 3: a field is longer than 1,000 characters, as where a quotation mark is not closed; "
        "what follows is not read; 1 of its 2 records cannot be used."
    )
    assert MAX_FIELD_CHARACTERS > 2**24


# --- Parquet --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def write_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns, **options):
        table = columns if isinstance(columns, arrow.Table) else arrow.table(columns)
        parquet.write_table(table, tmp_path / "a.parquet", **options)
        return tmp_path / "a.parquet"

    return write


def test_parquet_row_groups_and_batches(write_parquet):
    rows = {"id": list(range(5000)), "text": [f"text {n}" for n in range(5000)]}
    for size in (7, 1000, 5000):
        found = list(iterate_records(write_parquet(rows, row_group_size=size)))
        assert [record.number for record in found] == list(range(1, 5001))
        assert found[-1].document == Document({"text": "text 4999"}, "4999")


def test_parquet_values(write_parquet):
    rows = {
        "id": [1, None],
        "text": ["a", None],
        "scan": [None, {"bytes": b"x", "path": None}],
        "nested": [{"deep": [{"t": "words"}]}, {"deep": []}],
    }
    path = write_parquet(rows)
    assert [document.content for document in read_records(path)] == [{"text": "a"}, {"image": b"x"}]
    assert next(read_records(path)).metadata == {"scan": None, "nested": {"deep": [{"t": "words"}]}}
    found = list(iterate_records(path, Fields("nested.deep.0.t")))
    assert found[0].document.content == {"text": "words"}
    assert str(found[1].document) == 'the record has nothing under "nested.deep.0.t", only scan, nested.'


def test_parquet_that_cannot_be_used(write_parquet, tmp_path):
    path = write_parquet({"id": [1, 2], "body": ["a", ""]})
    assert failure(path) == (
        "a.parquet has no column that is known to hold text or a picture, only id, body; "
        "name one with --text-field or --image-field (in Python: Fields)."
    )
    assert failure(path, Fields("words")) == "a.parquet has no column 'words', only id, body."
    assert failure(path, Fields("body")) == (
        'a.parquet, row 2: the record has nothing under "body", only id; 1 of its 2 records cannot be used.'
    )
    assert failure(write_parquet({"text": []})) == "a.parquet holds no records."
    whole = path.read_bytes()
    for data in (b"", b"text\n", whole[:-20]):
        assert failure(written(tmp_path, "a.parquet", data)).startswith("a.parquet is not a Parquet file that can be read: ")
    assert failure(tmp_path / "b.parquet") == "b.parquet does not exist."


def test_times_that_python_cannot_hold_are_text(write_parquet):
    arrow = pytest.importorskip("pyarrow")
    if "pandas" in sys.modules:
        pytest.skip("pandas has a type of its own for them")
    fine, far = arrow.array([1, None], arrow.timestamp("ns")), arrow.array([10**13, 0], arrow.timestamp("s"))
    found = list(read_records(write_parquet(arrow.table({"text": ["a", "b"], "fine": fine, "far": far, "n": [1, 2]}))))
    assert found[0].metadata["fine"] == "1970-01-01 00:00:00.000000001"
    assert isinstance(found[0].metadata["far"], str)
    assert (found[1].metadata["fine"], found[1].metadata["n"]) == (None, 2)


def test_damage_within_a_parquet_file(write_parquet):
    path = write_parquet({"text": [f"{n:05}" * 20 for n in range(3000)]}, row_group_size=1000, compression="gzip")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    found = list(iterate_records(path))
    assert 0 < len(found) - 1 < 3000
    assert str(found[-1].document).startswith("the file is damaged: ")


def test_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'm0-reranker\[records\]'"):
        list(read_records(DATA / "pandas.parquet"))
    assert len(list(read_records(DATA / "pandas.csv"))) == 3


# --- all of them ----------------------------------------------------------------------------------------------------------


def test_files_that_are_none(tmp_path):
    assert failure(tmp_path / "a.txt").startswith("a.txt is no file of records, whose names end in .jsonl, ")
    assert failure(tmp_path / "a.jsonl") == "a.jsonl does not exist."
    (tmp_path / "b.csv").mkdir()
    assert failure(tmp_path / "b.csv") == "b.csv is a directory, not a file of records."


def test_relative_pictures_lie_beside_the_file(tmp_path):
    (tmp_path / "inner").mkdir()
    for name, text in (("a.jsonl", '{"image": "p.png"}'), ("a.json", '[{"image": "p.png"}]'), ("a.csv", "image,x\np.png,1\n")):
        [document] = read_records(written(tmp_path / "inner", name, text))
        assert document.content == {"image": str(tmp_path / "inner" / "p.png")}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@pytest.mark.parametrize(("name", "text"), [("a.jsonl", '"x"\n"y"\n'), ("a.json", '["x", "y"]'), ("a.csv", "text\nx\ny\n")])
def test_pipes(tmp_path, name, text):
    os.mkfifo(tmp_path / name)
    writer = threading.Thread(target=lambda: (tmp_path / name).write_text(text))
    writer.start()
    assert texts(tmp_path / name) == ["x", "y"]
    writer.join()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    needs_arrow(suffix)
    peaks = []
    for count in (1500, 12_000):
        rows = [{"id": str(n), "text": f"{n} {'word ' * 60}"} for n in range(count)]
        path = tmp_path / f"a{suffix}"
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif suffix == ".csv":
            path.write_text("".join(["id,text\n", *(f"{row['id']},{row['text']}\n" for row in rows)]))
        else:
            lines = [json.dumps(row) for row in rows]
            path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
        del rows
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_records(path)) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # Of the larger file 4 MB of text are read.
    assert peaks[1] < peaks[0] + 2**20


def test_the_first_document_comes_before_the_rest_is_read(tmp_path):
    path = written(tmp_path, "a.jsonl", '"one"\n' + "{bad\n" * 100_000)
    documents = read_records(path)
    assert next(documents).content == {"text": "one"}
    documents.close()


def test_lines_of_a_stream_may_be_plain_text():
    text = b'"quoted"\n{"id": 7, "text": "object"}\nplain words\r\n7\n{bad\n[1990s] in brackets\n'
    found = list(read_json_lines(io.BytesIO(text), document_of, plain_text=True))
    assert [record.document.content["text"] for record in found if isinstance(record.document, Document)] == [
        "quoted",
        "object",
        "plain words",
        "7",
        "[1990s] in brackets",
    ]
    assert [record.number for record in found if isinstance(record.document, InputError)] == [5]


def test_lines_that_are_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("m0.inputs.records.lines.MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr("m0.inputs.records.json_text.MAX_LINE_BYTES", 2**20)
    path = written(tmp_path, "a.jsonl", f'"one"\n"{"x" * 2**21}"\n"two"\n')
    assert failure(path) == "a.jsonl, line 2: the line is longer than 1 MiB; 1 of its 3 records cannot be used."
    assert texts(path, report=lambda _: None) == ["one", "two"]
    assert "the line is longer than 1,048,576 characters; what follows is not read" in failure(
        written(tmp_path, "a.jsonl", f'"{"x" * 2**21}"\n', "utf-16")
    )
    assert "record 1: the record is longer than 1,048,576 characters" in failure(
        written(tmp_path, "a.json", f'["{"x" * 2**22}"]')
    )
    assert "record 1: the record is longer than 1,048,576 characters" in failure(
        written(tmp_path, "a.json", '{\n"text":\n' + f'"{"x" * 9000}",\n' * 150)
    )
