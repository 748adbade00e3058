"""PDFs that programs made, and those that Debian ships where they are installed."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pypdfium2")

from m0.inputs import read_pages

from .pdfs import DATA

REAL = DATA / "real"
A4, LETTER = (595.3, 841.9), (612, 792)
MADE = {
    "libreoffice_writer": (
        1,
        LETTER,
        ["Pump manual", "pressure of 4 bar", "V-17", "impeller", "4711", "Größe", "efficient offices"],
    ),
    "libreoffice_docx": (1, LETTER, ["Pump manual", "pressure of 4 bar", "gasket", "0815", "naïve", "Ελληνικά"]),
    "libreoffice_impress": (None, None, ["Pump manual", "pressure of 4 bar", "4711", "Second chapter"]),
    "libreoffice_web": (2, A4, ["Pump manual", "pressure of 4 bar", "4711", "Second chapter"]),
    "typst": (2, (595.3, 419.5), ["Pump manual", "pressure of 4 bar", "A link", "4711", "gasket", "0815"]),
    "reportlab": (2, (419.5, 595.3), ["part number 4711", "gasket 0815", "a wide table", "pressure of 4 bar", "third line"]),
    "matplotlib": (1, (288, 216), ["Pump manual 4711", "pressure"]),
    "debian_handbook_netfilter": (1, (873.3, 475), ["PREROUTING", "FORWARD", "INPUT"]),
    "debian_handbook_release-cycle": (1, (765.4, 813.3), ["Unstable", "Testing", "Stable"]),
    "debian_handbook_ssh": (1, (410.1, 410.4), ["SSH", "8000"]),
}
DEBIAN = {
    "/usr/share/doc/libtasn1-doc/libtasn1.pdf": 36,
    "/usr/share/doc/shared-mime-info/shared-mime-info-spec.pdf": 17,
    "/usr/share/developers-reference/developers-reference.pdf": 114,
    "/usr/share/debian-reference/debian-reference.en.pdf": 261,
}


def checked(page):
    """That a page is drawn, and its words where they say."""
    picture = page.parts()[0]
    width, height = page.info.size
    assert picture.original_size == (
        int(np.ceil(width * page.info.scale - 1e-3)),
        int(np.ceil(height * page.info.scale - 1e-3)),
    )
    pixels = picture.pixels.min(axis=2)
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    words = page.words()
    plain = [word for word in words if any(character.isalnum() for character in word.text)]
    drawn = 0
    for word in plain:
        left, top, right, bottom = word.box
        assert 0 <= left < right <= width + 0.01
        assert 0 <= top < bottom <= height + 0.01
        inside = pixels[max(0, int(top * y)) : int(bottom * y) + 1, max(0, int(left * x)) : int(right * x) + 1]
        drawn += inside.size > 0 and np.ptp(inside.astype(int)) > 40
    assert drawn >= 0.95 * len(plain)
    text = "".join(page.text().split()).replace("-", "")
    assert "".join(word.text.replace("-", "") for word in words) == text
    return words


@pytest.mark.parametrize("name", MADE)
def test_pdfs_that_programs_made(name):
    count, size, phrases = MADE[name]
    found = list(read_pages(REAL / f"{name}.pdf"))
    assert count is None or len(found) == count
    assert size is None or found[0].info.size == pytest.approx(size, abs=0.1)
    text = " ".join(" ".join(page.text().split()) for page in found)
    for phrase in phrases:
        assert phrase in text
    assert sum(len(checked(page)) for page in found) > 1
    assert not any(page.notes for page in found)


def test_labels_and_turned_pages_of_real_files():
    assert [page.info.label for page in read_pages(REAL / "typst.pdf")] == ["i", "ii"]
    _, turned = read_pages(REAL / "reportlab.pdf")
    assert turned.info.size == pytest.approx((419.5, 595.3), abs=0.1)
    assert turned.text().split("\n") == ["a wide table", "holds a pressure of 4 bar", "third line"]
    assert all(word.box[2] - word.box[0] > word.box[3] - word.box[1] for word in turned.words() if len(word.text) > 1)


@pytest.mark.parametrize("name", DEBIAN)
def test_pdfs_of_debian(name):
    if not Path(name).exists():
        pytest.skip(f"{name} is not installed")
    found = list(read_pages(name))
    assert len(found) == DEBIAN[name]
    assert found[0].info.label is not None
    for page in found[5 :: len(found) // 3]:
        assert len(checked(page)) > 50
