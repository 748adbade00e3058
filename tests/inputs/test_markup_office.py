"""Office files, books and e-mails: files made by LibreOffice, pandoc and mail programs, and files that are broken or lie."""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("lxml")
pytest.importorskip("markdownify")
mammoth = pytest.importorskip("mammoth")
pytest.importorskip("markitdown")
docx = pytest.importorskip("docx")
pptx = pytest.importorskip("pptx")

from m0.errors import InputError, MissingExtraError
from m0.inputs.markup import MARKUP_SUFFIXES, archives, office, read_markup

DATA = Path(__file__).parent.parent / "data" / "markup"
WORDS = {
    "pump": ("Pump 4711", "and its seal faces the inlet.", "pressure", "4 bar"),
    "umlauts": ("Größe der Bögen", "als das Maß es zuläßt; naïve Übung hilft.", "Länge", "drei Fuß"),
    "japanese": ("ポンプの取扱説明書", "シールは入口に向けてください。", "圧力", "四バール"),
    "chinese": ("水泵使用说明", "水泵用四颗螺钉固定，密封面朝向入口。", "压力", "四巴"),
    "persian": ("راهنمای پمپ", "پمپ با چهار پیچ محکم می‌شود", "فشار", "چهار بار"),
    "hebrew": ("מדריך למשאבה", "המשאבה מחוברת בארבעה ברגים", "לחץ", "ארבעה בר"),
    "russian": ("Руководство по насосу", "уплотнение обращено ко входу.", "давление", "четыре бара"),
    "code": ("Setting snake_case names", "The variable max_image_pixels * 2 is written as it is.", "max_pixels", "a_b_c * 2"),
    "greek": ("Εγχειρίδιο αντλίας", "Η αντλία στερεώνεται με τέσσερις βίδες.", "πίεση", "τέσσερα μπαρ"),
    "french": ("L’huile à l’été", "et le garçon l’a déjà reçue.", "durée", "dix années"),
}
"""Title, the end of a sentence, a term and its value: what data/markup/make_samples.py wrote into each file."""


@pytest.fixture(scope="module")
def samples():
    found = {}
    for archive in ("office.tar.xz", "pages.tar.xz"):
        with tarfile.open(DATA / archive) as opened:
            found.update({file.name: opened.extractfile(file).read() for file in opened})
    return found


def lines_of(text):
    return [line.strip() for line in text.split("\n") if line.strip()]


def check(text, name):
    title, sentence, term, value = WORDS[name]
    lines = lines_of(text)
    assert f"# {title}" in lines
    assert f"## {term}" in lines
    assert any(line.rstrip("[1]").endswith(sentence) or f"{sentence}[1]" in line or sentence in line for line in lines)
    assert f"{sentence}[1]" in text or not sentence.endswith((".", "。"))
    assert [f"| part | {term} |", f"| seal | {value} |", "| cell_b | 12 Nm |"] == [
        line for line in lines if line.startswith("| ") and "---" not in line
    ]
    assert f"- first {term}\n  - inner item\n- second item" in text
    assert "1. step one\n2. step two" in text
    assert f"```\nset {name} on\n    wait 5\n```" in text
    assert f"A link to {term} and a bold word." in lines
    assert "A red square" in lines
    assert f"1. A note on {term}." in lines


@pytest.mark.parametrize("kind", ["docx", "epub"])
@pytest.mark.parametrize("name", WORDS)
def test_texts_of_pandoc_and_libreoffice_are_whole(samples, name, kind):
    check(read_markup(samples[f"{name}.{kind}"], f"{name}.{kind}"), name)


@pytest.mark.skipif(not shutil.which("soffice"), reason="LibreOffice is not installed")
@pytest.mark.parametrize("name", WORDS)
def test_odt_is_read_by_libreoffice(samples, name):
    check(read_markup(samples[f"{name}.odt"], f"{name}.odt"), name)


