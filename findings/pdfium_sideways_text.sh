#!/bin/sh
# PDFium 159.0.8149.0 (pypdfium2 5.15.2): the text of a page whose lines do not run along the x axis of its own coordinates comes with
# lines in the wrong order or run into one another ("second line herethird line here"), also where /Rotate shows the page upright, as
# LaTeX's landscape pages are. Upright lines on a page with /Rotate 90 come last line first, as on a scan with a text layer that was
# turned by its tag. /Rotate alone cannot mend it: for vertical lines no value of it is right. Writing the turn into the page's content
# (FPDFPage_TransFormWithClip, boxes turned too, /Rotate 0, the page opened again) before asking for the text is right in all 16 cases.
#
# Seen: three lines drawn at 0, 90, 180 and 270 degrees, on pages with /Rotate 0, 90, 180 and 270: 6 of 16 right as they are, 8 of 16 at
#       best with any value of /Rotate, 16 of 16 with the turn in the content.
# A line's end after a hyphen is U+0002 from FPDFText_GetBoundedText and FPDFText_GetUnicode, and U+FFFE from FPDFText_GetText.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pypdfium2==5.15.2
"$folder/venv/bin/python" - <<'PYTHON'
import itertools
import math

import pypdfium2
import pypdfium2.raw as raw

LINES = ["first line here", "second line here", "third line here"]


def cos_sin(angle):
    return round(math.cos(math.radians(angle))), round(math.sin(math.radians(angle)))


def document(content, rotate=0):
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Rotate {rotate} /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    out, places = "%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    out += f"xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{out.__len__()}\n%%EOF\n"
    return pypdfium2.PdfDocument(out.encode())


def lines_at(angle, rotate):
    cos, sin = cos_sin(angle)
    content = ""
    for place, line in enumerate(LINES):
        x, y = 150 + sin * 30 * place - cos * 60, 150 - cos * 30 * place - sin * 60
        content += f"BT /F 14 Tf {cos} {sin} {-sin} {cos} {x} {y} Tm ({line}) Tj ET\n"
    return document(content, rotate)


def text_of(page):
    text = page.get_textpage()
    return text.get_text_bounded(*page.get_bbox()), text


plain, by_rotate, mended = [], [], []
for angle, rotate in itertools.product((0, 90, 180, 270), repeat=2):
    found, _ = text_of(lines_at(angle, rotate)[0])
    plain.append(found.split("\r\n") == LINES)
    print(f"lines at {angle}, /Rotate {rotate}: {found!r}")
    right = False
    for value in (0, 90, 180, 270):
        page = lines_at(angle, rotate)[0]
        page.set_rotation(value)
        right |= text_of(page)[0].split("\r\n") == LINES
    by_rotate.append(right)
    pdf = lines_at(angle, rotate)
    page = pdf[0]
    _, text = text_of(page)
    turn = round(math.degrees(raw.FPDFText_GetCharAngle(text, 2)))
    text.close()
    cos, sin = cos_sin(turn)
    raw.FPDFPage_TransFormWithClip(page, raw.FS_MATRIX(cos, sin, -sin, cos, 0, 0), None)
    corners = [(cos * x - sin * y, sin * x + cos * y) for x in (0, 300) for y in (0, 300)]
    box = [edge(corner[axis] for corner in corners) for edge in (min, max) for axis in (0, 1)]
    page.set_mediabox(*box)
    page.set_cropbox(*box)
    page.set_rotation(0)
    page.close()
    mended.append(text_of(pdf[0])[0].split("\r\n") == LINES)
print("right:", sum(plain), "as they are,", sum(by_rotate), "with the best /Rotate,", sum(mended), "with the turn in the content")
assert (sum(plain), sum(by_rotate), sum(mended)) == (6, 8, 16)
bounded, text = text_of(document("BT /F 14 Tf 20 200 Td (infor-) Tj 0 -16 Td (mation) Tj ET")[0])
print(repr(bounded), repr(text.get_text_range()))
assert bounded == "infor\x02mation" and text.get_text_range() == "infor\ufffemation"
PYTHON
echo "as described"
