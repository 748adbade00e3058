"""Picture settings of a checkpoint: two files, three places for each limit, and what would make other patches."""

import json
import warnings

import pytest

from m0 import Reranker, RerankerConfig
from m0.checkpoints.files import save_checkpoint
from m0.checkpoints.image_settings import load_image_settings
from m0.errors import CheckpointError, ImageError
from m0.inputs.images import IMAGE_MEAN, IMAGE_STD, ImageSettings
from m0.model.reranker_model import RerankerModel
from tests.conftest import noise, tiny_config

FULL = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD), "image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, "patch_size": 14, "resample": 3,
    "rescale_factor": 0.00392156862745098, "temporal_patch_size": 2, "processor_class": "Qwen2VLProcessor",
}  # fmt: skip


def edges(lowest, highest):
    return {"shortest_edge": lowest, "longest_edge": highest}


def pixels(lowest, highest):
    return {"min_pixels": lowest, "max_pixels": highest}


def write(folder, preprocessor=None, processor=None):
    for name, content in (("preprocessor_config.json", preprocessor), ("processor_config.json", processor)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def read(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = load_image_settings(folder, RerankerConfig())
    return settings.min_pixels, settings.max_pixels


LIMITS = [
    ({}, (3136, 602112)),
    (pixels(784, 12544), (784, 12544)),
    ({"size": edges(784, 12544)}, (784, 12544)),
    ({"size": pixels(784, 12544)}, (784, 12544)),
    ({"size": edges(1, 2) | pixels(3, 4), **pixels(784, 12544)}, (784, 12544)),
    ({"size": edges(784, 12544) | pixels(3, 4)}, (784, 12544)),
    ({"size": edges(784, 12544), "min_pixels": 1568}, (1568, 12544)),
    ({"size": edges(784, 12544), "max_pixels": 50176}, (784, 50176)),
    ({"size": {"shortest_edge": 784}, "max_pixels": 12544}, (784, 12544)),
    ({"size": {"longest_edge": 12544}, "min_pixels": 784}, (784, 12544)),
    ({"size": {"shortest_edge": 784, "max_pixels": 12544}}, (784, 12544)),
    ({"size": {}, **pixels(784, 12544)}, (784, 12544)),
    ({"size": None, "min_pixels": None, "max_pixels": 12544}, (3136, 12544)),
    ({"min_pixels": 784}, (784, 602112)),
    (pixels(3136, 12845056), (3136, 602112)),
    ({"size": edges(3136, 12845056)}, (3136, 602112)),
    (pixels(784.0, 12544.0), (784, 12544)),
    ({**FULL, "size": edges(784, 12544)}, (784, 12544)),
    ({"image_processor_type": "Qwen2VLImageProcessorFast", "image_mean": None, "do_resize": None, "crop_size": None}, (3136, 602112)),
    ({"image_processor_type": "Qwen2_5_VLImageProcessor", "do_center_crop": None}, (3136, 602112)),
]  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("settings", "limits"), LIMITS)
def test_limits_from_either_file(tmp_path, settings, limits, nested):
    write(tmp_path, *((None, {"processor_class": "Qwen2VLProcessor", "image_processor": settings}) if nested else (settings,)))
    assert read(tmp_path) == limits


REFUSED = [
    ({"min_pixels": 0}, "min_pixels is 0, but must be above 0"),
    ({"max_pixels": -5}, "max_pixels is -5, but must be above 0"),
    ({"max_pixels": "12544"}, "max_pixels is '12544', but must be a whole number"),
    ({"max_pixels": True}, "max_pixels is true, but must be a whole number"),
    ({"max_pixels": 12544.5}, "max_pixels is 12544.5, but must be a whole number"),
    ({"max_pixels": float("nan")}, "max_pixels is nan, but must be a whole number"),
    ({"max_pixels": float("inf")}, "max_pixels is inf, but must be a whole number"),
    ({"max_pixels": [12544]}, "max_pixels is [12544], but must be a whole number"),
    ({"max_pixels": 10**30}, "max_pixels is 1000000000000000000000000000000, but may be"),
    (pixels(12544, 784), "min_pixels is 12544 and max_pixels 784"),
    (pixels(700000, 800000), "min_pixels is 700000 and max_pixels 602112 (the most that m0 takes where max_pixels is not given; "),
    ({"max_pixels": 100, "min_pixels": 1}, "one visual token takes 784 pixels"),
    ({"size": {"shortest_edge": 3136}}, "size is {'shortest_edge': 3136}, but must hold shortest_edge and longest_edge"),
    ({"size": {"longest_edge": 12544}}, "size is {'longest_edge': 12544}, but must hold"),
    ({"size": {"max_pixels": 12544}}, "size is {'max_pixels': 12544}, but must hold"),
    ({"size": {"height": 448, "width": 448}}, "but must hold shortest_edge and longest_edge"),
    ({"size": {}}, "size is {}, but must hold"),
    ({"size": edges(None, None)}, "but must hold shortest_edge"),
    ({"size": edges(0, 12544)}, "size.shortest_edge is 0"),
    ({"size": edges(3136, "x")}, "size.longest_edge is 'x'"),
    ({"size": edges({"a": 1}, 2)}, "size.shortest_edge is {'a': 1}"),
    ({"size": 448}, "size is 448, but must be a JSON object"),
    ({"size": [448, 448]}, "size is [448, 448], but must be a JSON object"),
    ({"patch_size": 16}, "patch_size is 16, but by the model's config.json it is 14"),
    ({"merge_size": 1}, "merge_size is 1, but by the model's config.json it is 2"),
    ({"temporal_patch_size": "2"}, "temporal_patch_size is '2', but by"),
    ({"do_resize": False}, "do_resize is false, but m0 implements true only"),
    ({"do_rescale": False}, "do_rescale is false"),
    ({"do_normalize": "yes"}, "do_normalize is 'yes'"),
    ({"do_convert_rgb": False}, "do_convert_rgb is false"),
    ({"resample": 2}, "resample is 2, but m0 implements 3 only"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784"),
    ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean is [0.5, 0.5, 0.5], but m0 implements [0.48145466, 0.4578275, 0.40821073] only"),
    ({"image_std": [0.26862954, 0.26130258]}, "image_std is [0.26862954, 0.26130258]"),
    ({"image_std": 0.5}, "image_std is 0.5"),
    ({"image_std": [10**400, 1, 1]}, "image_std is [1000"),
    ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIPImageProcessor'"),
    ({"image_processor_type": 5}, "image_processor_type is 5"),
]  # fmt: skip


CAP = "the most that m0 takes where max_pixels is not given; preprocessor_config.json says 2000000"
FILE = "of preprocessor_config.json"
MUST = "but 0 < min <= max must hold."


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (pixels(1000000, 2000000), {}, f"min_pixels is 1000000 and max_pixels 602112 ({CAP}), {MUST}"),
        (pixels(1000000, 2000000), {"min_pixels": 700000}, f"min_pixels is 700000 (as given) and max_pixels 602112 ({CAP}), {MUST}"),
        (pixels(1000000, 2000000), {"max_pixels": 800000}, f"min_pixels is 1000000 ({FILE}) and max_pixels 800000 (as given), {MUST}"),
        (pixels(7056, 100352), {"max_pixels": 1000}, f"min_pixels is 7056 ({FILE}) and max_pixels 1000 (as given), {MUST}"),
        (pixels(7056, 100352), {"min_pixels": 200000}, f"min_pixels is 200000 (as given) and max_pixels 100352 ({FILE}), {MUST}"),
        (pixels(7056, 100352), {"min_pixels": 9000, "max_pixels": 8000}, f"9000 (as given) and max_pixels 8000 (as given), {MUST}"),
        (pixels(7056, 100352), {"max_pixels": 10}, "max_pixels is 10, but one visual token takes 784 pixels."),
        (pixels(7056, 100352), {"max_pixels": 0}, "max_pixels is 0, but must be a whole number of at least 1."),
        (pixels(7056, 100352), {"min_pixels": "9"}, "min_pixels is '9', but must be a whole number of at least 1."),
        ({"max_pixels": 2000}, {}, f"min_pixels is 3136 (m0's default) and max_pixels 2000, {MUST}"),
        ({"min_pixels": 700000}, {}, f"min_pixels is 700000 and max_pixels 602112 (m0's default), {MUST}"),
        ({}, {"max_pixels": 1000}, f"min_pixels is 3136 (m0's default) and max_pixels 1000 (as given), {MUST}"),
        (None, {"max_pixels": 1000}, f"min_pixels is 3136 (m0's default) and max_pixels 1000 (as given), {MUST}"),
        (None, {"min_pixels": 700000}, f"min_pixels is 700000 (as given) and max_pixels 602112 (m0's default), {MUST}"),
    ],
)  # fmt: skip
def test_a_message_says_where_a_limit_comes_from(tmp_path, settings, given, message):
    write(tmp_path, settings)
    with pytest.raises(ImageError if given else CheckpointError) as caught:
        load_image_settings(tmp_path, RerankerConfig(), given)
    lead = "" if given else f"{tmp_path}/preprocessor_config.json: "
    assert str(caught.value).endswith(message)
    assert str(caught.value).startswith(f"{lead}m")


