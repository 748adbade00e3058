"""Zip archives of pictures: order, what is left out, bombs, damage."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from m0.errors import ImageError, InputError
from m0.inputs import read_pages
from m0.inputs.images import ImageSettings
from m0.inputs.pages import PageLimits, has_pages
from m0.inputs.pages import archive as archive_module


def picture(level, kind="PNG", size=(60, 56)):
    file = io.BytesIO()
    Image.new("L", size, level).save(file, kind)
    return file.getvalue()


def zipped(files, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def levels(found):
    return [int(one.parts()[0].pixels.mean()) for one in found]


def test_pictures_come_in_natural_order_and_nothing_else_does(tmp_path):
    made = zipped(
        {
            "book/page10.png": picture(100),
            "book/page2.jpg": picture(20, "JPEG"),
            "book/Page1.PNG": picture(10),
            "book/page02b.webp": picture(30, "WebP"),
            "book 2/1.png": picture(110),
            "ComicInfo.xml": b"<ComicInfo/>",
            "notes.txt": b"text",
            "__MACOSX/book/._page1.png": b"\0\5\x16\7",
            ".hidden.png": picture(0),
            "book/empty/": b"",
        }
    )
    (tmp_path / "comic.cbz").write_bytes(made)
    found = list(read_pages(tmp_path / "comic.cbz"))
    assert [one.info.label for one in found] == [
        "book/Page1.PNG",
        "book/page2.jpg",
        "book/page02b.webp",
        "book/page10.png",
        "book 2/1.png",
    ]
    assert levels(found) == [10, 20, 30, 100, 110]
    assert [one.info.number for one in found] == [1, 2, 3, 4, 5]
    assert found[0].info.size is None
    assert levels(read_pages(made, "2,5")) == [20, 110]
    assert np.array_equal(pickle.loads(pickle.dumps(found[1])).parts()[0].pixels, found[1].parts()[0].pixels)


def test_compressed_and_with_several_frames():
    file = io.BytesIO()
    frames = [Image.new("L", (60, 56), level) for level in (40, 50)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    first, second = read_pages(zipped({"1.png": picture(9), "2.tif": file.getvalue()}, zipfile.ZIP_DEFLATED))
    assert levels([first]) == [9]
    with pytest.warns(UserWarning, match=r"#2 \(2.tif\) has 2 pages or frames, of which the first is read"):
        assert levels([second]) == [40]


def test_what_has_pages(tmp_path):
    assert has_pages(zipped({"a/1.png": b"x", "a/2.jpg": b"x", "info.xml": b"x"}))
    for others in ({}, {"a.txt": b"x"}, {"a.py": b"x", "b.py": b"x", "logo.png": b"x"}):
        assert not has_pages(zipped(others))
    for office in ("[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"):
        assert not has_pages(zipped({office: b"x", "1.png": b"x", "2.png": b"x"}))
    assert not has_pages(zipped({"1.png": b"x"})[:40])
    (tmp_path / "broken.cbz").write_bytes(b"PK\x03\x04")
    assert has_pages(tmp_path / "broken.cbz")


def test_an_archive_without_pictures_is_refused():
    with pytest.raises(InputError, match=r"^the file of [0-9]+ bytes holds no pictures\.$"):
        read_pages(zipped({"a.txt": b"x"}))


def test_bombs_are_refused_before_they_are_unpacked(monkeypatch):
    bomb = zipped({"1.png": bytes(3_000_000), "2.png": picture(7)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    with pytest.raises(
        InputError, match=r"are 3[0-9]{6} bytes when unpacked, above the limit of 1000000; raise max_file_bytes"
    ):
        read_pages(bomb, limits=PageLimits(max_file_bytes=1_000_000))
    monkeypatch.setattr(archive_module, "MOST_PICTURE_BYTES", 1_000_000)
    first, second = read_pages(bomb)
    with pytest.raises(ImageError, match=r"#1 \(1.png\) is 3000000 bytes when unpacked, above the limit of 1000000"):
        first.parts()
    assert levels([second]) == [7]
    monkeypatch.setattr(archive_module, "MOST_DIRECTORY_BYTES", 50)
    with pytest.raises(InputError, match=r"has a list of files of [0-9]+ bytes, above the limit of 50\.$"):
        read_pages(bomb)


def test_a_picture_that_is_larger_than_its_header_says_is_not_unpacked_further():
    data = bytearray(zipped({"1.png": picture(7) + bytes(1_000_000)}, zipfile.ZIP_DEFLATED))
    size = len(picture(7))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    (found,) = read_pages(bytes(data))
    with pytest.raises(ImageError, match=r"#1 \(1.png\) is damaged"):
        found.parts()


def test_pixels_are_limited():
    (found,) = read_pages(zipped({"1.png": picture(7)}))
    with pytest.raises(ImageError, match=r"#1 \(1.png\) has 60 x 56 pixels, above the limit of 100"):
        found.parts(ImageSettings(max_image_pixels=100))


def test_damage_is_named(tmp_path):
    made = zipped({"1.png": picture(1), "2.png": picture(2), "3.png": b"no picture"})
    (tmp_path / "a.cbz").write_bytes(made[: len(made) // 2])
    with pytest.raises(InputError, match=r"a\.cbz is damaged or cut short: File is not a zip file"):
        read_pages(tmp_path / "a.cbz")
    broken = bytearray(made)
    broken[made.index(picture(1)) + 30] ^= 255
    first, second, third = read_pages(bytes(broken))
    with pytest.raises(ImageError, match=r"#1 \(1.png\) is damaged: Bad CRC-32"):
        first.parts()
    assert levels([second]) == [2]
    with pytest.raises(ImageError, match=r"#3 \(3.png\) is not a picture that Pillow can open"):
        third.parts()


def test_a_protected_picture_is_named():
    made = bytearray(zipped({"1.png": picture(1)}))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.index(signature) + place] |= 1
    with pytest.raises(ImageError, match=r"#1 \(1.png\) is protected by a password; give it by --password"):
        next(iter(read_pages(bytes(made)))).parts()
    with pytest.raises(ImageError, match="is protected by a password, which is not the one that was given"):
        next(iter(read_pages(bytes(made), password="x"))).parts()


def test_packed_in_a_way_that_is_not_known():
    made = bytearray(zipped({"1.png": picture(1)}))
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        struct.pack_into("<H", made, made.index(signature) + place, 98)
    with pytest.raises(ImageError, match=r"#1 \(1.png\) cannot be unpacked: That compression method is not supported"):
        next(iter(read_pages(bytes(made)))).parts()
