"""Resizing, boxes, and every way in which a picture can be unusable. Values are compared in tests/parity."""

import base64
import hashlib
import http.server
import io
import os
import threading
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from m0.errors import ImageError
from m0.inputs.images import ImageSettings, prepare_picture, resize, smart_resize
from tests.conftest import noise


@pytest.mark.parametrize("size", [(56, 56), (1, 1), (4000, 3000), (28, 5600), (999, 30), (2100, 2100)])
def test_resized_to_multiples_of_28_within_the_limits(size):
    width, height = size
    settings = ImageSettings()
    new_height, new_width = smart_resize(height, width, settings)
    assert new_height % 28 == new_width % 28 == 0
    assert settings.min_pixels <= new_height * new_width <= settings.max_pixels


RECORDED = {
    (55, 57): "700baad83dc2d422",  # 56 x 56
    (100, 60): "fa54153cc557364a",  # 112 x 56
    (14, 700): "c0d6ca9423ade12e",  # 28 x 420
    (10, 1990): "a3dc3af409e05100",  # 28 x 812
    (640, 480): "bcaf9395d75d0fe0",  # 644 x 476
    (800, 200): "00b8ca1c5b87733f",  # 812 x 196
    (612, 792): "ade4945dcee0297f",  # 616 x 784
    (800, 600): "18470dca7b5285ad",  # 812 x 588
    (48, 60): "20a8f2f607387119",  # 56 x 56
    (1, 1): "7eb4ce5030e75de5",  # 56 x 56
    (28, 1): "6c9856721945d149",  # 308 x 28
    (1, 200): "5bf0011ce8812f5b",  # 28 x 812
    (7, 956): "f6f2b8a21e211147",  # 28 x 672
    (1240, 1754): "43af2c26c7d7c966",  # 644 x 896
    (1920, 1080): "e40fd0fdf9ad3dc8",  # 1008 x 560
    (2000, 37): "8c74c1a837dae8b9",  # 1988 x 28
    (56, 56): "4f034fa83431ce18",  # 56 x 56
    (64, 56): "9e6366425b445fa5",  # 56 x 56
    (56, 64): "e4329be9349c6f9e",  # 56 x 56
}
"""BLAKE2b (8 bytes) of what `drawn(size).resize(..., BICUBIC)` gives with Pillow 10.3.0 and 11.3.0 (12.2.0 too, but for the two of
more than 100 times their width; 13.0.0 differs in ten)."""