def test_limits_that_were_given_stand_in_for_the_file_s(tmp_path, tiny_directory):
    """They need not go together with what they replace."""
    write(tmp_path, pixels(1000000, 2000000))
    for given, limits in (
        ({"max_pixels": 2000000}, (1000000, 2000000)),
        ({"min_pixels": 784, "max_pixels": None}, (784, 602112)),
        ({"min_pixels": 784, "max_pixels": 784}, (784, 784)),
    ):
        settings = load_image_settings(tmp_path, RerankerConfig(), given)
        assert (settings.min_pixels, settings.max_pixels) == limits
    with pytest.raises(ImageError) as caught:
        Reranker.from_pretrained(tiny_directory, max_pixels=1000)
    assert str(caught.value) == (f"min_pixels is 3136 (of preprocessor_config.json) and max_pixels 1000 (as given), {MUST}")
    with pytest.raises(ImageError) as caught:
        ImageSettings(max_pixels=1000)
    assert str(caught.value) == f"min_pixels is 3136 (the default) and max_pixels 1000, {MUST}"


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_is_refused_is_named_with_its_file(tmp_path, settings, message, nested):
    write(tmp_path, *((None, {"image_processor": settings}) if nested else (settings,)))
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    text = str(caught.value)
    file = "processor_config.json: image_processor" if nested else "preprocessor_config.json:"
    assert f"{tmp_path}/{file}" in text
    assert message in text
    assert "\n" not in text
    assert text.endswith(".")


