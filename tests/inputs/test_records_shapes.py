"""Records of every known shape become documents; what may be read in two ways is refused."""

import base64
import json
from pathlib import Path

import pytest

from m0.errors import InputError
from m0.evaluate.files import row_content
from m0.inputs.document import Document
from m0.inputs.images import ImageSettings
from m0.inputs.reading import read_parts
from m0.inputs.records import Fields, document_of

DATA = Path(__file__).parents[1] / "data" / "records"
PNG = (DATA / "red.png").read_bytes()
BASE64 = base64.b64encode(PNG).decode()
HERE = str(DATA / "red.png")


def of(record, **fields):
    return document_of(record, Fields(**fields), DATA)


@pytest.mark.parametrize(
    ("record", "content"),
    [
        ("a text", {"text": "a text"}),
        ({"text": "a text"}, {"text": "a text"}),
        ({"image": "red.png"}, {"image": HERE}),
        ({"image": "https://x.org/a.png"}, {"image": "https://x.org/a.png"}),
        ({"image": f"data:image/png;base64,{BASE64}"}, {"image": f"data:image/png;base64,{BASE64}"}),
        ({"image": BASE64}, {"image": BASE64}),
        ({"image": "/abs/a.png"}, {"image": "/abs/a.png"}),
        ({"image": PNG}, {"image": PNG}),
        ({"image": "red.png", "text": "words"}, [{"image": HERE}, {"text": "words"}]),
        ({"text": "words", "image": "red.png"}, [{"text": "words"}, {"image": HERE}]),
        ({"text": "words", "image": None}, {"text": "words"}),
        ({"text": "", "image": "red.png"}, {"image": HERE}),
        ({"pdf": "a.pdf"}, {"pdf": str(DATA / "a.pdf")}),
        ({"pdf": "a.pdf", "pages": "1-3"}, {"pdf": str(DATA / "a.pdf"), "pages": "1-3"}),
        (["one", {"image": "red.png"}, {"text": "two"}], [{"text": "one"}, {"image": HERE}, {"text": "two"}]),
        ([{"image": "red.png", "text": "both"}], {"image": HERE, "text": "both"}),
    ],
)
def test_what_m0_takes_itself(record, content):
    assert of(record) == Document(content)


BEIR = [
    {"_id": "a", "title": "Whales", "text": "They live in the sea."},
    {"_id": "b", "title": "", "text": "No title. "},
    {"_id": "c", "title": "Only a title ", "text": ""},
    {"_id": "d", "title": "A title", "text": "a text", "image": "red.png"},
    {"_id": "e", "text": None, "image": "red.png", "language": "de"},
    {"_id": "f", "title": "Title", "image": "red.png"},
    {"id": "g", "text": "an id without underscore"},
]


@pytest.mark.parametrize("record", BEIR, ids=lambda record: next(iter(record.values())))
def test_beir_is_read_as_for_evaluation(record):
    document = of(record)
    expected = row_content(record, DATA, "here")
    settings = ImageSettings()
    ours, theirs = (read_parts(content, "document", settings) for content in (document.content, expected))
    assert [part if isinstance(part, str) else part.pixels.tobytes() for part in ours] == [
        part if isinstance(part, str) else part.pixels.tobytes() for part in theirs
    ]
    assert document.id == record.get("_id", record.get("id"))
    assert document.metadata == ({"language": "de"} if "language" in record else None)


def test_metadata_is_what_was_not_used():
    record = {"_id": 7, "text": "x", "title": "", "metadata": {"a": [1]}, "year": 1994, "url": None, "text_en": "y"}
    document = of(record)
    assert document.id == "7"
    assert document.metadata == {"metadata": {"a": [1]}, "year": 1994, "url": None, "text_en": "y"}
    assert document.metadata["metadata"] is record["metadata"]
    assert record["text"] == "x"


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (1.5, "1.5"), ("007", "007"), ({"$oid": "65f0"}, "65f0"), (None, None), ("", None), (10**30, str(10**30))],
)
def test_ids_are_text(value, text):
    assert of({"_id": value, "text": "x"}).id == text


def test_the_first_known_id_counts():
    document = of({"id": "page 3", "_id": "p3", "text": "x"})
    assert (document.id, document.metadata) == ("p3", {"id": "page 3"})
    assert of({"corpus-id": 12, "text": "x", "doc_id": "report"}).id == "12"


