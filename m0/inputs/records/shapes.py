"""One record made a document: the shapes that other programs write, recognised by their fields' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.inputs.document import Document
from m0.inputs.records.fields import BY_SHAPE, Fields, find, is_absent, kind_of, list_names, without
from m0.inputs.records.parts import (
    blob_part,
    is_picture_struct,
    part_of,
    pdf_part,
    picture_part,
    picture_parts,
    resolve,
    text_part,
)
from m0.inputs.texts import kind_by_name

TEXT_FIELDS = ("text", "page_content", "content", "contents")
"""BEIR's and m0's own; LangChain's; Haystack's and OpenAI's; Pyserini's."""
PICTURE_FIELDS = ("image", "images", "blob")
CONTENT_FIELDS = {*TEXT_FIELDS, *PICTURE_FIELDS, "title", "pdf"}
ID_FIELDS = ("_id", "id", "corpus-id", "corpus_id", "docid", "doc_id")
NO_ID = bool | Mapping | list | tuple | bytes
QUERY_FIELDS = ("anchor", "query", "question")
PAIR_FIELDS = ("positive", "document", "passage", "answer", "negative")
"""The other side of sentence-transformers' pairs and triples."""
NAME_ONE = "with --text-field or --image-field (in Python: Fields)"

Found = tuple[list[dict[str, Any]], set[str]]
"""Parts of a document, and the fields of the record that they come from."""


def document_of(record: Any, fields: Fields = BY_SHAPE, folder: Path = Path()) -> Document:
    """One record of a file as a document. Nothing is opened but what names itself as text within the record.

    Args:
        record: text; a list of parts; or an object of m0 ({"text"}, {"image"}, {"pdf", "pages"}), BEIR ({"_id", "title", "text", "image"}),
            LangChain, Haystack, Pyserini, OpenAI ({"content": [parts]}), Hugging Face's datasets ({"image": {"bytes", "path"}}) or
            sentence-transformers (a query and one document).
        fields: which fields hold what, where the record has none of these shapes.
        folder: where relative paths of pictures start.

    Title and text are joined by a line end, as BEIR's are for `m0 evaluate`. What is not used goes into the metadata as it is.

    Raises InputError, one sentence, for a record with neither text nor picture, and for one that may be read in two ways.
    """
    if not isinstance(record, Mapping):
        return Document(_checked(_of_no_object(record, folder)))
    if fields.text is not None or fields.image is not None:
        parts, used = _named(record, fields, folder)
    else:
        record = _unwrapped(record)
        parts, used = _known(record, folder)
    identity, key = _id_of(record, fields)
    return Document(_checked(parts), identity, _metadata(record, {*used, key} if key is not None else used))


def is_known(names: Iterable[str]) -> bool:
    """Whether records of these fields may be of a known shape."""
    given = set(names)
    return bool(given & CONTENT_FIELDS) or bool(given & {*QUERY_FIELDS} and given & {*PAIR_FIELDS})


def _of_no_object(record: Any, folder: Path) -> list[dict[str, Any]]:
    if isinstance(record, str):
        return [{"text": record}]
    if isinstance(record, list | tuple):
        return [part_of(part, folder) for part in record]
    raise InputError(f"the record is {kind_of(record)}, but must be text, an object or a list of parts.")


def _checked(parts: list[dict[str, Any]]) -> Any:
    """A document's content: the part itself where there is one only. Raises InputError where there is nothing in it."""
    if all("text" in part and len(part) == 1 and is_absent(part["text"]) for part in parts):
        raise InputError("the record is empty.")
    return parts[0] if len(parts) == 1 else parts


