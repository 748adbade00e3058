"""Pictures of more than eight bits: scaled by their own depth, whatever the file, the byte order and the version of Pillow."""

import base64
import io
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from m0.errors import ImageError
from m0.inputs.images import ImageSettings, open_image, prepare_picture

HEIGHT, WIDTH = 28, 56
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
GREY = ((X * 5 + Y * 9) % 256).astype(np.uint8)
GREY[:3], GREY[3:6] = 0, 255
RGB = np.stack([GREY, 255 - GREY, np.roll(GREY, 7, 1)], -1)
ALPHA = np.clip(X * 5, 0, 255).astype(np.uint8)
PAPER = ImageSettings(background=(255, 255, 255))


def deep(levels, kind, white):
    """Levels at another depth, to the nearest."""
    return ((levels.astype(np.int64) * white + 127) // 255).astype(kind)


def tiff(data, tags, order="<", packed=False):
    """A TIFF of one strip a plane; `data` is an array, bytes, or a list of them."""
    planes = data if isinstance(data, list) else [data]
    strips = [
        plane if isinstance(plane, bytes) else plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes
    ]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    fields = {256: WIDTH, 257: HEIGHT, 258: 16, 259: 8 if packed else 1, 262: 1, 277: 1, 278: HEIGHT, **tags}
    place = 8
    starts = [place := place + (len(strips[number - 1]) if number else 0) for number in range(len(strips))]
    place += len(strips[-1])
    fields |= {273: starts, 279: [len(strip) for strip in strips]}
    outside, entries = b"", b""
    for tag, value in sorted(fields.items()):
        values = value if isinstance(value, list) else [value]
        kind = "I" if tag in (273, 279) else "H"
        raw = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(raw) > 4:
            outside += raw
            raw = struct.pack(order + "I", place + len(outside) - len(raw))
        entries += struct.pack(order + "HHI", tag, 4 if kind == "I" else 3, len(values)) + raw.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, place + len(outside))
    return head + b"".join(strips) + outside + struct.pack(order + "H", len(fields)) + entries + bytes(4)


