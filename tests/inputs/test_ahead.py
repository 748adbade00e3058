"""Documents opened ahead of the model: which passages they have, in order, and what becomes of those that cannot be read."""

import io
import itertools
import threading

import pytest
from PIL import Image

from m0 import Document
from m0.errors import InputError
from m0.inputs import read_pages
from m0.inputs.ahead import READ_AHEAD, encode_pairs, read_ahead, units_of
from m0.inputs.images import ImageSettings, Picture
from m0.inputs.passages import PAGES, Passages, Span
from m0.inputs.prompt import Limits
from tests.conftest import noise

from .pdfs import pages, words

SETTINGS = ImageSettings(max_pixels=28 * 28 * 4)
CHAPTERS = ["the pump must be primed before its first use", "the seal is worn", "order the parts by number"]


def tiff(count, broken=None):
    file = io.BytesIO()
    first, *others = [noise(60, 56, seed) for seed in range(count)]
    first.save(file, "TIFF", save_all=True, append_images=others, compression="tiff_lzw")
    data = file.getvalue()
    if broken is None:
        return data
    with Image.open(io.BytesIO(data)) as image:
        image.seek(broken - 1)
        offset, length = image.tag_v2[273][0], image.tag_v2[279][0]
    return data[:offset] + b"\xff" * length + data[offset + length :]


def manual():
    pytest.importorskip("pypdfium2")
    return pages([words(text, 10, 150, 12) for text in CHAPTERS])


def opened(documents, how=PAGES, tokenizer=None):
    return list(read_ahead(documents, SETTINGS, how, tokenizer))


def test_what_is_no_file_of_pages_is_one_unit_without_a_passage():
    found = opened(["words", {"image": noise(56, 56)}, ["both", noise(56, 56)], Document({"text": "more"}, id="x")])
    assert [unit.place for unit in found] == [0, 1, 2, 3]
    assert all(unit.passage is None and unit.is_last for unit in found)
    assert [len(unit.parts) for unit in found] == [1, 1, 2, 1]
    assert found[3].document.id == "x"


def test_the_pages_of_a_file_in_order():
    data = tiff(5)
    found = opened(["before", data, Document({"image": io.BytesIO(data)}, id="x"), "after"])
    assert [unit.place for unit in found] == [0, *[1] * 5, *[2] * 5, 3]
    assert [unit.is_last for unit in found] == [True, *[False] * 4, True, *[False] * 4, True, True]
    assert [unit.passage.number for unit in found[1:6]] == [1, 2, 3, 4, 5]
    assert {unit.passage.count for unit in found[1:11]} == {5}
    assert [unit.passage.page.number for unit in found[1:6]] == [1, 2, 3, 4, 5]
    one_by_one = [page.parts()[0].pixels.tobytes() for page in read_pages(data, settings=SETTINGS)]
    for start in (1, 6):
        assert [unit.parts[0].pixels.tobytes() for unit in found[start : start + 5]] == one_by_one
    assert len(set(one_by_one)) == 5


def test_pages_one_by_one_are_documents_of_one_passage():
    found = opened([*read_pages(tiff(3), settings=SETTINGS), {"pdf": tiff(3), "pages": "2"}])
    assert [(unit.passage.number, unit.passage.count, unit.passage.page.number) for unit in found] == [
        (1, 1, 1),
        (1, 1, 2),
        (1, 1, 3),
        (1, 1, 2),
    ]


@pytest.mark.parametrize("as_", ["image", "text", "both"])
def test_pages_and_pieces_of_their_texts(as_, nano_prompt):
    document = {"pdf": manual(), "as": as_}
    how = Passages(tokens=5, overlap=0)
    found = opened([document], how, nano_prompt.tokenizer)
    assert [unit.passage.number for unit in found] == list(range(1, len(found) + 1))
    assert {unit.passage.count for unit in found} == {len(found)}
    if as_ == "image":
        assert len(found) == 3
        assert all(not unit.passage.spans for unit in found)
        return
    assert len(found) >= 6
    for number, text in enumerate(CHAPTERS, 1):
        mine = [unit for unit in found if unit.passage.page.number == number]
        assert [len([part for part in unit.parts if isinstance(part, Picture)]) for unit in mine] == [
            int(as_ == "both"),
            *[0] * (len(mine) - 1),
        ]
        for unit in mine:
            (span,) = unit.passage.spans
            assert unit.parts[-1] == unit.passage.source.text()[span.start : span.end]
        assert "".join(unit.parts[-1] for unit in mine).strip() == text