def _unwrapped(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A LangChain document that `dumps` has written stands within an object of its own."""
    inner = record.get("kwargs")
    return inner if "lc" in record and isinstance(inner, Mapping) and "page_content" in inner else record


def _named(record: Mapping[str, Any], fields: Fields, folder: Path) -> Found:
    parts = []
    if fields.text is not None and not is_absent(text := find(record, fields.text)):
        parts.append(text_part(text, fields.text))
    if fields.image is not None and not is_absent(image := find(record, fields.image)):
        parts += picture_parts(image, fields.image, folder)
    asked = [name for name in (fields.text, fields.image) if name is not None]
    if not parts:
        lacking = " or ".join(f'"{name}"' for name in asked)
        raise InputError(f"the record has nothing under {lacking}, only {list_names(_filled(record)) or 'empty fields'}.")
    return parts, set(asked)


def _known(record: Mapping[str, Any], folder: Path) -> Found:
    filled = _filled(record)
    text = _only(filled, TEXT_FIELDS, "text")
    picture = _only(filled, PICTURE_FIELDS, "pictures")
    if picture is None:
        structs = [name for name in filled if is_picture_struct(record[name])]
        picture = _only(structs, [name for name in structs if name not in QUERY_FIELDS and name not in PAIR_FIELDS], "pictures")
    used = {name for name in record if name in CONTENT_FIELDS and name not in filled}
    parts: list[dict[str, Any]] = []
    if "title" in filled and (text == "text" or (text is None and ("text" in record or "_id" in record))):
        words = f"{record['title']}\n{record[text]}" if text else record["title"]
        for name in ("title", text):
            if name is not None:
                text_part(record[name], name)
        parts.append({"text": words.strip()})
        used |= {"title"}
    elif text is not None:
        parts += _texts(record[text], text, folder)
    if picture is not None:
        shown = [blob_part(record[picture], folder)] if picture == "blob" else picture_parts(record[picture], picture, folder)
        # In m0's own parts the order counts.
        first = text is not None and set(record) <= {"text", "image"} and next(iter(record)) == "image"
        parts = [*shown, *parts] if first else [*parts, *shown]
    used |= {name for name in (text, picture) if name is not None}
    if "pdf" in filled:
        if parts:
            raise InputError(
                f"the record has a PDF and {list_names(sorted(used - {'pdf'}))}, but a PDF is a document by itself."
            )
        return [pdf_part(record, folder)], {*used, "pdf", "pages"}
    if not parts:
        parts, some = _pair(record, filled, folder) or _file_path(record, folder) or ([], set())
        used |= some
    if not parts:
        raise InputError(_nothing(record, filled))
    return parts, used


def _filled(record: Mapping[str, Any]) -> list[str]:
    return [name for name in record if not is_absent(record[name])]


def _only(filled: list[str], names: Iterable[str], what: str) -> str | None:
    found = [name for name in names if name in filled]
    if len(found) > 1:
        raise InputError(f"the record has {what} under {' and '.join(found)}; name one of them {NAME_ONE}.")
    return found[0] if found else None


def _texts(value: Any, name: str, folder: Path) -> list[dict[str, Any]]:
    if name == "content" and isinstance(value, list | tuple):
        return [part_of(part, folder) for part in value]
    if name == "page_content" and isinstance(value, str) and value[:11].lower() == "data:image/":
        return [{"image": resolve(value, folder)}]  # LangChain's documents have no other place for a picture
    return [text_part(value, name)]


def _pair(record: Mapping[str, Any], filled: list[str], folder: Path) -> Found | None:
    """The document of a sentence-transformers pair: a query and what answers it."""
    if {"sentence1", "sentence2"} <= {*filled}:
        raise InputError(f"the record has two sentences, and neither is the query; name the document {NAME_ONE}.")
    documents = [name for name in filled if name in PAIR_FIELDS or name.startswith("negative")]
    if not documents or not any(name in filled for name in QUERY_FIELDS):
        return None
    if len(documents) > 1:
        raise InputError(f"the record has several documents, {list_names(documents)}; name one {NAME_ONE}.")
    value, name = record[documents[0]], documents[0]
    if isinstance(value, Mapping):
        part = picture_part(value, name, folder) if is_picture_struct(value) else part_of(value, folder)
    else:
        part = picture_part(value, name, folder) if isinstance(value, bytes) else text_part(value, name)
    return [part], {name}


def _file_path(record: Mapping[str, Any], folder: Path) -> Found | None:
    """A Haystack document without content, whose metadata names a picture, or a PDF and a page of it."""
    if "content" not in record:
        return None
    meta = record["meta"] if isinstance(record.get("meta"), Mapping) else record
    path, page = meta.get("file_path"), meta.get("page_number")
    if not isinstance(path, str):
        return None
    if path.lower().endswith(".pdf"):
        return [pdf_part({"pdf": path} if page is None else {"pdf": path, "pages": str(page)}, folder)], set()
    return ([picture_part(path, "file_path", folder)], set()) if kind_by_name(path) == "picture" else None


def _nothing(record: Mapping[str, Any], filled: list[str]) -> str:
    others = [name for name in filled if name not in ID_FIELDS]
    if not others or CONTENT_FIELDS & {*record} - {"title"}:
        return "the record has neither text nor a picture."
    return f"the record has no field that is known to hold text or a picture, only {list_names(others)}; name one {NAME_ONE}."


def _id_of(record: Mapping[str, Any], fields: Fields) -> tuple[str | None, str | None]:
    """The id as text, and the field that it stands in."""
    if fields.id is not None:
        key: str | None = fields.id
        value = find(record, fields.id)
        if is_absent(value):
            raise InputError(f'the record has no id under "{key}".')
    else:
        key = next((name for name in ID_FIELDS if name in record), None)
        value = record[key] if key is not None else None
        if isinstance(value, dict) and set(value) == {"$oid"}:  # as MongoDB exports its own
            value = value["$oid"]
        if key is None or is_absent(value):
            return None, key
    if not isinstance(value, str) and isinstance(value, NO_ID):
        raise InputError(f'the id under "{key}" is {kind_of(value)}, but must be text or a number.')
    return str(value), key


def _metadata(record: Mapping[str, Any], used: set[str]) -> Mapping[str, Any] | None:
    """What was not used. LangChain's and Haystack's own metadata stands by itself where there is nothing else."""
    rest = without(record, used)
    if "page_content" in used:
        own = "metadata"
        if rest.get("type") == "Document":
            del rest["type"]
    else:
        own = "meta" if "content" in record or "blob" in record else ""
    if isinstance(inner := rest.get(own), Mapping) and all(rest[name] is None for name in rest if name != own):
        return inner or None
    return rest or None
