"""A document with an id and metadata."""

import pytest

import m0
from m0.errors import InputError
from m0.inputs.document import Document


def test_is_exported():
    assert m0.Document is Document


def test_carries_what_it_is_given():
    metadata = {"page": 3, "tags": ["a"]}
    document = Document({"text": "x"}, "7", metadata)
    assert (document.content, document.id, document.metadata) == ({"text": "x"}, "7", metadata)
    assert document.metadata is metadata
    assert Document("x") == Document("x", None, None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("x", 7), "the id of a Document is int, but must be text."),
        (("x", "7", ["a"]), "the metadata of a Document is list, but must be a mapping."),
        ((Document("x"),), "the content of a Document is a Document, but must be text, a picture or a list of parts."),
    ],
)
def test_mistakes_get_a_sentence(arguments, sentence):
    with pytest.raises(InputError) as error:
        Document(*arguments)
    assert str(error.value) == sentence
