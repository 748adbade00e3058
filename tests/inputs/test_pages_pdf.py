"""PDFs to pictures: what must be seen, how large, and what is refused."""

import io
import math
import pickle
import struct

import numpy as np
import pytest

pytest.importorskip("pypdfium2")

from PIL import Image

from m0.errors import ImageError, InputError, MissingExtraError
from m0.inputs import read_pages
from m0.inputs.images import ImageSettings, prepare_picture, resize
from m0.inputs.pages import PageLimits, has_pages
from m0.inputs.pages import pdf as pdf_module
from m0.inputs.pages.pdf import fitting_dpi, pixels_at

from .pdfs import DATA, page, pages, pdf, stream, words

ENLARGED = ImageSettings(min_pixels=400 * 400)


def only(source, **options):
    (found,) = read_pages(source, **options)
    return found


def pixels(found, settings=None):
    """Of a page's picture, with pixels of a box in points."""
    picture = found.parts(settings)[0]
    height, width, _ = picture.pixels.shape

    def inside(box):
        left, top, right, bottom = box
        x, y = width / found.info.size[0], height / found.info.size[1]
        return picture.pixels[
            max(0, math.floor(top * y)) : math.ceil(bottom * y), max(0, math.floor(left * x)) : math.ceil(right * x)
        ]

    return picture, inside


def ink(found, *texts):
    """Whether each word stands in the picture where its box says, and nothing stands beside them."""
    picture, inside = pixels(found, ENLARGED)
    boxes = {word.text: word.box for word in found.words()}
    assert {*texts} == {*boxes}
    rest = picture.pixels.copy()
    height, width, _ = rest.shape
    for box in boxes.values():
        assert inside(box).min() < 128
        x, y = width / found.info.size[0], height / found.info.size[1]
        left, top, right, bottom = (edge * scale for edge, scale in zip(box, (x, y, x, y), strict=True))
        rest[max(0, int(top) - 2) : int(bottom) + 3, max(0, int(left) - 2) : int(right) + 3] = 255
    return rest.min() > 128


def test_filled_in_fields_and_notes_are_drawn():
    assert ink(only(DATA / "form.pdf"), "Name:", "4711-FIELD", "0815-NOTE")


def test_layers_that_are_off_and_what_is_cropped_away_are_not_seen():
    found = only(hidden_layer_and_crop())
    assert found.info.size == (150, 100)
    assert ink(found, "inside")


def hidden_layer_and_crop():
    content = words("inside", 60, 60) + words("outside", 5, 5) + "/OC /L BDC " + words("hidden", 60, 100) + "EMC"
    return page(
        content,
        "/MediaBox [0 0 300 200] /CropBox [50 50 200 150]",
        resources="/Properties << /L 6 0 R >>",
        catalog="/OCProperties << /OCGs [6 0 R] /D << /OFF [6 0 R] >> >>",
        objects=["<< /Type /OCG /Name (Notes) >>"],
    )


def test_a_turned_page_with_a_negative_origin():
    found = only(page(words("turned", -100, -20), "/MediaBox [-150 -100 150 100]", "/Rotate 90"))
    assert found.info.size == (200, 300)
    (word,) = found.words()
    assert word.box[3] - word.box[1] > word.box[2] - word.box[0]  # read from top to bottom
    assert ink(found, "turned")
    _, inside = pixels(found, ENLARGED)
    first = inside((word.box[0], word.box[1], word.box[2], word.box[1] + 6))  # the t is drawn thinner than the d at the end
    assert 0 < (first < 128).mean() < (inside((word.box[0], word.box[3] - 6, word.box[2], word.box[3])) < 128).mean()


def test_user_unit():
    found = only(DATA / "userunit.pdf")
    assert found.info.size == (600, 400)
    assert found.parts()[0].original_size == (1667, 1112)
    assert ink(found, "twice", "as", "large")
    assert found.words()[0].pdf_box[2] == pytest.approx(found.words()[0].box[2] / 2)


@pytest.mark.parametrize(
    ("value", "size"), [("1", 300), ("1.0", 300), ("2.5", 750), (".5", 150), ("6 0 R", 900), ("0", 300), ("/X", 300)]
)
def test_values_of_user_unit(value, size):
    assert only(page(words("a"), extra=f"/UserUnit {value}", objects=["3"])).info.size[0] == size


