"""Which picture settings transformers takes from a folder, and that ours are the same; and that it reads those we write."""

from __future__ import annotations

import itertools
import json
import warnings

import pytest
import torch

from m0 import RerankerConfig
from m0.checkpoints.files import save_checkpoint
from m0.checkpoints.image_settings import load_image_settings
from m0.errors import CheckpointError
from m0.inputs.images import ImageSettings, prepare_picture
from m0.model.reranker_model import RerankerModel
from tests.checkpoints.test_image_settings import LIMITS, edges, pixels, write
from tests.conftest import noise, tiny_config

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TYPE = {"image_processor_type": "Qwen2VLImageProcessor"}


def theirs(folder):
    """The limits that transformers works with; None where it cannot read them or cannot resize by them."""
    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        processor(images=[noise(56, 56)], return_tensors="pt")
    except (ValueError, OSError, TypeError, AttributeError):
        return None
    return processor.size["shortest_edge"], min(processor.size["longest_edge"], 602112)  # the vendor's code caps it


def ours(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings = load_image_settings(folder, RerankerConfig())
        except CheckpointError:
            return None
    return settings.min_pixels, settings.max_pixels


SIZES = [None, {}, edges(784, 12544), pixels(1568, 25088), {"shortest_edge": 784}, {"longest_edge": 12544}, edges(None, None)]
ONLY_OURS = [{"size": pixels(1568, 25088)}]  # transformers 4.46 writes it, and 5 cannot resize by it
ONLY_OURS += [{**settings, key: value} for settings in ONLY_OURS for key, value in pixels(3136, 50176).items()]


@pytest.mark.parametrize("nested", [False, True])
def test_every_way_of_giving_the_limits(tmp_path, nested):
    tops = [{}, *({key: value} for key, value in pixels(3136, 50176).items()), pixels(3136, 50176)]
    number = 0
    for top, size in itertools.product(tops, SIZES):
        settings = {**top, **({} if size is None else {"size": size})}
        folder = tmp_path / str(number)
        folder.mkdir()
        content = {**TYPE, **settings}
        write(folder, *((None, {"processor_class": "Qwen2VLProcessor", "image_processor": content}) if nested else (content,)))
        expected = theirs(folder)
        if settings in ONLY_OURS:
            assert expected is None
            assert ours(folder) is not None
        else:
            assert ours(folder) == expected, settings
        number += 1
    assert number == 28


@pytest.mark.parametrize(
    ("preprocessor", "processor"),
    [
        (pixels(3136, 50176), {"image_processor": {**TYPE, "size": edges(784, 12544)}}),
        (pixels(3136, 50176), {"image_processor": TYPE}),
        (pixels(3136, 50176), {"image_processor": {}}),
        (pixels(3136, 50176), {"image_processor": None}),
        (pixels(3136, 50176), {"processor_class": "Qwen2VLProcessor", "max_pixels": 12544}),
        (pixels(3136, 50176), "{"),
        (pixels(3136, 50176), {"image_processor": [1]}),
        ("{", {"image_processor": {**TYPE, "size": edges(784, 12544)}}),
        (pixels(3136, 50176), None),
        (None, {"image_processor": {**TYPE, "size": edges(784, 12544)}}),
    ],
)
def test_which_of_two_files_counts(tmp_path, preprocessor, processor):
    (tmp_path / "config.json").write_text(json.dumps(RerankerConfig().to_dict()))
    write(tmp_path, {**TYPE, **preprocessor} if isinstance(preprocessor, dict) else preprocessor, processor)
    assert ours(tmp_path) == theirs(tmp_path)


@pytest.mark.parametrize(("settings", "limits"), LIMITS)
def test_what_is_read_here_is_read_there(tmp_path, settings, limits):
    """Where transformers resizes by a file, it is by the limits of our table."""
    write(tmp_path, {**TYPE, **settings})
    assert theirs(tmp_path) in (limits, None)


@pytest.mark.parametrize(
    "stands", [None, {"processor_class": "Qwen2VLProcessor", "image_processor": {**TYPE, "size": edges(4, 9)}}]
)
def test_transformers_reads_what_is_saved(tmp_path, stands):
    write(tmp_path, None, stands)
    settings = ImageSettings(min_pixels=784, max_pixels=50176)
    save_checkpoint(RerankerModel(tiny_config()), tmp_path, image_settings=settings)
    assert theirs(tmp_path) == (784, 50176) == ours(tmp_path)
    check_patches(AutoImageProcessor.from_pretrained(tmp_path), settings)


def test_patches_by_a_file_that_transformers_saves(tmp_path):
    saved = Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=50176)
    saved.save_pretrained(tmp_path / "old")
    content = json.loads((tmp_path / "old" / "preprocessor_config.json").read_text())
    (tmp_path / "new").mkdir()
    write(tmp_path / "new", None, {"image_processor": content, "processor_class": "Qwen2VLProcessor"})
    for folder in ("old", "new"):
        settings = load_image_settings(tmp_path / folder, RerankerConfig())
        assert (settings.min_pixels, settings.max_pixels) == (784, 50176)
        check_patches(AutoImageProcessor.from_pretrained(tmp_path / folder), settings)


def check_patches(processor, settings):
    picture = noise(400, 400)
    expected = processor(images=[picture], return_tensors="pt")
    found = prepare_picture(picture, settings)
    assert [1, *found.grid] == expected["image_grid_thw"][0].tolist() == [1, 16, 16]
    torch.testing.assert_close(found.patches, expected["pixel_values"].float(), rtol=0, atol=1e-6)
