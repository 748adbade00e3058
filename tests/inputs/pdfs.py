"""PDFs written by hand, where each byte is known."""

from pathlib import Path

DATA = Path(__file__).parent.parent / "data" / "pages"
FONT = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def pdf(objects, trailer=""):
    """Objects numbered from 1, of which the first is the catalog."""
    out, places = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        body = content if isinstance(content, bytes) else content.encode("latin-1")
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def stream(content, entries=""):
    data = content if isinstance(content, bytes) else content.encode("latin-1")
    return f"<< /Length {len(data)} {entries} >>\nstream\n".encode() + data + b"\nendstream"


def page(content, box="/MediaBox [0 0 300 200]", extra="", resources="", catalog="", objects=()):
    """A PDF of one page in Helvetica (/F); further objects begin with 6."""
    return pages([content], box, extra, resources, catalog, objects)


def pages(contents, box="/MediaBox [0 0 300 200]", extra="", resources="", catalog="", objects=()):
    """A PDF of several pages, all of one kind. Objects: 1 catalog, 2 pages, 3 font, then a page and its content each, then `objects`."""
    first = 4
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(contents)))
    made = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>",
        FONT,
    ]
    for number, content in enumerate(contents):
        made += [
            f"<< /Type /Page /Parent 2 0 R {box} {extra} /Contents {first + 2 * number + 1} 0 R "
            f"/Resources << /Font << /F 3 0 R >> {resources} >> >>",
            stream(content),
        ]
    return pdf([*made, *objects])


def words(text, x=20, y=150, size=18):
    return f"BT /F {size} Tf {x} {y} Td ({text}) Tj ET\n"