def test_langchain_and_haystack_metadata_stands_by_itself():
    assert of({"page_content": "x", "metadata": {"source": "a"}, "type": "Document", "id": None}).metadata == {"source": "a"}
    assert of({"content": "x", "meta": {"source": "a"}, "score": None}).metadata == {"source": "a"}
    # Nothing is lost where there is more.
    assert of({"content": "x", "meta": {"a": 1}, "score": 0.5}).metadata == {"meta": {"a": 1}, "score": 0.5}
    assert of({"page_content": "x", "metadata": {}, "type": "Document"}).metadata is None


def test_langchain_has_pictures_as_data_uris():
    uri = f"data:image/png;base64,{BASE64}"
    assert of({"page_content": uri, "metadata": {}}).content == {"image": uri}


@pytest.mark.parametrize("data", [BASE64, list(PNG), PNG], ids=["base64", "numbers", "bytes"])
def test_haystack_blobs(data):
    picture = of({"content": None, "blob": {"data": data, "mime_type": "image/png", "meta": {}}})
    assert read_parts(picture.content, "document", ImageSettings())[0].pixels[0, 0].tolist() == [200, 0, 0]
    both = of({"content": "words", "blob": {"data": data, "mime_type": "image/png"}})
    assert both.content[0] == {"text": "words"}
    assert set(both.content[1]) == {"image"}
    text = of({"blob": {"data": base64.b64encode(b"\xc3\xa4").decode(), "mime_type": "text/plain"}})
    assert text.content == {"text": "ä"}
    pdf = of({"blob": {"data": base64.b64encode(b"%PDF-1.7").decode(), "mime_type": "application/pdf"}})
    assert pdf.content == {"pdf": b"%PDF-1.7"}


def test_haystack_documents_that_name_a_file():
    assert of({"content": None, "meta": {"file_path": "red.png"}}).content == {"image": HERE}
    assert of({"content": None, "file_path": "a.pdf", "page_number": 3}).content == {"pdf": str(DATA / "a.pdf"), "pages": "3"}
    with pytest.raises(InputError, match="neither text nor a picture"):
        of({"content": None, "meta": {"file_path": "a.wav"}})


@pytest.mark.parametrize("name", ["image", "page"])
def test_pictures_as_datasets_stores_them(name):
    assert of({name: {"bytes": PNG, "path": "x.png"}, "id": 1}) == Document({"image": PNG}, "1")
    assert of({name: {"bytes": None, "path": "red.png"}}).content == {"image": HERE}
    parts = read_parts(of({name: {"bytes": BASE64, "path": None}}).content, "document", ImageSettings())
    assert parts[0].pixels[0, 0].tolist() == [200, 0, 0]


def test_several_pictures_are_one_document():
    assert of({"images": ["red.png", {"bytes": PNG, "path": None}]}).content == [{"image": HERE}, {"image": PNG}]


def test_openai_content_parts():
    parts = [
        {"type": "text", "text": "look:"},
        {"type": "image_url", "image_url": {"url": "https://x.org/a.png", "detail": "low"}},
        {"type": "input_text", "text": "and"},
        {"type": "input_image", "image_url": "red.png"},
    ]
    content = [{"text": "look:"}, {"image": "https://x.org/a.png"}, {"text": "and"}, {"image": HERE}]
    assert of({"content": parts}).content == content
    assert of(parts).content == content
    assert of({"role": "user", "content": parts[:1]}) == Document({"text": "look:"}, None, {"role": "user"})


def test_pairs_have_one_document():
    assert of({"anchor": "q", "positive": "d"}) == Document({"text": "d"}, None, {"anchor": "q"})
    assert of({"question": "q", "answer": "d", "id": 3}) == Document({"text": "d"}, "3", {"question": "q"})
    assert of({"query": "q", "positive": {"bytes": PNG, "path": None}}).content == {"image": PNG}
    assert of({"query": {"bytes": PNG, "path": None}, "positive": "d"}).content == {"text": "d"}


def test_named_fields():
    record = {"docno": 9, "meta": {"body": "words", "lang": "de"}, "scans": ["red.png"], "text": "other", "a.b": "dots"}
    document = of(record, text="meta.body", image="scans.0", id="docno")
    assert document.content == [{"text": "words"}, {"image": HERE}]
    assert document.id == "9"
    assert document.metadata == {"meta": {"lang": "de"}, "scans": ["red.png"], "text": "other", "a.b": "dots"}
    assert record["meta"] == {"body": "words", "lang": "de"}
    assert of(record, text="a.b").content == {"text": "dots"}
    assert of({"positive": "p", "negative": "n", "query": "q"}, text="negative").content == {"text": "n"}
    assert of({"text": "x", "docno": "d"}, id="docno") == Document({"text": "x"}, "d")