def png(values, kind, transparent=None):
    """A PNG of 16 bits; `kind` is its colour type, 0, 2, 4 or 6."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0))
    middle = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def shown(source, settings=None):
    """The picture as it is before resizing, (height, width, 3)."""
    settings = settings or ImageSettings()
    return np.asarray(open_image(source, background=settings.background, as_reference=settings.as_reference).image)


def grey_of(source, settings=None):
    pixels = shown(source, settings)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


DEEP = deep(GREY, np.uint16, 65535)
SMALL, BIG = "<", ">"
FILES = {
    "PNG": png(DEEP, 0),
    "TIFF": tiff(DEEP, {}),
    "TIFF, big-endian": tiff(DEEP, {}, BIG),
    "TIFF, compressed": tiff(DEEP, {}, SMALL, packed=True),
    "TIFF, big-endian, compressed": tiff(DEEP, {}, BIG, packed=True),
    "TIFF, white is 0": tiff(65535 - DEEP, {262: 0}),
    "TIFF, 12 of 16 bits": tiff(deep(GREY, np.uint16, 4095), {281: 4095}),
    "TIFF, 12 bits": tiff(np.packbits(np.unpackbits(deep(GREY, ">u2", 4095).view(np.uint8).reshape(HEIGHT, WIDTH, 2), axis=2)
                                      [:, :, 4:].reshape(HEIGHT, -1), axis=1), {258: 12}),
    "TIFF, signed": tiff((DEEP.astype(np.int32) - 32768).astype(np.int16), {339: 2}),
    "TIFF, signed, big-endian, compressed": tiff((DEEP.astype(np.int32) - 32768).astype(np.int16), {339: 2}, BIG, packed=True),
    "TIFF, signed, none below 0": tiff(deep(GREY, np.int16, 32767), {339: 2}),
    "TIFF, 8 bits signed": tiff((GREY.astype(np.int16) - 128).astype(np.int8), {258: 8, 339: 2}),
    "TIFF, 32 bits": tiff(GREY.astype(np.uint32) * 16843009, {258: 32}),
    "TIFF, 16 in 32 bits": tiff(DEEP.astype(np.uint32), {258: 32}),
    "TIFF, 8 in 32 bits": tiff(GREY.astype(np.int32), {258: 32, 339: 2}),
    "TIFF, 32 bits, big-endian, compressed": tiff(DEEP.astype(np.int32), {258: 32, 339: 2}, BIG, packed=True),
    "TIFF, floats to 1": tiff((GREY / 255).astype(np.float32), {258: 32, 339: 3}),
    "TIFF, floats to 1, big-endian": tiff((GREY / 255).astype(np.float32), {258: 32, 339: 3}, BIG),
    "TIFF, floats to 1, big-endian, compressed": tiff((GREY / 255).astype(np.float32), {258: 32, 339: 3}, BIG, packed=True),
    "TIFF, floats to 1, white is 0": tiff((1 - GREY / 255).astype(np.float32), {258: 32, 339: 3, 262: 0}),
    "TIFF, floats to 255": tiff(GREY.astype(np.float32), {258: 32, 339: 3}),
    "TIFF, floats to 65535": tiff(DEEP.astype(np.float32), {258: 32, 339: 3}),
    "TIFF, floats from -1": tiff((GREY / 127.5 - 1).astype(np.float32), {258: 32, 339: 3}),
    "PGM": b"P5 56 28 65535\n" + DEEP.astype(">u2").tobytes(),
    "PGM, 12 bits": b"P5 56 28 4095\n" + deep(GREY, ">u2", 4095).tobytes(),
    "PGM, 300 levels": b"P5 56 28 300\n" + deep(GREY, ">u2", 300).tobytes(),
    "PFM": b"Pf\n56 28\n-1.0\n" + (GREY / 255).astype("<f4")[::-1].tobytes(),
    "JPEG 2000": saved(Image.fromarray(DEEP), "JPEG2000"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("background", [None, (255, 255, 255)])
def test_a_deep_grey_file_looks_like_its_8_bits(case, background):
    settings = ImageSettings(background=background)
    for source in (FILES[case], Image.open(io.BytesIO(FILES[case]))):
        assert np.array_equal(grey_of(source, settings), GREY)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I", "F"])
def test_what_pillow_holds_needs_no_file(mode):
    kind = {"I;16B": ">u2", "I": "<i4", "F": "<f4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (WIDTH, HEIGHT), DEEP.astype(kind).tobytes())
    assert np.array_equal(grey_of(image), GREY)
    assert np.array_equal(grey_of(image.rotate(180)), GREY[::-1, ::-1])


COLOURS = {
    "PNG, RGB": (png((RGB.astype(np.uint16) * 257).reshape(HEIGHT, -1), 2), RGB, False),
    "PNG, RGBA": (png((np.dstack([RGB, ALPHA]).astype(np.uint16) * 257).reshape(HEIGHT, -1), 6), RGB, True),
    "PNG, grey with alpha": (png((np.dstack([GREY, ALPHA]).astype(np.uint16) * 257).reshape(HEIGHT, -1), 4), GREY, True),
    "TIFF, RGB": (tiff(RGB.astype(np.uint16) * 257, {258: [16] * 3, 262: 2, 277: 3}), RGB, False),
    "TIFF, RGB, big-endian, compressed": (tiff(RGB.astype(np.uint16) * 257, {258: [16] * 3, 262: 2, 277: 3}, BIG, True), RGB, False),
    "TIFF, RGB in planes": (tiff([RGB[:, :, c].astype(np.uint16) * 257 for c in range(3)],
                                 {258: [16] * 3, 262: 2, 277: 3, 284: 2}), RGB, False),
    "TIFF, RGB in planes, big-endian": (tiff([RGB[:, :, c].astype(np.uint16) * 257 for c in range(3)],
                                             {258: [16] * 3, 262: 2, 277: 3, 284: 2}, BIG), RGB, False),
    "TIFF, RGBA": (tiff(np.dstack([RGB, ALPHA]).astype(np.uint16) * 257, {258: [16] * 4, 262: 2, 277: 4, 338: 2}), RGB, True),
    "TIFF, RGBA in planes": (tiff([c.astype(np.uint16) * 257 for c in np.moveaxis(np.dstack([RGB, ALPHA]), -1, 0)],
                                  {258: [16] * 4, 262: 2, 277: 4, 338: 2, 284: 2}), RGB, True),
    "PPM": (b"P6 56 28 65535\n" + (RGB.astype(np.uint16) * 257).astype(">u2").tobytes(), RGB, False),
}  # fmt: skip


@pytest.mark.parametrize("case", COLOURS)
def test_deep_colours_look_like_their_8_bits(case):
    source, levels, transparent = COLOURS[case]
    flat = Image.fromarray(levels).convert("RGB")
    assert np.array_equal(shown(source), np.asarray(flat))
    if transparent:
        flat.putalpha(Image.fromarray(ALPHA))
        flat = Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat).convert("RGB")
    assert np.array_equal(shown(source, PAPER), np.asarray(flat))


def test_one_transparent_grey_of_16_bits_lets_the_paper_through():
    red = ImageSettings(background=(255, 0, 0))
    source = png(DEEP, 0, transparent=(65535,))
    assert np.array_equal(grey_of(source), GREY)
    pixels = shown(source, red)
    assert (pixels[GREY == 255] == (255, 0, 0)).all()
    assert np.array_equal(pixels[GREY < 255][:, 0], GREY[GREY < 255])


def test_16_bits_are_divided_by_257_and_rounded_to_the_nearest():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(every / 257).astype(np.uint8)
    assert np.array_equal(grey_of(Image.fromarray(every)), expected)
    assert np.array_equal(grey_of(every), expected)
    assert np.array_equal(grey_of(png(every[:HEIGHT, :WIDTH], 0)), expected[:HEIGHT, :WIDTH])  # dark, and stays so


ARRAYS = {
    "bool": (GREY > 127, (GREY > 127) * np.uint8(255)),
    "uint8": (GREY, GREY),
    "uint16": (DEEP, GREY),
    "int64": (GREY.astype(np.int64), GREY),
    "int32, 16 bits": (DEEP.astype(np.int32), GREY),
    "int16, 10 bits": (deep(GREY, np.int16, 1023), GREY),
    "uint32": (GREY.astype(np.uint32) * 16843009, GREY),
    "uint64, beyond 32 bits": (GREY.astype(np.uint64) << np.uint64(40), GREY),
    "below 0": (GREY.astype(np.int32) - 100, GREY),
    "float16": ((GREY / 255).astype(np.float16), GREY),
    "float32": ((GREY / 255).astype(np.float32), GREY),
    "float64": (GREY / 255, GREY),
    "float64, to 255": (GREY.astype(np.float64), GREY),
    "float32, -1 to 1": ((GREY / 127.5 - 1).astype(np.float32), GREY),
    "float64, overshot": (np.where(GREY == 255, 1.03, np.where(GREY == 0, -0.02, GREY / 255)), GREY),
    "float64, huge": (GREY * 1e100, GREY),
    "RGB uint16": (RGB.astype(np.uint16) * 257, RGB),
    "RGB float32": ((RGB / 255).astype(np.float32), RGB),
    "one channel": (DEEP[:, :, None], GREY),
    "big-endian": (DEEP.astype(">u2"), GREY),
    "upside down": (DEEP[::-1], GREY[::-1]),
    "one value below 0": (np.full((HEIGHT, WIDTH), -3.0), np.zeros_like(GREY)),
    "all 0": (np.zeros((HEIGHT, WIDTH)), np.zeros_like(GREY)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_any_type_of_number(case):
    array, levels = ARRAYS[case]
    assert np.array_equal(shown(array), np.asarray(Image.fromarray(levels).convert("RGB")))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("white", [False, True])
def test_floats_without_a_range_get_a_sentence(broken, white):
    values = (GREY / 255).astype(np.float32)
    values[9, 9] = broken
    if broken == 1e38:
        values = values.astype(np.float64) * 1e270
    sources = [values] if broken == 1e38 else [values, Image.fromarray(values), tiff(values, {258: 32, 339: 3, 262: 1 - white})]
    for source in sources:
        with pytest.raises(ImageError, match="holds values that are NaN, infinite or too far apart") as caught:
            prepare_picture(source)
        assert "\n" not in str(caught.value)


def test_the_reference_clips_and_so_does_as_reference():
    reference = ImageSettings(as_reference=True)
    for case in ("PNG", "TIFF", "TIFF, white is 0", "TIFF, floats to 1", "PGM", "JPEG 2000"):
        theirs = Image.open(io.BytesIO(FILES[case])).convert("RGB")
        assert np.array_equal(shown(FILES[case], reference), np.asarray(theirs))
    assert shown(FILES["PNG"], reference).mean() > 200
    assert shown(FILES["TIFF, floats to 1"], reference).max() == 1


AS_REFERENCE = [GREY, GREY[:, :, None], GREY > 99, RGB, np.dstack([RGB, ALPHA]), DEEP, DEEP.astype(">u2"), DEEP.astype(np.int32),
          DEEP.astype(np.uint32), (GREY / 255).astype(np.float32), GREY / 255, GREY.astype(np.float32) * 2]  # fmt: skip


@pytest.mark.parametrize("array", AS_REFERENCE, ids=lambda array: f"{array.dtype}-{array.ndim}-{array.max()}")
def test_an_array_as_the_reference_sees_it_is_the_pil_image_of_it(array):
    image = Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(shown(array, ImageSettings(as_reference=True)), expected)
    assert np.array_equal(shown(image, ImageSettings(as_reference=True)), expected)


@pytest.mark.parametrize("array", [RGB.astype(np.uint16), RGB / 255, GREY.astype(np.int64), (GREY / 255).astype(np.float16)])
def test_an_array_of_which_pillow_makes_no_picture_has_none_as_the_reference_sees_it(array):
    assert shown(array).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError) as caught:
        prepare_picture(array, ImageSettings(as_reference=True))
    assert str(caught.value).startswith(
        f"the array of shape {array.shape} is of {array.dtype}, of which Pillow makes no picture"
    )


def test_the_depth_is_a_setting_of_a_reranker_and_part_of_its_fingerprint(nano):
    before, settings = nano.fingerprint(), nano.image_settings
    (deep_one,) = nano.rank("compass", [FILES["PNG"]])
    (plain,) = nano.rank("compass", [Image.fromarray(GREY)])
    assert deep_one.logit == pytest.approx(plain.logit, abs=1e-4)
    try:
        nano.image_settings = replace(settings, as_reference=True)
        assert nano.fingerprint() != before
        (clipped,) = nano.rank("compass", [FILES["PNG"]])
    finally:
        nano.image_settings = settings
    assert abs(clipped.logit - plain.logit) > 0.01
    with pytest.raises(ImageError, match="as_reference is 'yes', but must be True or False"):
        ImageSettings(as_reference="yes")


# Of 4 x 4 equal pixels: white in RGB of 16 and of 12 bits, a grey with opaque alpha, and a colour without 0 or white.
WHITE = "/0//UQAvAAAAAAAEAAAABAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/kAAKAAAAAAAmAAH/k8/8MBAUAFyvz/wwEBQAXK/P/DAQFABcr//Z"
WHITE_12 = "/0//UQAvAAAAAAAEAAAABAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/kAAKAAAAAAAjAAH/k8/kEBQAXK/P5BAUAFyvz+QQFABcr//Z"
OPAQUE = "/0//UQAsAAAAAAAEAAAABAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAACDwEBDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/kAAKAAAAAAApAAH/k8P/AAcAFABciELhIPKfBgeVMl/P/DAQFABcr//Z"
COLOUR = "/0//UQAvAAAAAAAEAAAABAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/kAAKAAAAAABTAAH/k8P/AAcAFABciELhIPKfBgeVMl/P/DBQFABcoOKgAAL8UVmYiAYEFPaUkH/P/DBYEVBUowOgAAL8USemMFNZ/sRzYfmxB//Z"


@pytest.mark.parametrize(("text", "bits"), [(WHITE, 16), (WHITE_12, 12), (OPAQUE, 16)])
def test_a_jpeg_2000_whose_white_pillow_may_have_made_black_is_refused(text, bits):
    data = base64.b64decode(text)
    right = {WHITE: 255, WHITE_12: 255}.get(text)
    wrapped = np.asarray(Image.open(io.BytesIO(data))).min() == 0
    for source in (data, Image.open(io.BytesIO(data))):
        if wrapped:
            with pytest.raises(ImageError, match=f"a JPEG 2000 picture of {bits} bits, whose white Pillow reads as black"):
                prepare_picture(source)
        elif right is not None:  # a Pillow that reads it right
            assert (shown(source) == right).all()


def test_a_jpeg_2000_of_16_bits_without_white_is_read():
    assert np.abs(shown(base64.b64decode(COLOUR))[0, 0].astype(int) - (156, 253, 1)).max() <= 1


def test_a_file_that_pillow_knows_to_be_a_tiff_but_cannot_read_says_so():
    for source in (
        tiff((RGB / 255).astype(np.float32), {258: [32] * 3, 339: [3] * 3, 262: 2, 277: 3}),
        tiff(GREY / 255, {258: 64, 339: 3}),
    ):
        with pytest.raises(ImageError, match="it is a TIFF, but not one of those that Pillow reads"):
            prepare_picture(source)
    planes = [plane.astype(np.uint16) * 257 for plane in (GREY, GREY, GREY, GREY)]
    with pytest.raises(ImageError, match="CMYK TIFF of 16 bits in separate planes"):
        prepare_picture(tiff(planes, {258: [16] * 4, 262: 5, 277: 4, 284: 2}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("levels", [GREY, DEEP, RGB], ids=["8 bits", "16 bits", "RGB"])
def test_a_turned_tiff_is_upright_however_it_comes(tmp_path, orientation, levels):
    """Opened by its name, Pillow 11 and later leave some of them lying."""
    path = tmp_path / "turned.tif"
    Image.fromarray(levels).save(path, tiffinfo={274: orientation})
    flat = np.asarray(Image.fromarray(GREY if levels is DEEP else levels).convert("RGB"))
    turns = {1: flat, 2: flat[:, ::-1], 3: flat[::-1, ::-1], 4: flat[::-1], 5: flat.swapaxes(0, 1),
             6: np.rot90(flat, -1), 7: np.rot90(flat, 2).swapaxes(0, 1), 8: np.rot90(flat)}  # fmt: skip
    for source in (path, path.read_bytes(), Image.open(path)):
        assert np.array_equal(shown(source), turns[orientation])


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_transparency(mode):
    image = Image.fromarray(np.dstack([RGB, ALPHA])).convert("LA" if mode == "La" else "RGBA")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(shown(image.convert(mode)), shown(image.convert(mode).convert(image.mode)))