def test_user_unit_in_an_object_stream():
    """Where a page's dictionary is packed, as most programs do."""
    import zlib

    inner = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /UserUnit 2 >>",
    ]
    head, body = "", ""
    for number, content in enumerate(inner, 1):
        head += f"{number} {len(body)} "
        body += content + " "
    packed = zlib.compress((head + body).encode())
    out = b"%PDF-1.7\n"
    first = len(out)
    out += b"4 0 obj\n" + stream(packed, f"/Type /ObjStm /N 3 /First {len(head)} /Filter /FlateDecode") + b"\nendobj\n"
    second = len(out)
    rows = [(0, 0, 65535), (2, 4, 0), (2, 4, 1), (2, 4, 2), (1, first, 0), (1, second, 0)]
    table = b"".join(struct.pack(">BHH", *row) for row in rows)
    out += b"5 0 obj\n" + stream(table, "/Type /XRef /W [1 2 2] /Size 6 /Root 1 0 R") + b"\nendobj\n"
    assert only(out + b"startxref\n%d\n%%%%EOF\n" % second).info.size == (600, 400)


def test_a_scan_is_upright_black_on_white_and_drawn_once():
    found = only(DATA / "scan_ocr_ccitt_rotated.pdf")
    assert found.info.size == (200, 300)
    assert found.text().split() == ["scanned", "words", "second", "line"]
    import pypdfium2

    document = pypdfium2.PdfDocument(DATA / "scan_ocr_ccitt_rotated.pdf")
    (embedded,) = document[0].get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])
    upright = embedded.get_bitmap().to_pil().convert("L").transpose(Image.Transpose.ROTATE_270)
    picture = found.parts()[0]
    expected = prepare_picture(resize(upright, picture.original_size))
    assert picture.pixels.shape == expected.pixels.shape
    assert picture.pixels.mean() > 200
    assert np.abs(picture.pixels.astype(int) - expected.pixels).mean() < 1


def test_paper_is_white_and_colours_are_in_their_order():
    picture, inside = pixels(only(page("1 0 0 rg 0 0 100 200 re f 0 0 1 rg 100 0 100 200 re f")))
    for left, colour in ((10, (255, 0, 0)), (110, (0, 0, 255)), (210, (255, 255, 255))):
        assert (inside((left, 10, left + 80, 190)) == colour).all()
    assert picture.original_size == (834, 556)


def test_an_open_graphics_state_with_transparency_still_lies_on_white():
    data = page(
        "/G gs 0 g 0 0 100 200 re f",
        resources="/ExtGState << /G << /ca 0.5 >> >>",
        extra="/Group << /S /Transparency /CS /DeviceRGB >>",
    )
    _, inside = pixels(only(data))
    assert (np.abs(inside((10, 10, 90, 190)).astype(int) - 128) <= 1).all()
    assert (inside((110, 10, 290, 190)) == 255).all()


@pytest.mark.parametrize(
    ("box", "extra", "size"),
    [
        ("/MediaBox [0 0 300 200]", "/Rotate -90", (200, 300)),
        ("/MediaBox [0 0 300 200]", "/Rotate 450", (200, 300)),
        ("/MediaBox [0 0 300 200]", "/Rotate 45", (300, 200)),
        ("/MediaBox [300 200 0 0]", "", (300, 200)),
        ("/MediaBox [-10 -10 290 190]", "", (300, 200)),
        ("/MediaBox [0 0 0 0]", "", (612, 792)),
        ("", "", (612, 792)),
        ("/MediaBox [0 0 300 200] /CropBox [100 50 900 900]", "", (200, 150)),
        ("/MediaBox [0 0 300 200] /CropBox [50 50 200 150]", "/Rotate 270", (100, 150)),
    ],
)
def test_boxes_and_turns(box, extra, size):
    found = only(page(words("Hamburg", 110, 100), box, extra))
    assert found.info.size == size
    assert ink(found, "Hamburg")


def test_cyan_is_as_printed():
    _, inside = pixels(only(page("1 0 0 0 k 0 0 300 200 re f")))
    assert (inside((10, 10, 290, 190)) == (0, 174, 239)).all()