def test_texts_that_fit_are_the_pages_as_they_are(nano_prompt):
    for as_ in ("text", "both"):
        document = {"pdf": manual(), "as": as_}
        whole, cut = opened([document]), opened([document], Passages(tokens=64, overlap=0), nano_prompt.tokenizer)
        for one, other in zip(whole, cut, strict=True):
            assert [getattr(part, "digest", part) for part in one.parts] == [
                getattr(part, "digest", part) for part in other.parts
            ]
            assert other.passage.spans == (Span(0, 0, len(other.parts[-1])),)


def test_a_page_without_text(nano_prompt):
    """Read as text it is left out, which is said once; as both it is its picture; cut or not."""
    pytest.importorskip("pypdfium2")
    data = pages([words("first"), "", words("third"), ""])
    for how in (Passages(tokens=None), Passages(tokens=64)):
        with pytest.warns(UserWarning, match=r"bytes: pages 2, 4 have no text and are left out\.$") as said:
            found = opened([{"pdf": data, "as": "text"}], how, nano_prompt.tokenizer)
        assert [warning.filename for warning in said] == [__file__]
        assert [unit.passage.page.number for unit in found] == [1, 3]
        assert [unit.is_last for unit in found] == [False, True]
        assert [len(unit.parts) for unit in opened([{"pdf": data, "as": "both"}], how, nano_prompt.tokenizer)] == [2, 1, 2, 1]


def test_no_page_with_text(nano_prompt):
    pytest.importorskip("pypdfium2")
    for how in (Passages(tokens=None), Passages(tokens=64)):
        (found,) = opened([{"pdf": pages(["", ""]), "as": "text"}], how, nano_prompt.tokenizer)
        assert str(found.parts).endswith("has no text on any page; read it as pictures.")
        (found,) = opened([{"pdf": pages([words("first"), ""]), "as": "text", "pages": "2"}], how, nano_prompt.tokenizer)
        assert str(found.parts).endswith("#2 has no text; read it as a picture.")


def test_what_is_to_be_known_of_a_file_is_said_once_and_by_this_thread(nano_prompt, monkeypatch):
    pytest.importorskip("pypdfium2")
    from m0.inputs.pages.pdf import PdfFile

    ask = PdfFile._ask

    def with_note(self, what, *args, **keywords):
        answer = ask(self, what, *args, **keywords)
        return (answer[0], ["is a form."], answer[2]) if what == "count" else answer

    monkeypatch.setattr(PdfFile, "_ask", with_note)
    data = pages([words("first"), words("second"), words("third")])
    for document in ({"pdf": data}, {"pdf": data, "as": "text"}, {"pdf": data, "pages": "2"}):
        for how in (PAGES, Passages(tokens=1, overlap=0)):
            with pytest.warns(UserWarning, match=r"bytes is a form\.$") as said:
                opened([document], how, nano_prompt.tokenizer)
            assert [warning.filename for warning in said] == [__file__]
    with pytest.warns(UserWarning, match=r"bytes is a form\.$") as said:
        opened(list(read_pages(data)), PAGES, nano_prompt.tokenizer)
    assert len(said) == 1


