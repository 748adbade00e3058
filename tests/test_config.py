"""Both layouts of config.json, and what is refused."""

import json

import pytest

from m0 import RerankerConfig
from m0.errors import ConfigError
from tests.conftest import tiny_config


def test_defaults_are_the_released_model():
    config = RerankerConfig()
    assert config.decoder.head_dim == 128
    assert config.vision.head_dim == 80
    assert config.vision.patch_dim == 1176
    assert config.vision.merged_size == 5120


@pytest.mark.parametrize("layout", ["hub", "nested"])
@pytest.mark.parametrize("config", [RerankerConfig(), tiny_config()], ids=["released", "tiny"])
def test_written_and_read_back(tmp_path, config, layout):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(layout)))
    assert RerankerConfig.load(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_5_vl"}, "model_type is 'qwen2_5_vl'"),
        ({"num_attention_heads": 5}, "not a multiple of its 5 heads"),
        ({"num_key_value_heads": 3}, "cannot be shared out over 3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type is 'yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "three whole numbers"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "adds up to 6"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "must be a whole number"),
        ({"num_hidden_layers": 0}, "must be above 0"),
        ({"vision_config": None}, "must be JSON objects"),
        ({"image_token_id": 99999}, "outside the vocabulary"),
    ],
)
def test_what_is_not_this_model_is_refused_in_one_sentence(tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**tiny_config().to_dict(), **change}))
    with pytest.raises(ConfigError) as caught:
        RerankerConfig.load(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_a_broken_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        RerankerConfig.load(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        RerankerConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_bias": float("nan")}, "logit_bias is nan"),
        ({"rope_scaling": "x"}, "rope_scaling is 'x'"),
        ({"rope_scaling": [1]}, "rope_scaling is"),
        ({"rope_scaling": {"mrope_section": [-2, 5, 5]}}, "mrope_section is"),
        ({"rope_scaling": {"mrope_section": [True, 3, 4]}}, "mrope_section is"),
        ({"image_token_id": 508}, "must all be different"),
    ],
)
def test_values_that_would_give_wrong_scores(change, message):
    with pytest.raises(ConfigError, match=message):
        RerankerConfig.from_dict({**tiny_config().to_dict(), **change})


def test_a_vision_tower_too_wide_and_a_file_too_deep(tmp_path):
    values = tiny_config().to_dict()
    values["vision_config"] = {**values["vision_config"], "mlp_ratio": 1e300}
    with pytest.raises(ConfigError, match="mlp_ratio"):
        RerankerConfig.from_dict(values)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not a readable JSON file"):
        RerankerConfig.load(tmp_path)