def test_an_appearance_of_16_bits_and_a_spot_colour():
    samples = struct.pack(">4H", 0, 0x8000, 0xFFFF, 0x4000)
    function = "<< /FunctionType 2 /Domain [0 1] /C0 [0 0 0 0] /C1 [0 1 1 0] /N 1 >>"
    data = page(
        "q 300 0 0 100 0 100 cm /I Do Q /S cs 1 scn 0 0 300 80 re f",
        resources=f"/XObject << /I 6 0 R >> /ColorSpace << /S [/Separation /Rot /DeviceCMYK {function}] >>",
        objects=[
            stream(samples, "/Type /XObject /Subtype /Image /Width 4 /Height 1 /BitsPerComponent 16 /ColorSpace /DeviceGray")
        ],
    )
    _, inside = pixels(only(data))
    for left, level in ((20, 0), (282, 64)):  # between the samples PDFium may blend
        assert abs(inside((left, 20, left + 10, 60)).mean() - level) < 2
    red = inside((20, 140, 280, 190)).reshape(-1, 3).mean(0)
    assert red[0] > 220
    assert red[1:].max() < 60


# --- what is known of a page --------------------------------------------------------------------------------------------


def test_what_is_known_of_a_page(tmp_path):
    labels = "/PageLabels << /Nums [0 << /S /r >> 2 << /S /D >>] >>"
    (tmp_path / "report.pdf").write_bytes(pages([words("a")] * 4, "/MediaBox [0 0 595.276 841.89]", catalog=labels))
    found = list(read_pages(tmp_path / "report.pdf", "3,1"))
    assert [(one.info.number, one.info.label, one.info.pages) for one in found] == [(3, "1", 4), (1, "i", 4)]
    info = found[0].info
    assert info.file == str(tmp_path / "report.pdf")
    assert found[0].name == f"{tmp_path / 'report.pdf'}#3"
    assert info.size == (595.276, 841.89)
    assert info.dpi == 200
    assert info.scale == pytest.approx(200 / 72)
    assert found[0].parts()[0].original_size == (1654, 2339)
    assert info.renderer.startswith("pypdfium2 ")
    assert ", PDFium " in info.renderer
    assert only(page(words("a"))).info.label is None
    assert only(page(words("a")), as_="text").info.dpi is None


def test_a_page_is_light_and_can_be_pickled(tmp_path):
    (tmp_path / "report.pdf").write_bytes(pages([words("a"), words("b")]))
    second = list(read_pages(tmp_path / "report.pdf"))[1]
    packed = pickle.dumps(second)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    assert again.info == second.info
    assert np.array_equal(again.parts()[0].pixels, second.parts()[0].pixels)


def test_a_box_of_the_picture_in_the_coordinates_of_the_pdf():
    for extra in ("", "/Rotate 90", "/Rotate 180", "/Rotate 270", "/Rotate 90 /UserUnit 3"):
        found = only(page(words("Hamburg", 110, 100), "/MediaBox [-20 -30 300 200] /CropBox [50 50 250 150]", extra))
        (word,) = found.words()
        assert found.pdf_box(word.box) == pytest.approx(word.pdf_box, abs=1e-3)
        assert word.pdf_box[0] == pytest.approx(111, abs=1)


def test_the_same_by_path_bytes_and_open_file(tmp_path):
    (tmp_path / "a.pdf").write_bytes(page(words("Hamburg")))
    data = (tmp_path / "a.pdf").read_bytes()
    with open(tmp_path / "a.pdf", "rb") as file:
        several = [
            only(source).parts()[0].pixels
            for source in (tmp_path / "a.pdf", str(tmp_path / "a.pdf"), data, bytearray(data), io.BytesIO(data), file)
        ]
    assert all(np.array_equal(several[0], one) for one in several)


def test_pages_are_read_as_text_as_picture_and_as_both():
    data = page(words("Hamburg"))
    assert only(data, as_="text").parts() == ["Hamburg"]
    picture, text = only(data, as_="both").parts()
    assert text == "Hamburg"
    assert np.array_equal(picture.pixels, only(data).parts()[0].pixels)
    empty = page("0 0 100 100 re f")
    assert len(only(empty, as_="both").parts()) == 1
    with pytest.raises(InputError, match=r"#1 has no text; read it as a picture\.$"):
        only(empty, as_="text").parts()


