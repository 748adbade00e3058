"""The text layer of PDFs: order, hyphens, what is hidden, and where each word stands."""

import math

import pytest

pytest.importorskip("pypdfium2")

from m0.inputs import read_pages

from .pdfs import DATA, page, pages, stream, words

LAYERS = "/Properties << /Off 6 0 R /On 7 0 R >>"
CATALOG = "/OCProperties << /OCGs [6 0 R 7 0 R] /D << /OFF [6 0 R] >> >>"
GROUPS = ["<< /Type /OCG /Name (Layer) >>", "<< /Type /OCG /Name (Layer) >>"]


def only(source, **options):
    (found,) = read_pages(source, **options)
    return found


def text(content, *args, **options):
    return only(page(content, *args, **options)).text()


def test_words_broken_at_line_ends_are_joined_and_words_printed_twice_stand_once():
    lines = [
        "more infor-",
        "mation on a well-",
        "known UTF-",
        "8 and the state-of-",
        "the-art Anglo-",
        "Saxon mid-",
        "field",
        "a mid-field",
    ]
    content = "".join(words(line, 20, 180 - 16 * place, 12) for place, line in enumerate(lines))
    for shift in (0, 0.3, 0.6):
        content += words("Bold title", 150 + shift, 180, 12)
    found = text(content).replace("\n", " ")
    assert found.count("Bold title") == 1
    for word in ("information on", "well-known", "UTF-8", "state-of-the-art", "Anglo-Saxon", "mid-field a mid-field"):
        assert word in found
    assert "\x02" not in found
    assert "\ufffe" not in found


def test_filled_in_fields_and_notes_are_text():
    found = only(DATA / "form.pdf")
    assert {"Name:", "4711-FIELD", "0815-NOTE"} <= {*found.text().split()}
    assert found.text() == found.text()  # the page was made ready once


def test_invisible_words_are_text_and_links_change_nothing():
    note = "/Annots [<< /Type /Annot /Subtype /Link /Rect [0 0 100 100] /Border [0 0 1] >>]"
    assert text(words("seen") + "3 Tr " + words("unseen", 20, 100), extra=note).split() == ["seen", "unseen"]


def test_layers_that_are_off_are_no_text():
    content = (
        words("plain", 20, 180, 12)
        + "/OC /Off BDC " + words("gone", 20, 150, 12) + "EMC "
        + "/OC /On BDC 1 g " + words("kept", 20, 120, 12) + "0 g EMC "
        + "/OC /On BDC /OC /Off BDC " + words("within", 20, 100, 12) + "EMC EMC "
        + "/Span << /MCID 0 >> BDC " + words("tagged", 20, 80, 12) + "EMC /F1 Do /F2 Do"
    )  # fmt: skip
    form = "/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Resources << /Font << /F 3 0 R >> >>"
    made = page(
        content,
        resources=f"{LAYERS} /XObject << /F1 8 0 R /F2 9 0 R >>",
        catalog=CATALOG,
        objects=[
            *GROUPS,
            stream(words("formgone", 20, 60, 12), f"{form} /OC 6 0 R"),
            stream(words("formkept", 20, 40, 12), f"{form} /OC 7 0 R"),
        ],
    )
    found = only(made)
    assert found.text().split() == ["plain", "kept", "tagged", "formkept"]
    assert [word.text for word in found.words()] == ["plain", "kept", "tagged", "formkept"]
    (drawn, same) = found.parts()[0].pixels, only(made).parts()[0].pixels
    assert (drawn == same).all()