def test_what_is_to_be_known_of_a_page_is_said_once_and_by_this_thread(nano_prompt):
    pytest.importorskip("pypdfium2")
    white = [f"1 1 1 rg {words(text)}" for text in ("one word after another", "more")]
    document = {"pdf": pages(white), "as": "both"}
    for how, given in ((PAGES, document), (Passages(tokens=2), document), (PAGES, {**document, "pages": "1"})):
        with pytest.warns(UserWarning, match="nothing dark is drawn of it") as said:
            opened([given], how, nano_prompt.tokenizer)
        assert [warning.filename for warning in said] == [__file__] * (1 if "pages" in given else 2)


def test_only_the_first_passage_is_read(nano_prompt):
    how = Passages(tokens=8, overlap=0, score="first")
    found = opened([tiff(3, broken=3), "word " * 50], how, nano_prompt.tokenizer)
    assert [(unit.place, unit.passage.number, unit.is_last) for unit in found] == [(0, 1, True), (1, 1, True)]
    assert found[0].passage.count == 3
    assert found[1].passage.count > 5


def test_a_page_that_cannot_be_read_ends_its_document_and_no_other():
    found = opened([tiff(2), tiff(5, broken=3), "after"])
    assert [(unit.place, unit.is_last) for unit in found] == [
        (0, False),
        (0, True),
        (1, False),
        (1, False),
        (1, True),
        (2, True),
    ]
    assert isinstance(found[4].parts, InputError)
    assert "#3" in str(found[4].parts)
    assert found[5].parts == ["after"]


def test_an_iterator_is_asked_for_no_more_than_is_read_ahead():
    given = itertools.count()
    found = read_ahead((f"text {number}" for number in given), SETTINGS)
    for _, unit in zip(range(10), found, strict=False):
        assert unit.parts == [f"text {unit.place}"]
    found.close()
    assert next(given) <= READ_AHEAD + 12


def test_what_an_iterator_raises_is_raised():
    def documents():
        yield "one"
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        opened(documents())


def test_what_the_user_has_opened_is_read_by_this_thread():
    seen = set()

    class File(io.BytesIO):
        def read(self, size=-1):
            seen.add(threading.get_ident())
            return super().read(size)

    data = tiff(3)
    opened([{"image": File(data)}, ["text", File(data)], Document({"pdf": File(data)})])
    assert seen == {threading.get_ident()}


def test_pairs_have_a_prompt_for_each_passage(nano_prompt):
    long = "the network must be configured " * 20
    how = Passages(tokens=40, overlap=8)
    found = encode_pairs(nano_prompt, [("q", "short"), ("q", long), (tiff(2), tiff(3))], Limits(), SETTINGS, how=how)
    count = len(units_of(long, SETTINGS, how, nano_prompt.tokenizer))
    assert found.sizes == [1, count, 3]
    assert len(found.encodings) == sum(found.sizes)
    logits = [float(number) for number in range(len(found.encodings))]
    assert found.combine(logits) == [0.0, float(count), float(count + 3)]
    plain = encode_pairs(nano_prompt, [("q", "short"), ("q", long)], Limits(), SETTINGS)
    assert plain.combine([5.0, 7.0]) == [5.0, 7.0]


def test_a_pair_that_cannot_be_used_is_named(nano_prompt):
    with pytest.raises(InputError, match=r"^pair 11: .*#2"):
        encode_pairs(nano_prompt, [("q", "x"), ("q", tiff(3, broken=2))], Limits(), SETTINGS, first=10)
    with pytest.raises(InputError, match=r"^pair 0: the query is empty"):
        encode_pairs(nano_prompt, [("", tiff(3))], Limits(), SETTINGS)


def test_pages_given_one_by_one_are_read_by_other_threads(monkeypatch):
    """A page has a method `read`, as an open file has; it is none, and need not wait for this thread."""
    pytest.importorskip("pypdfium2")
    from m0.inputs.pages import Page

    read, threads = Page.read, set()

    def watched(self, settings=None):
        threads.add(threading.current_thread())
        return read(self, settings)

    monkeypatch.setattr(Page, "read", watched)
    assert len(opened([*read_pages(manual()), Document(next(read_pages(manual())))])) == 4
    assert threads
    assert threading.current_thread() not in threads