@pytest.mark.parametrize("name", WORDS)
def test_slides_are_whole(samples, name):
    title, sentence, term, value = WORDS[name]
    text = read_markup(samples[f"{name}.pptx"], f"{name}.pptx")
    lines = lines_of(text)
    assert [f"# {title}", f"# {term}"] == [line for line in lines if line.startswith("# ")]
    assert sentence in text
    assert [f"first {term}", "second item", "### Notes:", f"Notes on {term}."] == lines[2:6]
    assert lines[-4:] == [f"| part | {term} |", "| --- | --- |", f"| seal | {value} |", "| cell_b | 12 Nm |"]


def test_names_and_bytes_of_any_suffix_are_read_by_their_content(samples):
    assert read_markup(samples["pump.docx"], "the BytesIO") == read_markup(samples["pump.docx"], "x.DOCX")
    assert read_markup(samples["msg_01.eml"], "mail").startswith("# This is a test message")
    assert set(MARKUP_SUFFIXES) == {".html", ".htm", ".xhtml", ".docx", ".pptx", ".epub", ".odt", ".eml"}


# --- what Word and PowerPoint can hold ----------------------------------------------------------------------------------

SPACE = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def saved(document):
    data = io.BytesIO()
    document.save(data)
    return data.getvalue()


def test_what_a_docx_loses_is_what_the_docs_say():
    document = docx.Document()
    paragraph = document.add_paragraph("plain ")
    for piece in (
        '<w:ins {0} w:id="1" w:author="a"><w:r><w:t>inserted </w:t></w:r></w:ins>',
        '<w:del {0} w:id="2" w:author="a"><w:r><w:delText>deleted </w:delText></w:r></w:del>',
        "<w:r {0}><w:rPr><w:vanish/></w:rPr><w:t>hidden </w:t></w:r>",
        '<w:fldSimple {0} w:instr="PAGE"><w:r><w:t>field </w:t></w:r></w:fldSimple>',
        "<w:sdt {0}><w:sdtContent><w:r><w:t>control</w:t></w:r></w:sdtContent></w:sdt>",
    ):
        piece = piece.replace("<w:t>", '<w:t xml:space="preserve">').format(SPACE)
        paragraph._p.append(docx.oxml.parse_xml(piece))
    document.sections[0].header.paragraphs[0].text = "header"
    document.sections[0].footer.paragraphs[0].text = "footer"
    assert read_markup(saved(document), "x.docx") == "plain inserted hidden control"


def test_a_presentation_keeps_charts_groups_pictures_and_notes():
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Title_one"
    chart = CategoryChartData()
    chart.categories = ["east", "west"]
    chart.add_series("sales", (19.2, 21.4))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(2), Inches(3), Inches(2), chart)
    slide.shapes.add_group_shape().shapes.add_textbox(
        Inches(1), Inches(5), Inches(2), Inches(1)
    ).text_frame.text = "grouped *words*"
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(picture, "PNG")
    slide.shapes.add_picture(picture, Inches(4), Inches(5))
    described = slide.shapes.add_picture(picture, Inches(4), Inches(6))
    described._element._nvXxPr.cNvPr.set("descr", "a black square")
    slide.notes_slide.notes_text_frame.text = "said aloud"
    text = read_markup(saved(deck), "x.pptx")
    assert lines_of(text) == [
        "# Title_one",
        "### Chart",
        "| Category | sales |",
        "|---|---|",
        "| east | 19.2 |",
        "| west | 21.4 |",
        "grouped *words*",
        "a black square",
        "### Notes:",
        "said aloud",
    ]


# --- files that are not what they should be -----------------------------------------------------------------------------