def test_limits_that_equal_a_config_of_other_patches(tmp_path):
    config = RerankerConfig.from_dict({**RerankerConfig().to_dict(), "vision_config": {"hidden_size": 1536, "patch_size": 16}})
    settings = load_image_settings(write(tmp_path, {"patch_size": 16, "max_pixels": 12544}), config)
    assert (settings.patch_size, settings.factor, settings.max_pixels) == (16, 32, 12544)


@pytest.mark.parametrize(
    ("preprocessor", "processor", "limits"),
    [
        (pixels(784, 12544), {"processor_class": "Qwen2VLProcessor"}, (784, 12544)),  # as older versions write it
        (pixels(784, 12544), {"image_processor": None}, (784, 12544)),
        (pixels(784, 12544), {"image_processor": {"size": edges(784, 12544)}}, (784, 12544)),
        (
            pixels(3136, 12845056),
            {"image_processor": {"size": edges(3136, 602112)}},
            (3136, 602112),
        ),  # ours is 602112 by either
        ({}, {"image_processor": {}}, (3136, 602112)),
        (None, {"min_pixels": 784, "max_pixels": 12544}, (3136, 602112)),  # not where picture settings stand
        (None, None, (3136, 602112)),
    ],
)
def test_two_files_that_agree_are_no_matter(tmp_path, preprocessor, processor, limits):
    assert read(write(tmp_path, preprocessor, processor)) == limits