@pytest.mark.parametrize(
    ("record", "fields", "sentence"),
    [
        (7, {}, "the record is the number 7, but must be text, an object or a list of parts."),
        (None, {}, "the record is null, but must be text, an object or a list of parts."),
        ("  ", {}, "the record is empty."),
        ([], {}, "the record is empty."),
        ({}, {}, "the record has neither text nor a picture."),
        ({"_id": "a"}, {}, "the record has neither text nor a picture."),
        ({"_id": "a", "text": "", "image": None, "year": 3}, {}, "the record has neither text nor a picture."),
        ({"text": float("nan")}, {}, "the record has neither text nor a picture."),
        ({"image": {"bytes": None, "path": None}}, {}, "the record has neither text nor a picture."),
        ({"text": 7}, {}, '"text" is the number 7, but must be text.'),
        ({"text": ["a", "b"]}, {}, '"text" is a list, but must be text.'),
        ({"title": 7, "text": "a"}, {}, '"title" is the number 7, but must be text.'),
        ({"image": 7}, {}, '"image" is the number 7, but must be a picture: a path, an address, base64 or {"bytes", "path"}.'),
        (
            {"title": "t", "abstract": "a"},
            {},
            "the record has no field that is known to hold text or a picture, only title, abstract; "
            "name one with --text-field or --image-field (in Python: Fields).",
        ),
        (
            {"text": "a", "content": "b"},
            {},
            "the record has text under text and content; name one of them with --text-field or --image-field (in Python: Fields).",
        ),
        (
            {"one": {"bytes": PNG, "path": None}, "two": {"bytes": PNG, "path": None}},
            {},
            "the record has pictures under one and two; name one of them with --text-field or --image-field (in Python: Fields).",
        ),
        (
            {"query": "q", "positive": "p", "negative_1": "n"},
            {},
            "the record has several documents, positive, negative_1; name one with --text-field or --image-field (in Python: Fields).",
        ),
        (
            {"sentence1": "a", "sentence2": "b"},
            {},
            "the record has two sentences, and neither is the query; name the document with --text-field or --image-field "
            "(in Python: Fields).",
        ),
        ({"pdf": "a.pdf", "text": "x"}, {}, "the record has a PDF and text, but a PDF is a document by itself."),
        ({"text": "x", "id": True}, {}, 'the id under "id" is true, but must be text or a number.'),
        ({"text": "x", "id": [1]}, {}, 'the id under "id" is a list, but must be text or a number.'),
        ({"text": "x"}, {"id": "docno"}, 'the record has no id under "docno".'),
        ({"text": "x"}, {"text": "body"}, 'the record has nothing under "body", only text.'),
        ({"a": ""}, {"text": "a", "image": "b"}, 'the record has nothing under "a" or "b", only empty fields.'),
        ({"content": [{"type": "input_audio"}]}, {}, "a part of the record is of the type 'input_audio', but must be text, image_url or image."),
        ({"content": [{"type": "image_url"}]}, {}, 'a part of the type image_url has no address of a picture in "image_url".'),
        ({"content": [{"video": "x"}]}, {}, 'a part of the record has the keys [\'video\'], but must have "text", "image" or both, or a "type".'),
        ([["a"]], {}, "a part of the record is a list, but must be text or an object."),
        ({"blob": {"data": BASE64, "mime_type": "audio/wav"}}, {}, '"blob" is of the type audio/wav, but must be text, a picture or a PDF.'),
        ({"blob": {"data": "#", "mime_type": "text/plain"}}, {}, '"blob.data" is not valid base64: '),
        ({"blob": {"data": list(b"\xff"), "mime_type": "text/plain"}}, {}, 'the text in "blob" is not UTF-8 at byte 0.'),
    ],
)  # fmt: skip
def test_mistakes_get_a_sentence(record, fields, sentence):
    with pytest.raises(InputError) as error:
        of(record, **fields)
    assert str(error.value).startswith(sentence)
    assert str(error.value) == sentence or sentence.endswith(" ")


@pytest.mark.parametrize("fields", [{"text": ""}, {"id": 7}, {"text": "a", "image": "a"}])
def test_fields_that_cannot_be_used(fields):
    with pytest.raises(InputError, match="field"):
        Fields(**fields)


def test_a_picture_that_is_not_there_is_named_where_it_was_looked_for():
    document = of({"image": "gone.png"})
    with pytest.raises(InputError, match=str(DATA / "gone.png")):
        read_parts(document.content, "document", ImageSettings())


def test_ids_need_not_be_json():
    assert json.loads(json.dumps(of({"id": 2**70, "text": "x"}).id)) == str(2**70)