def zipped(**files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_x", ".x"), content)
    return data.getvalue()


def refused(data, name):
    with pytest.raises(InputError) as error:
        read_markup(data, name)
    sentence = str(error.value)
    assert sentence.startswith(name)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def ole(stream):
    return archives.OLE + b"\0" * 504 + stream.encode("utf-16-le").ljust(512, b"\0")


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".odt", ".epub"])
def test_broken_and_lying_files_get_a_sentence(samples, suffix):
    name = f"x{suffix}"
    whole = samples[f"pump{suffix}"]
    assert refused(b"", name) == f"{name} is empty."
    assert "is damaged" in refused(whole[: len(whole) // 2], name)
    damaged = bytearray(whole)
    damaged[len(whole) // 4 : len(whole) // 4 + 2000] = b"\0" * 2000
    if suffix != ".odt" or shutil.which("soffice"):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):  # damaged where it counts, or not what it was
            read_markup(bytes(damaged[: len(whole) // 3]), name)
    assert refused(zipped(a="b"), name).endswith("but holds a zip archive that is no office file.")
    assert refused(b"%PDF-1.7\n", name).endswith("but holds a PDF.")
    assert refused(b"<!DOCTYPE html><p>x</p>", name).endswith("but holds HTML.")
    assert refused(b"just words", name).endswith("but holds something else.")
    other = "pump.epub" if suffix != ".epub" else "pump.docx"
    assert "but holds " in refused(samples[other], name)
    assert refused(ole("EncryptedPackage"), name).endswith("is protected by a password; save it without one.")
    assert "before 2007" in refused(ole("WordDocument"), name)


def test_pages_that_are_office_files_get_a_sentence(samples):
    assert refused(samples["pump.docx"], "x.html") == "x.html is named HTML, but holds a Word file (DOCX)."
    assert refused(samples["pump.pptx"], "x.eml") == "x.eml is named EML, but holds a PowerPoint file (PPTX)."
    assert refused(b"just words", "x.eml").startswith("x.eml is no e-mail")
    assert refused(b"just words", "x").endswith("it holds something else.")


def test_decompression_bombs_are_not_unpacked(samples, monkeypatch):
    bomb = zipped(**{"[Content_Types]_xml": b"wordprocessingml.document.main+xml", "word__document_xml": b" " * 200_000_000})
    assert len(bomb) < 300_000
    sentence = refused(bomb, "x.docx")
    assert sentence == "x.docx unpacks to 200000034 bytes of text, above the limit of 134217728, as decompression bombs do."
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    assert "files, above the limit of 2" in refused(samples["pump.epub"], "x.epub")


def test_an_archive_that_lies_of_its_sizes_is_damaged(samples):
    data = bytearray(
        zipped(**{"[Content_Types]_xml": b"wordprocessingml.document.main+xml", "word__document_xml": b" " * 9999})
    )
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = data.rfind(mark)
        data[place + at : place + at + 4] = (10).to_bytes(4, "little")
    assert "is damaged" in refused(bytes(data), "x.docx")


@pytest.mark.parametrize("kind", ["docx", "epub"])
def test_entities_that_multiply_are_refused(samples, kind):
    lines = ['<!DOCTYPE a [<!ENTITY e0 "lol">', *(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10)), "]>"]
    laughs = "\n".join([*lines, "<a>&e9;</a>"]).encode()
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(samples[f"pump.{kind}"])) as old, zipfile.ZipFile(data, "w") as new:
        for file in old.namelist():
            new.writestr(file, laughs if file in ("word/document.xml", "META-INF/container.xml") else old.read(file))
    assert refused(data.getvalue(), f"x.{kind}")


def changed(data, name, change):
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for file in old.namelist():
            content = old.read(file)
            if file.endswith(name):
                content = change(content)
            if content is not None:
                new.writestr(file, content)
    return made.getvalue()


def test_protected_books_and_books_that_lack_a_page(samples):
    book = samples["pump.epub"]
    locked = io.BytesIO(book)
    method = '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptionMethod Algorithm="{}"/></encryption>'
    with zipfile.ZipFile(locked, "a") as archive:
        archive.writestr("META-INF/encryption.xml", method.format("http://www.w3.org/2001/04/xmlenc#aes256-cbc"))
    assert "protected against copying" in refused(locked.getvalue(), "x.epub")
    fonts = io.BytesIO(book)
    with zipfile.ZipFile(fonts, "a") as archive:
        archive.writestr("META-INF/encryption.xml", method.format("http://www.idpf.org/2008/embedding"))
    assert read_markup(fonts.getvalue(), "x.epub") == read_markup(book, "x.epub")
    assert "lacks" in refused(changed(book, "ch001.xhtml", lambda _: None), "x.epub")
    assert "lacks" in refused(changed(book, "container.xml", lambda _: None), "x.epub")
    assert "is damaged" in refused(changed(book, ".opf", lambda content: content[:300]), "x.epub")


def test_books_follow_the_reading_order():
    container = '<container><rootfiles><rootfile full-path="O/b.opf"/></rootfiles></container>'
    items = "".join(f'<item id="{n}" href="{n}%20x.xhtml" media-type="application/xhtml+xml"/>' for n in "abc")
    opf = f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>'
    opf += "".join(f'<itemref idref="{n}"/>' for n in "cab") + "</spine></package>"
    page = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title></head><body><p>{}</p></body></html>'
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("O/b.opf", opf)
        for n in "abc":
            archive.writestr(f"O/{n} x.xhtml", page.format(f"page {n}"))
    assert read_markup(data.getvalue(), "x.epub") == "page c\n\npage a\n\npage b"


def test_odt_without_libreoffice_and_with_one_that_hangs(samples, monkeypatch, tmp_path):
    monkeypatch.setattr(office, "_libreoffice", lambda: None)
    assert "LibreOffice must be installed" in refused(samples["pump.odt"], "x.odt")
    slow = tmp_path / "soffice"
    slow.write_text("#!/bin/sh\nsleep 1000 & wait\n")
    slow.chmod(0o755)
    monkeypatch.setattr(office, "_libreoffice", lambda: str(slow))
    monkeypatch.setattr(office, "SECONDS", 0.2)
    assert refused(samples["pump.odt"], "x.odt") == "x.odt cannot be read: LibreOffice took more than 0 seconds."
    slow.write_text("#!/bin/sh\necho source file could not be loaded\nexit 1\n")
    monkeypatch.setattr(office, "SECONDS", 20.0)
    assert refused(samples["pump.odt"], "x.odt") == "x.odt cannot be read by LibreOffice: source file could not be loaded."
    locked = changed(
        samples["pump.odt"], "manifest.xml", lambda content: content.replace(b"</", b"<manifest:encryption-data/></", 1)
    )
    assert "protected by a password" in refused(locked, "x.odt")


@pytest.mark.parametrize(("kind", "package"), [("docx", "mammoth"), ("pptx", "markitdown")])
def test_missing_packages_are_named(samples, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'm0-reranker\[office\]'"):
        read_markup(samples[f"pump.{kind}"], f"x.{kind}")


# --- e-mails ------------------------------------------------------------------------------------------------------------

MAILS = {
    "msg_01.eml": ["# This is a test message", "From: bbb@ddd.com (John X. Doe)", "Do you like this message?"],
    "msg_02.eml": [
        "# Ppp digest, Vol 1 #2 - 5 msgs",
        "Attachment: [Ppp] testing #5",
        "http://www.zzz.org/mailman/listinfo/ppp",
    ],
    "msg_07.eml": ["This is the dingus fish.", "Attachment: dingusfish.gif"],
    "msg_10.eml": [
        "This is a 7bit encoded message.",
        "¡This is a Quoted Printable encoded message!",
        "This is a Base64 encoded message.",
    ],
    "msg_13.eml": ["A text/plain part", "This is the dingus fish.", "Attachment: dingusfish.gif"],
    "msg_16.eml": ["# Delivery Notification: Delivery has failed", "Attachment: [scr] yeah for Ians!!"],
    "msg_26.eml": ["Date: Sun, 12 May 2002 08:56:15 +0100", "Simple email with attachment.", "Attachment: clock.bmp"],
    "msg_33.eml": ["part 1", "part 2"],
    "msg_43.eml": ["# Banned file: auto__mail.python.bat in mail from you", "BANNED FILENAME ALERT"],
    "msg_45.eml": ["This is the signed contents.", "Attachment: signature.asc"],
}


@pytest.mark.parametrize("name", MAILS)
def test_real_emails_keep_their_text(samples, name):
    lines = lines_of(read_markup(samples[name], name))
    for line in MAILS[name]:
        assert line in lines


def mail(body, kind="text/plain", more=""):
    return (
        f"Subject: =?utf-8?q?Gr=C3=B6=C3=9Fe?=\r\nFrom: a@b.c\r\nMIME-Version: 1.0\r\nContent-Type: {kind}\r\n{more}\r\n".encode()
        + body
    )


def test_the_plain_form_of_a_mail_is_taken_and_else_the_page():
    from email.message import EmailMessage

    message = EmailMessage()
    message["Subject"] = "Größe"
    message.set_content("plain words\n")
    message.add_alternative("<p>rich <b>words</b></p><nav>menu</nav>", subtype="html")
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename="Übersicht.pdf")
    assert read_markup(bytes(message), "x.eml") == "# Größe\n\nplain words\n\nAttachment: Übersicht.pdf"
    empty = bytes(message).replace(b"plain words", b" ")
    assert read_markup(empty, "x.eml") == "# Größe\n\nrich words\n\nAttachment: Übersicht.pdf"


def test_encodings_of_mails():
    words = "Größe"
    assert read_markup(mail(words.encode("cp1252"), 'text/plain; charset="iso-8859-1"'), "x.eml").endswith("\n\nGröße")
    assert read_markup(mail(words.encode("utf-8"), 'text/plain; charset="no-such"'), "x.eml").endswith("\n\nGröße")
    assert read_markup(mail("Насос".encode("koi8-r")), "x.eml", encoding="koi8-r").endswith("\n\nНасос")
    page = "<meta charset=koi8-r><p>Насос</p>".encode("koi8-r")
    assert read_markup(mail(page, "text/html"), "x.eml").endswith("\n\nНасос")


def test_mails_that_hold_nothing_or_break_off():
    assert refused(b"From: a@b.c\n\n", "x.eml") == "x.eml holds no text."
    assert read_markup(b"Subject: only this\n\n", "x.eml") == "# only this"
    broken = mail(b"--b\r\n\r\ncut short", "multipart/mixed; boundary=b")
    assert read_markup(broken, "x.eml").endswith("cut short")


def test_headers_that_are_not_quite_right():
    damaged = b"From: a <b@c>: ;<\nTo: :<foo@\nSubject: =?no-such?q?x?= gr\xc3\xb6\xc3\x9fer\n\nwords"
    assert read_markup(damaged, "x.eml") == "# =?no-such?q?x?= größer\nFrom: a <b@c>: ;<\nTo: :<foo@\n\nwords"
    nul = b"Subject: x\nContent-Type: multipart/mixed; boundary*=a\0b''%41\n\nx"
    assert refused(nul, "x.eml") == "x.eml is damaged: embedded null character."
    deep = b"Subject: x\n" + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(2000))
    assert refused(deep, "x.eml") == "x.eml has parts in parts, too deep to read."


def test_what_is_attached_to_another_form_of_a_mail_is_named():
    inner = b"--i\r\nContent-Type: text/html\r\n\r\n<p>rich</p>\r\n--i\r\nContent-Type: application/pdf; name=a.pdf\r\n\r\nx\r\n--i--\r\n"
    body = (
        b"--b\r\nContent-Type: text/plain\r\n\r\nplain\r\n--b\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n"
        + inner
        + b"--b--"
    )
    text = read_markup(mail(body, "multipart/alternative; boundary=b"), "x.eml")
    assert text.endswith("\n\nplain\n\nAttachment: a.pdf")
    assert "rich" not in text