# --- too large, too small, white ----------------------------------------------------------------------------------------


def test_a_page_above_the_limit_is_drawn_at_fewer_dpi_and_it_is_said():
    small = ImageSettings(max_image_pixels=300_000)
    found = only(page(words("Hamburg")), settings=small)
    dpi = found.info.dpi
    assert 100 <= dpi < 200
    assert math.prod(pixels_at((300, 200), int(dpi))) <= 300_000 < math.prod(pixels_at((300, 200), int(dpi) + 1))
    with pytest.warns(
        UserWarning, match=rf"#1 is drawn at {dpi:.0f} dpi in place of 200, for it measures 4.167 x 2.778 inches"
    ):
        picture = found.parts()[0]
    assert picture.original_size == pixels_at((300, 200), int(dpi))
    assert len(found.notes) == 1
    assert found.info_for(ImageSettings()).dpi == 200
    assert found.parts(ImageSettings())[0].original_size == (834, 556)


def test_a_page_too_large_for_100_dpi_is_refused_and_its_text_is_not():
    found = only(page(words("Hamburg"), "/MediaBox [0 0 14400 14400]"))
    assert found.info.dpi is None
    with pytest.raises(
        ImageError, match=r"#1 measures 200 x 200 inches, which take 400000000 pixels at 100 dpi, above the limit"
    ):
        found.parts()
    assert found.text() == "Hamburg"


def test_dpi_that_fit():
    assert fitting_dpi((72, 72), 40_000) == 200
    assert fitting_dpi((72, 72), 39_999) == 199
    assert fitting_dpi((72, 72), 10_000) == 100
    assert fitting_dpi((72, 72), 9_999) is None


def test_a_tiny_page_and_a_long_one():
    assert only(page("", "/MediaBox [0 0 0.4 0.4]")).parts()[0].original_size == (2, 2)
    with pytest.raises(ImageError, match=r"#1: a picture of .* pixels has an aspect ratio of"):
        only(page("", "/MediaBox [0 0 10 3000]")).parts()


def test_a_page_with_text_that_is_drawn_white_warns():
    found = only(page("1 g " + words("Hamburg")))
    with pytest.warns(UserWarning, match="#1 has text, but nothing dark is drawn of it"):
        found.parts()
    for content in ("", words("Hamburg"), "0 0 100 100 re f"):
        found = only(page(content))
        found.parts()
        assert found.notes == ()


# --- what is refused ----------------------------------------------------------------------------------------------------