def test_text_whose_letters_cannot_be_drawn_is_not_taken_for_hidden():
    """A font without the letters, on a layer that is on."""
    font = "<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H /DescendantFonts [9 0 R] >>"
    descendant = (
        "<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light "
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 2 >> /FontDescriptor 10 0 R >>"
    )
    descriptor = (
        "<< /Type /FontDescriptor /FontName /STSong-Light /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 /Ascent 800 "
        "/Descent -200 /CapHeight 700 /StemV 80 >>"
    )
    made = page(
        "/OC /On BDC BT /C 18 Tf 20 100 Td <6C346CF5> Tj ET EMC",
        resources=f"{LAYERS} /Font << /C 8 0 R >>",
        catalog=CATALOG,
        objects=[*GROUPS, font, descendant, descriptor],
    )
    assert only(made).text() == "水泵"


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_lines_come_in_reading_order_however_they_lie(angle, turn):
    cos, sin = round(math.cos(math.radians(angle))), round(math.sin(math.radians(angle)))
    lines = ["first line here", "second line here", "third line here"]
    content = ""
    for place, line in enumerate(lines):
        x, y = 150 + sin * 30 * place - cos * 60, 150 - cos * 30 * place - sin * 60
        content += f"BT /F 14 Tf {cos} {sin} {-sin} {cos} {x} {y} Tm ({line}) Tj ET\n"
    found = only(page(content, "/MediaBox [0 0 300 300] /CropBox [20 30 290 280]", f"/Rotate {turn}"))
    assert found.text().split("\n") == lines
    assert [word.text for word in found.words()] == " ".join(lines).split()


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_boxes_of_words_are_where_the_words_are_drawn(angle, turn):
    """Against PDFium's own conversion from the page to its picture."""
    import pypdfium2

    cos, sin = round(math.cos(math.radians(angle))), round(math.sin(math.radians(angle)))
    made = page(
        f"BT /F 14 Tf {cos} {sin} {-sin} {cos} 150 120 Tm (Hamburg) Tj ET",
        "/MediaBox [-40 -20 300 300] /CropBox [20 30 290 280]",
        f"/Rotate {turn}",
    )
    (word,) = only(made).words()
    document = pypdfium2.PdfDocument(made)
    first = document[0]
    bitmap = first.render(scale=4)
    left, bottom, right, top = word.pdf_box
    corners = [bitmap.get_posconv(first).to_bitmap(x, y) for x in (left, right) for y in (bottom, top)]
    expected = [min(x for x, _ in corners), min(y for _, y in corners), max(x for x, _ in corners), max(y for _, y in corners)]
    assert [edge * 4 for edge in word.box] == pytest.approx(expected, abs=1.01)
    grey = bitmap.to_numpy().min(axis=2)
    rows, columns = (grey < 128).any(1).nonzero()[0], (grey < 128).any(0).nonzero()[0]
    drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert [edge * 4 for edge in word.box] == pytest.approx(drawn, abs=3)


def test_words_outside_the_crop_box_are_left_out():
    content = words("inside", 60, 60) + words("outside", 5, 5)
    found = only(page(content, "/MediaBox [0 0 300 200] /CropBox [50 50 200 150]"))
    assert found.text() == "inside"
    assert [word.text for word in found.words()] == ["inside"]


def test_pieces_of_a_broken_word_have_boxes_of_their_own():
    first, second = only(page(words("infor-", 200, 150) + words("mation", 20, 130))).words()
    assert (first.text, second.text) == ("infor-", "mation")
    assert first.box[0] > second.box[2]


def test_letters_are_plain_ones():
    ligatures = "<< /Type /Encoding /BaseEncoding /WinAnsiEncoding /Differences [1 /fi /ffl /onehalf] >>"
    font = f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding {ligatures} >>"
    made = page("BT /L 18 Tf 20 100 Td (\x01nd a\x02uent) Tj ET", resources="/Font << /L 6 0 R >>", objects=[font])
    assert only(made).text() == "find affluent"


def test_letters_by_names_of_their_own_and_without_any():
    cmap = "beginbfchar\n<41> <E001>\n<42> <D835DEFC>\nendbfchar"
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>"
    head = "/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <FF> endcodespacerange 2 "
    made = page(
        "BT /P 18 Tf 20 100 Td (A) Tj ET",
        resources="/Font << /P 6 0 R >>",
        objects=[font, stream(head + cmap + " endcmap end")],
    )
    assert only(made).text() == "\ue001"
    assert only(made, as_="auto").as_ == "image"  # that is no text that could be read
    assert only(made.replace(b"(A)", b"(B)")).text() in ("α", "\U0001d6fc")  # NFKC of a mathematical alpha


def test_auto_takes_text_where_there_are_no_pictures():
    picture = stream(
        b"\0\xff\0\xff", "/Type /XObject /Subtype /Image /Width 2 /Height 2 /BitsPerComponent 8 /ColorSpace /DeviceGray"
    )
    form = stream("/I Do", "/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Resources << /XObject << /I 6 0 R >> >>")
    made = pages(
        [
            words("text"),
            words("text") + "q 50 0 0 50 0 0 cm /I Do Q",
            words("text") + "/O Do",
            "0 0 9 9 re f",
            "",
            words("   "),
        ],
        resources="/XObject << /I 16 0 R /O 17 0 R >>",
        objects=[picture, form.replace(b"/I 6 0 R", b"/I 16 0 R")],
    )
    found = list(read_pages(made, as_="auto"))
    assert [one.as_ for one in found] == ["text", "image", "image", "image", "image", "image"]
    assert found[0].parts() == ["text"]


def test_a_filled_in_field_is_text_for_auto():
    assert only(DATA / "form.pdf", as_="auto").as_ == "text"
    assert only(DATA / "scan_ocr_ccitt_rotated.pdf", as_="auto").as_ == "image"
