"""Patches and grids against transformers' Qwen2-VL image processor: sizes, modes and file formats."""

from __future__ import annotations

import io

import numpy as np
import PIL
import pytest
import torch
from packaging.version import Version
from PIL import Image

from m0.inputs.images import ImageSettings, prepare_picture
from tests.conftest import noise
from tests.inputs.test_images import RECORDED, checksum, drawn

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIZES = [
    (1, 1), (2, 1), (3, 3), (1, 60), (13, 27), (28, 28), (42, 42), (55, 57), (56, 56), (64, 64), (70, 98), (100, 60),
    (14, 700), (10, 1990), (224, 224), (333, 500), (640, 480), (767, 785), (775, 777), (800, 200), (1024, 1024),
    (1200, 1600), (1920, 1080), (2000, 37), (2480, 3508), (3840, 2160), (612, 792), (800, 600), (48, 60), (1, 200), (7, 956),
]  # fmt: skip
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "HSV", "LAB", "I", "F"]
FORMATS = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "WebP": ["RGB", "RGBA"],
           "GIF": ["P", "L"], "TIFF": ["1", "L", "RGB", "RGBA", "CMYK", "I;16"], "BMP": ["1", "L", "P", "RGB"]}  # fmt: skip


REFERENCE = ImageSettings(as_reference=True)  # which clips greys of more than 8 bits


@pytest.fixture(scope="module")
def processor():
    return Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=768 * 28 * 28)


def picture(width: int, height: int, mode: str) -> Image.Image:
    image = noise(width, height, seed=width + height)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 2)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.linspace(0, 255, width * height).astype(np.uint8).reshape(height, width)))
        return image
    if mode in ("I", "F"):
        return image.convert("L").convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    return image.convert(mode)


def check(processor, ours_from, theirs_from, settings=None):
    opened = load_image(theirs_from)  # upright, and RGB with transparency dropped, as the vendor's code opens files
    opened.info.pop("transparency", None)  # a leftover of palettes that transformers 5 would paint white after all
    theirs = processor(images=[opened], return_tensors="pt", input_data_format="channels_last")
    ours = prepare_picture(ours_from, settings)
    assert [1, *ours.grid] == theirs["image_grid_thw"][0].tolist()
    assert ours.patches.dtype == torch.float32
    torch.testing.assert_close(ours.patches, theirs["pixel_values"].float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(processor, size):
    """Where Pillow's order of passes depends on its version, the processor's pixels do, too; there the recorded ones count."""
    image = drawn(*size)
    ours = prepare_picture(image)
    assert [1, *ours.grid] == processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    if size in RECORDED:
        assert checksum(ours.pixels) == RECORDED[size]
    if size not in RECORDED or Version(PIL.__version__) < Version("12.2"):
        check(processor, image, image)


def test_what_is_recorded_of_this_pillow_differs_for_its_order_of_passes_alone(processor):
    """The processor with our resizing before it: all else is as it was."""
    for size in RECORDED:
        ours = prepare_picture(drawn(*size))
        check(processor, ours.pixels, Image.fromarray(ours.pixels))


@pytest.mark.parametrize("mode", MODES)
def test_modes(processor, mode):
    image = picture(150, 90, mode)
    assert image.mode == mode
    check(processor, image, image, REFERENCE)


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in FORMATS.items() for mode in modes])
def test_files(processor, tmp_path, kind, mode):
    path = tmp_path / f"picture.{kind.lower()}"
    picture(123, 77, mode).save(path, kind)
    check(processor, path, str(path), REFERENCE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(processor, tmp_path, orientation):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(120, 60, "RGB").save(path, exif=exif)
    check(processor, path, str(path))


def test_first_frame_of_an_animation(processor, tmp_path):
    path = tmp_path / "moving.gif"
    frames = [picture(90, 60, "P"), picture(90, 60, "RGB").rotate(90).convert("P")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    check(processor, path, str(path))


def test_transparent_palette_and_encoded_bytes(processor, tmp_path):
    path = tmp_path / "palette.png"
    image = picture(100, 80, "P")
    image.save(path, transparency=0)
    check(processor, path, str(path))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    check(processor, buffer.getvalue(), str(path))


def test_other_pixel_limits():
    processor = Qwen2VLImageProcessorPil(min_pixels=40_000, max_pixels=90_000)
    for size in ((30, 30), (500, 900), (250, 300)):
        image = picture(*size, "RGB")
        ours = prepare_picture(image, ImageSettings(min_pixels=40_000, max_pixels=90_000))
        theirs = processor(images=[image], return_tensors="pt")
        assert [1, *ours.grid] == theirs["image_grid_thw"][0].tolist()
        torch.testing.assert_close(ours.patches, theirs["pixel_values"].float(), rtol=0, atol=1e-6)