def refused(data, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        list(read_pages(data, **options))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_what_is_cut_short_is_refused():
    refused(DATA / "cut_short.pdf", r"cut_short.pdf is damaged, cut short or no PDF")
    whole = pages([words(f"page {number}") for number in range(6)])
    for share in (0.3, 0.6, 0.9):
        refused(whole[: int(len(whole) * share)], "damaged|cut short")


def test_an_update_that_is_cut_short_is_refused_and_a_whole_one_is_followed():
    old = page(words("old"))
    place = len(old)
    updated = old + b"5 0 obj\n" + stream(words("new")) + b"\nendobj\n"
    start = len(updated)
    updated += b"xref\n5 1\n%010d 00000 n \ntrailer << /Size 6 /Root 1 0 R /Prev %d >>\nstartxref\n%d\n%%%%EOF\n" % (
        place,
        old.rindex(b"xref\n0"),
        start,
    )
    assert only(updated).text() == "new"
    refused(updated[:-40], "is cut short: [0-9]+ bytes follow its last end mark")
    assert only(old + b"\r\n\0\0<!-- sent by a web server -->\n").text() == "old"


def test_a_wrong_table_is_not_repaired():
    data = page(words("a"))
    start = data.rindex(b"startxref")
    refused(data[:start] + b"startxref\n7\n%%EOF\n", "is damaged: its cross-reference table is wrong")


def test_what_is_no_pdf(tmp_path):
    (tmp_path / "a.pdf").write_text("plain text")
    (tmp_path / "b.pdf").write_text("<!DOCTYPE html><p>404")
    (tmp_path / "c.pdf").touch()
    refused(tmp_path / "a.pdf", r"a.pdf is neither a PDF, a TIFF, nor a zip archive of pictures\.$")
    refused(tmp_path / "b.pdf", r"\(it looks like HTML\)\.$")
    refused(tmp_path / "c.pdf", "c.pdf is empty")
    refused(tmp_path / "d.pdf", "d.pdf does not exist")
    refused(tmp_path, "is a directory")
    refused(b"%PDF-1.7\nnothing", "is damaged, cut short or no PDF")
    refused(b"Rar!\x1a\x07\x00", r"\(it is a RAR archive\)")
    with open(tmp_path / "a.pdf") as file:
        refused(file, "is opened as text; a file of pages is opened with 'rb'")
    refused(3, "a path is given as int")


def test_a_damaged_page_is_named_and_the_others_are_read():
    made = pages([words("one"), words("two"), words("three")])
    found = list(read_pages(made.replace(b"[4 0 R 6 0 R 8 0 R]", b"[4 0 R 0 0 R 8 0 R]")))
    assert [one.info.size for one in found] == [(300, 200), None, (300, 200)]
    assert found[0].text() == "one"
    assert found[2].parts()[0].pixels.min() < 128
    for read in (found[1].parts, found[1].text, found[1].words):
        with pytest.raises(InputError, match="#2 is damaged"):
            read()


def test_no_pages():
    refused(pdf(["<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [] /Count 0 >>"]), r"has no pages\.")


def test_pages_that_there_are_not():
    refused(pages([""] * 5), r"^the file of [0-9]+ bytes: page 7 was asked for, but there are 5 pages\.$", pages="2,7")


def test_limits():
    refused(pages([""] * 5), "5 pages were asked for, above the limit of 4", limits=PageLimits(max_pages=4))
    assert len(list(read_pages(pages([""] * 5), "2-3", limits=PageLimits(max_pages=4)))) == 2
    refused(page(""), "has [0-9]+ bytes, above the limit of 100", limits=PageLimits(max_file_bytes=100))
    refused(page(""), "as_ is 'picture', but must be 'image', 'text', 'both' or 'auto'", as_="picture")
    with pytest.raises(InputError, match="max_pages is 0"):
        PageLimits(max_pages=0)


def protected(password):
    canvas = pytest.importorskip("reportlab.pdfgen.canvas")
    file = io.BytesIO()
    made = canvas.Canvas(file, encrypt=password)
    made.drawString(100, 700, "behind a password")
    made.save()
    return file.getvalue()


def test_passwords():
    assert only(DATA / "encrypted_empty_password.pdf").text() == "opens without a password"
    data = protected("Straße")
    refused(data, "is protected by a password; give it by --password, or in Python as the argument password")
    refused(data, "is protected by a password, which is not the one that was given; give it by --password", password="x")
    refused(data, "password is int", password=3)
    found = only(data, password="Straße")
    assert found.text() == "behind a password"
    assert pickle.loads(pickle.dumps(found)).parts()[0].pixels.min() < 128


def test_a_file_that_changes_is_not_mixed_up(tmp_path):
    (tmp_path / "a.pdf").write_bytes(page(words("old")))
    found = only(tmp_path / "a.pdf")
    found.parts()
    (tmp_path / "a.pdf").write_bytes(page(words("newer")))
    with pytest.raises(InputError, match=r"a.pdf has changed since its pages were listed"):
        found.parts()
    assert only(tmp_path / "a.pdf").text() == "newer"
    (tmp_path / "a.pdf").unlink()
    with pytest.raises(InputError, match=r"a.pdf cannot be read: No such file"):
        found.parts()


def test_without_the_extra_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(pdf_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"PDFs need pypdfium2: pip install 'm0-reranker\[pages\]'\.$"):
        read_pages(page(""))


def test_what_has_pages(tmp_path):
    assert has_pages(page(""))
    assert has_pages(DATA / "form.pdf")
    assert has_pages(str(DATA / "cut_short.pdf"))
    (tmp_path / "scan").write_bytes(b"junk before\n" + page(""))
    (tmp_path / "broken.pdf").write_text("no PDF")
    (tmp_path / "text.txt").write_text("text")
    assert has_pages(tmp_path / "scan")
    assert has_pages(tmp_path / "broken.pdf")
    assert not has_pages(tmp_path / "text.txt")
    assert not has_pages(tmp_path / "nothing.pdf")
    assert not has_pages(tmp_path)
    assert not has_pages(b"")
