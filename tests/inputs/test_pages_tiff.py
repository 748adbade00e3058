"""TIFFs page by page: order, thumbnails, orientation, depth, and fax pages as high as on paper."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from m0.errors import ImageError, InputError
from m0.inputs import read_pages
from m0.inputs.images import ImageSettings, prepare_picture
from m0.inputs.pages import has_pages

from .pdfs import DATA

AS_MADE = ImageSettings(min_pixels=28 * 28)


def tiff(*images, **options):
    file = io.BytesIO()
    first, *others = images
    first.save(file, "TIFF", save_all=True, append_images=others, **options)
    return file.getvalue()


def colours(found):
    return [tuple(int(value) for value in one.parts()[0].pixels.reshape(-1, 3).mean(0).round()) for one in found]


def test_every_page_of_its_own_size_and_mode():
    images = [
        Image.new("RGB", (60, 40), (255, 0, 0)),
        Image.new("L", (40, 60), 100),
        Image.new("1", (56, 56), 1),
        Image.new("CMYK", (56, 56), (0, 255, 255, 0)),
        Image.fromarray(np.full((56, 56), 40_000, np.uint16)),
        Image.fromarray(np.linspace(0, 1, 56 * 56, dtype=np.float32).reshape(56, 56)),
    ]
    found = list(read_pages(tiff(*images)))
    assert [one.info.number for one in found] == [1, 2, 3, 4, 5, 6]
    assert {one.info.pages for one in found} == {6}
    assert [one.parts()[0].original_size for one in found][:2] == [(60, 40), (40, 60)]
    assert colours(found)[:5] == [(255, 0, 0), (100,) * 3, (255,) * 3, (255, 0, 0), (156,) * 3]
    assert found[5].parts()[0].pixels.mean() == pytest.approx(127.5, abs=1)
    for image, one in zip(images, found, strict=True):
        assert np.array_equal(one.parts()[0].pixels, prepare_picture(tiff(image)).pixels)
    clipped = ImageSettings(as_reference=True)
    assert (found[4].parts(clipped)[0].pixels == 255).all()


def test_orientations_and_a_thumbnail(tmp_path):
    found = list(read_pages(DATA / "orientations_thumbnail.tif", settings=AS_MADE))
    assert [one.parts()[0].original_size for one in found] == [(60, 40), (40, 60), (60, 40)]
    for one, (down, right) in zip(found, [(0, 0), (0, 1), (1, 1)], strict=True):
        pixels = one.parts()[0].pixels.astype(int)
        red = pixels[..., 0] - pixels[..., 1]
        height, width = red.shape
        corners = {
            (y, x): red[y * (height - 6) : y * (height - 6) + 6, x * (width - 6) : x * (width - 6) + 6].mean()
            for y in (0, 1)
            for x in (0, 1)
        }
        assert max(corners, key=corners.get) == (down, right)
    data = (DATA / "orientations_thumbnail.tif").read_bytes()
    assert np.array_equal(next(iter(read_pages(data, 2))).parts()[0].pixels, found[1].parts(ImageSettings())[0].pixels)
    with pytest.raises(InputError, match="page 4 was asked for, but there are 3 pages"):
        read_pages(data, 4)


def fax(resolution, photometric=1, size=(204, 108)):
    image = Image.new("1", size, 255)
    image.paste(0, (0, 0, size[0] // 2, size[1]))
    return tiff(image, compression="group4", dpi=resolution, tiffinfo={262: photometric})


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_fax_page_is_as_high_as_on_paper(photometric):
    (found,) = read_pages(fax((204, 98), photometric), settings=AS_MADE)
    picture = found.parts()[0]
    assert picture.original_size == (204, 225)
    width = picture.pixels.shape[1]
    assert picture.pixels[:, : width // 2 - 4].max() < 5
    assert picture.pixels[:, width // 2 + 4 :].min() > 250


def test_what_resolutions_do():
    for resolution, size in [((98, 204), (425, 108)), ((200, 200), (204, 108)), ((72, 7200), (204, 108)), (None, (204, 108))]:
        data = fax(resolution) if resolution else tiff(Image.new("L", (204, 108)))
        (found,) = read_pages(data)
        assert found.parts()[0].original_size == size
    lying = tiff(Image.new("L", (204, 108)), dpi=(204, 98), tiffinfo={274: 6})
    (found,) = read_pages(lying)
    assert found.parts()[0].original_size == (225, 204)
    with pytest.raises(ImageError, match="#1 has 204 x 225 pixels, above the limit of 30000"):
        next(iter(read_pages(fax((204, 98))))).parts(ImageSettings(max_image_pixels=30_000))


def test_by_path_and_by_bytes_compressed_or_not(tmp_path):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (64, 80, 3), np.uint8)) for _ in range(3)]
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
        data = tiff(*images, compression=compression)
        (tmp_path / "scan.tif").write_bytes(data)
        for image, one, other in zip(images, read_pages(tmp_path / "scan.tif"), read_pages(data), strict=True):
            assert np.array_equal(one.parts()[0].pixels, prepare_picture(image).pixels)
            assert np.array_equal(other.parts()[0].pixels, prepare_picture(image).pixels)


def test_a_page_of_a_tiff_has_no_text():
    (found,) = read_pages(tiff(Image.new("L", (60, 60))), as_="text")
    with pytest.raises(InputError, match=r"#1 is a picture, which has no text; read it as one\.$"):
        found.parts()
    (found,) = read_pages(tiff(Image.new("L", (60, 60))), as_="auto")
    assert (found.as_, found.text(), found.words(), len(found.parts())) == ("image", "", (), 1)
    (found,) = read_pages(tiff(Image.new("L", (60, 60))), as_="both")
    assert len(found.parts()) == 1
    with pytest.raises(InputError, match="is no PDF, so that its pages have no coordinates of their own"):
        found.pdf_box((0, 0, 1, 1))


def test_a_chain_of_pages_that_breaks_is_damage(tmp_path):
    images = [Image.new("L", (60, 60), level) for level in (10, 20, 30)]
    data = bytearray(tiff(*images))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    link = first + 2 + 12 * count
    (second,) = struct.unpack_from("<I", data, link)
    for target, pages in ((len(data) + 100, "1 page"), (first, "1 page"), (len(data) - 1, "1 page")):
        struct.pack_into("<I", data, link, target)
        with pytest.raises(InputError, match=rf"is damaged or cut short: its chain of pages breaks after {pages}\.$"):
            read_pages(bytes(data))
        assert has_pages(bytes(data))
    struct.pack_into("<I", data, link, second)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.tif is damaged or cut short"):
        read_pages(cut)
    with pytest.raises(InputError, match="breaks after 0 pages"):
        read_pages(b"II*\0\x08")


def test_a_damaged_page_is_named_and_the_others_are_read():
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (64, 80), np.uint8)) for _ in range(2)]
    data = bytearray(tiff(*images, compression="tiff_adobe_deflate"))
    with Image.open(io.BytesIO(data)) as opened:
        opened.seek(1)
        (offset,) = opened.tag_v2[273]
    data[offset : offset + 20] = bytes(20)
    first, second = read_pages(bytes(data))
    assert np.array_equal(first.parts()[0].pixels, prepare_picture(images[0]).pixels)
    with pytest.raises(ImageError, match=r"^the file of [0-9]+ bytes#2 is damaged"):
        second.parts()


def test_what_has_pages():
    assert has_pages(DATA / "orientations_thumbnail.tif")
    one = Image.new("L", (60, 60))
    assert not has_pages(tiff(one))
    assert has_pages(tiff(one, one))
    for kind in ("GIF", "WebP", "PNG"):
        file = io.BytesIO()
        frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        assert not has_pages(file.getvalue())
        with pytest.raises(InputError, match="is neither a PDF, a TIFF, nor a zip archive of pictures"):
            read_pages(file.getvalue())