@pytest.mark.parametrize(
    ("preprocessor", "processor", "limits", "told"),
    [
        (pixels(3136, 50176), {"image_processor": {"size": edges(784, 12544)}}, (784, 12544), "(3136 to 50176 pixels)"),
        (pixels(784, 50176), {"image_processor": {}}, (3136, 602112), "(784 to 50176 pixels)"),
        ("{", {"image_processor": pixels(784, 12544)}, (784, 12544), "is not a readable JSON file"),
        ({"do_resize": False}, {"image_processor": pixels(784, 12544)}, (784, 12544), "do_resize is false"),
    ],
)
def test_two_files_that_contradict_each_other(tmp_path, preprocessor, processor, limits, told):
    write(tmp_path, preprocessor, processor)
    with pytest.warns(UserWarning, match=r"processor_config\.json .*was used") as caught:
        settings = load_image_settings(tmp_path, RerankerConfig())
    assert (settings.min_pixels, settings.max_pixels) == limits
    (warning,) = caught
    assert told in str(warning.message)
    assert "\n" not in str(warning.message)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ("{", "is not a readable JSON file"),
        ("[1]", "holds a JSON list, not an object"),
        ("[" * 100_000, "is not a readable JSON file"),
        ({"image_processor": [1]}, "image_processor is [1], but must be a JSON object"),
        ({"image_processor": "x"}, "image_processor is 'x', but must be a JSON object"),
    ],
)
def test_a_broken_file_that_would_count_is_refused(tmp_path, processor, message):
    """As transformers does it: another file that could be read is no reason to pass it over."""
    write(tmp_path, pixels(784, 12544), processor)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "processor_config.json") in str(caught.value)


def test_scores_are_by_the_file_that_counts(tiny_directory, tmp_path):
    """And the warning points at the line that loads the model."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(tiny_directory / name)
    pair = ("waves", {"image": noise(400, 300)})
    expected = {
        limit: Reranker.from_pretrained(tiny_directory, dtype="float32", min_pixels=784, max_pixels=limit).logits([pair])
        for limit in (12544, 50176)
    }
    assert expected[12544] != expected[50176]
    write(tmp_path, None, {"image_processor": {**FULL, "size": edges(784, 12544)}})
    assert Reranker.from_pretrained(tmp_path, dtype="float32").logits([pair]) == expected[12544]
    write(tmp_path, pixels(784, 50176))
    with pytest.warns(UserWarning, match="contradicts") as caught:
        both = Reranker.from_pretrained(tmp_path, dtype="float32")
    assert caught[0].filename == __file__
    assert both.logits([pair]) == expected[12544]
    (tmp_path / "processor_config.json").unlink()
    assert Reranker.from_pretrained(tmp_path, dtype="float32").logits([pair]) == expected[50176]


def test_saving_leaves_no_file_of_other_settings(tmp_path):
    """A processor_config.json that lay there would win over what is saved; its other keys are kept."""
    model = RerankerModel(tiny_config())
    other = {"processor_class": "Qwen2VLProcessor", "video_processor": {"fps": 2}, "image_processor": {"size": edges(1, 2)}}
    write(tmp_path, None, other)
    save_checkpoint(model, tmp_path, image_settings=ImageSettings(min_pixels=784, max_pixels=12544))
    assert read(tmp_path) == (784, 12544)
    kept = json.loads((tmp_path / "processor_config.json").read_text())
    assert {key: value for key, value in kept.items() if key != "image_processor"} == {
        "processor_class": "Qwen2VLProcessor",
        "video_processor": {"fps": 2},
    }
    legacy = {"processor_class": "Qwen2VLProcessor"}
    write(tmp_path, None, legacy)
    save_checkpoint(model, tmp_path, image_settings=ImageSettings(min_pixels=784, max_pixels=50176))
    assert json.loads((tmp_path / "processor_config.json").read_text()) == legacy
    assert read(tmp_path) == (784, 50176)


def test_saving_beside_a_file_that_cannot_be_read_writes_nothing(tmp_path):
    write(tmp_path, None, "{")
    with pytest.raises(CheckpointError, match=r"processor_config\.json is not a readable JSON file"):
        save_checkpoint(RerankerModel(tiny_config()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