def drawn(width: int, height: int) -> Image.Image:
    """A picture with hard edges, of whole numbers alone: the same everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    bands = (x // 3 * 7 + y // 5 * 13) % 11 // 7 * 255, (x * x + 3 * y * y) % 256, x * (5 * y + 11) % 256
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8))


def checksum(pixels: np.ndarray) -> str:
    return hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()


@pytest.mark.parametrize("size", RECORDED, ids=str)
def test_pixels_are_the_same_whatever_the_version_of_pillow(size):
    assert checksum(prepare_picture(drawn(*size)).pixels) == RECORDED[size]


@pytest.mark.parametrize("size", [*RECORDED, (333, 500), (1110, 506), (30, 8), (254, 3), (501, 40)], ids=str)
def test_resizing_is_within_two_levels_of_pytorchs(size):
    """Which torchvision's processors use, and which goes by width and then height on every version."""
    height, width = smart_resize(size[1], size[0], ImageSettings())
    image = drawn(*size)
    ours = np.array(resize(image, (width, height)), np.int16)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    theirs = F.interpolate(tensor, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("size", [(30, 90), (70, 20), (20, 50), (70, 50), (100, 100)])
def test_a_pass_at_a_time_is_what_pillow_does_in_one(mode, size):
    """At sizes at which every version takes the width first, or has one pass only."""
    image = drawn(70, 50)
    image.putalpha(image.getchannel(1))
    image = image.convert(mode)
    assert resize(image, size).tobytes() == image.resize(size, Image.Resampling.BICUBIC).tobytes()
    assert resize(image, size).mode == mode


def test_cells_tile_the_original_picture():
    picture = prepare_picture(noise(333, 120))
    rows, columns = picture.token_grid
    boxes = [picture.cell_box(row, column) for row in range(rows) for column in range(columns)]
    assert boxes[0][:2] == (0, 0)
    assert boxes[-1][2:] == (333, 120)
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    assert area == pytest.approx(333 * 120)
    with pytest.raises(ImageError, match="lies outside"):
        picture.cell_box(rows, 0)


def test_a_cell_is_where_the_picture_shows_it():
    """One bright cell in the original lights up the patches of that cell, and no others."""
    original = np.zeros((280, 560, 3), dtype=np.uint8)
    settings = ImageSettings(max_pixels=140 * 280)  # halves the picture
    picture = prepare_picture(original, settings)
    left, top, right, bottom = map(int, picture.cell_box(3, 7))
    original[top:bottom, left:right] = 255
    picture = prepare_picture(original, settings)
    brightness = picture.patches.mean(1).reshape(-1, 4).mean(1)  # the four patches of each cell follow one another
    assert brightness.argmax() == 3 * picture.token_grid[1] + 7


def test_transparency_is_dropped_or_put_on_paper():
    image = Image.new("RGBA", (60, 60), (200, 0, 0, 0))
    assert prepare_picture(image).pixels[0, 0].tolist() == [200, 0, 0]
    assert prepare_picture(image, ImageSettings(background=(255, 255, 255))).pixels[0, 0].tolist() == [255, 255, 255]


def encoded(kind="PNG", size=(40, 40)):
    buffer = io.BytesIO()
    noise(*size).save(buffer, kind)
    return buffer.getvalue()


BAD = {
    "missing file": ("no/such/file.png", "does not exist"),
    "missing path": (Path("no/such/file.png"), "does not exist"),
    "directory": (".", "is a directory"),
    "no bytes": (b"", "is empty"),
    "not a picture": (b"hello, this is text", "not a picture that Pillow can open"),
    "HTML": (b"<!DOCTYPE html><html></html>", "looks like HTML"),
    "cut short": (encoded()[:200], "is damaged"),
    "broken inside": (encoded()[:60] + bytes(40) + encoded()[100:], "is damaged"),
    "bad base64": ("data:image/png;base64,####", "is not valid base64"),
    "base64 of text": (base64.b64encode(b"just some words, no picture at all, but long").decode(), "not a picture"),
    "data URI without data": ("data:image/png;base64", "has no comma"),
    "too long and thin": (Image.new("RGB", (2010, 10)), "aspect ratio of 201"),
    "array of texts": (np.full((8, 8, 3), "a"), "must be of bool, integers or floats"),
    "array of complex numbers": (np.zeros((8, 8), complex), "must be of bool, integers or floats"),
    "large array": (np.broadcast_to(np.float32(0), (20_000, 20_000)), "raise max_image_pixels"),
    "array of odd shape": (np.zeros((8, 8, 2), np.uint8), "shape (8, 8, 2)"),
    "empty array": (np.zeros((0, 8, 3), np.uint8), "shape (0, 8, 3)"),
    "number": (3, "is given as int"),
    "nothing": (None, "is given as NoneType"),
    "null byte in the path": ("a\0b.png", "cannot be read"),
    "very long path": ("x/" * 5000 + ".png", "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_picture_gets_one_sentence(case):
    source, message = BAD[case]
    with pytest.raises(ImageError) as caught:
        prepare_picture(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_bomb_is_refused_before_it_is_decoded_and_the_limit_can_be_raised():
    with pytest.raises(ImageError, match="raise max_image_pixels"):
        prepare_picture(encoded(size=(300, 300)), ImageSettings(max_image_pixels=300 * 299))
    assert prepare_picture(encoded(size=(300, 300)), ImageSettings(max_image_pixels=300 * 300)).grid == (22, 22)


def test_pillows_own_limit_is_ours_to_raise(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert prepare_picture(encoded(size=(60, 60))).grid == (4, 4)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 0},
        {"max_pixels": "a"},
        {"max_image_pixels": float("nan")},
        {"max_image_pixels": 0},
        {"min_pixels": 9000, "max_pixels": 8000},
        {"min_pixels": 1, "max_pixels": 100},
    ],
)
def test_limits_that_make_no_sense(limits):
    with pytest.raises(ImageError, match="pixels"):
        ImageSettings(**limits)


LENGTH = {"Content-Length": str(len(encoded()))}
STATED = {
    "/cut": LENGTH,
    "/cut-page": {**LENGTH, "Content-Type": "text/html"},
    "/cut-chunks": {"Transfer-Encoding": "chunked"},
    "/cut-unknown": {},
    "/cut-encoded": {**LENGTH, "Content-Encoding": "other"},
    "/cut-plain": {**LENGTH, "Content-Encoding": "Identity"},
    "/whole": LENGTH,
    "/chunks": {"Transfer-Encoding": "chunked"},
    "/odd": {"Content-Length": "about 9"},
}


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    close_connection = True

    def send_header(self, name, value):
        super().send_header(name, value)
        self.close_connection = True

    def do_GET(self):
        if self.path in ("/unnamed", "/named-text", "/bild-%C3%A4.png", "/a%20b.png"):
            self.send_response(200)
            if self.path == "/named-text":
                self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(encoded())
        elif self.path == "/picture":
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(encoded())
        elif self.path in STATED:
            self.send_response(200)
            for name, value in STATED[self.path].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(f"{len(encoded()):x}\r\n".encode() if "Transfer-Encoding" in STATED[self.path] else b"")
            self.wfile.write(
                encoded()[:-12] if self.path.startswith("/cut") else encoded()
            )  # all but the end, which nobody misses
            self.wfile.write(b"\r\n0\r\n\r\n" if self.path == "/chunks" else b"")
        elif self.path == "/page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>no picture</html>")
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls(server):
    assert np.array_equal(prepare_picture(f"{server}/picture").pixels, prepare_picture(encoded()).pixels)
    with pytest.raises(ImageError, match="answered text/html, not a picture"):
        prepare_picture(f"{server}/page")
    with pytest.raises(ImageError, match="answered 404"):
        prepare_picture(f"{server}/nothing")


@pytest.mark.parametrize("path", ["cut", "cut-page", "cut-plain", "cut-chunks"])
def test_an_answer_that_ends_too_early_is_not_taken_for_whole(server, path):
    size = len(encoded())
    after = "" if path == "cut-chunks" else f" after {size - 12} of {size} bytes"
    with pytest.raises(ImageError) as caught:
        prepare_picture(f"{server}/{path}")
    assert str(caught.value) == f"{server}/{path}: the answer was cut short{after}."


@pytest.mark.parametrize("path", ["whole", "chunks", "odd", "cut-unknown", "cut-encoded"])
def test_an_answer_of_which_no_other_length_is_known_is_read(server, path):
    assert np.array_equal(prepare_picture(f"{server}/{path}").pixels, prepare_picture(encoded()).pixels)


@pytest.mark.parametrize("path", ["unnamed", "named-text", "bild-ä.png", "a b.png"])
def test_a_picture_is_known_by_its_bytes_and_addresses_are_written_as_browsers_do(server, path):
    expected = prepare_picture(encoded()).pixels
    assert np.array_equal(prepare_picture(f"{server}/{path}").pixels, expected)
    assert np.array_equal(prepare_picture(f"{server}/{path}".replace("http", "HTTP", 1)).pixels, expected)


@pytest.mark.parametrize(
    "source",
    ["data:image/png;base64,ééé", "DATA:image/png;BASE64,###", "data:image/png,\ud800", "", "\0", Path("\0")],
)
def test_odd_text_for_a_picture_gets_one_sentence(source):
    with pytest.raises(ImageError) as caught:
        prepare_picture(source)
    assert "\n" not in str(caught.value)


def test_any_path_like_object_is_a_path(tmp_path):
    class Bytes:
        def __fspath__(self):
            return str(tmp_path / "x.png").encode()

    (tmp_path / "x.png").write_bytes(encoded())
    for source in (Bytes(), PurePath(tmp_path / "x.png")):
        assert prepare_picture(source).grid == prepare_picture(encoded()).grid


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError) as caught:
        prepare_picture(tmp_path / "pipe")
    assert str(caught.value) == f"{tmp_path / 'pipe'} is not a file, but a device, pipe or socket."


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "bmp", "gif"])
@pytest.mark.parametrize("as_reference", [False, True])
def test_a_closed_picture_says_that_it_was_closed(tmp_path, kind, as_reference):
    path = tmp_path / f"a.{kind}"
    noise(60, 50).save(path)
    closed, loaded, left = Image.open(path), Image.open(path), Image.open(path)
    closed.close()
    loaded.load()
    loaded.close()
    with left:
        pass
    with path.open("rb") as file:
        of_closed_file = Image.open(file)
    for image in (closed, loaded, left, of_closed_file):
        with pytest.raises(ImageError) as caught:
            prepare_picture(image, ImageSettings(as_reference=as_reference))
        assert str(caught.value) == (
            "the PIL image of 60 x 50 was closed, or its file was, before m0 could read it; give it open, or loaded."
        )
    with Image.open(path) as image:
        image.load()
    assert prepare_picture(image).original_size == (60, 50)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.png", "http://no-such-host.invalid/x.png", "http://", "https://[::bad/x.png"]
)
def test_a_url_that_does_not_answer(url):
    with pytest.raises(ImageError, match="did not answer"):
        prepare_picture(url)
