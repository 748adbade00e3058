"""Both layouts of config.json, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from m0 import RerankerConfig
from m0.errors import ConfigError
from tests.conftest import tiny_config

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


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
        ({"model_type": None}, "model_type is null"),
        ({"num_attention_heads": 5}, "not a multiple of its 5 heads"),
        ({"num_key_value_heads": 3}, "cannot be shared out over 3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window is true and holds from layer 1"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer 1 'sliding_attention'"),
        ({"layer_types": ["full_attention"]}, "layer_types is a list of 1"),
        ({"layer_types": 3}, "layer_types is 3"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.type is 'yarn'"),
        ({"rope_scaling": {"type": "mrope", "rope_type": "linear"}}, "rope_scaling.rope_type is 'linear'"),
        ({"rope_scaling": {"full_attention": {"rope_theta": 1.0}}}, "rope_scaling.full_attention holds"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "three whole numbers"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "adds up to 6"),
        ({"hidden_size": None}, "hidden_size is null"),
        ({"hidden_act": None}, "hidden_act is null"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_theta": 0}, "rope_theta is 0, but must be above 0"),
        ({"num_hidden_layers": 10**9}, "may be 4096 at most"),
        ({"hidden_size": 10**60}, "hidden_size is 1000"),
        ({"image_token_id": -1}, "image_token_id is -1, but must be at least 0"),
        ({"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config is"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors'"),
        ({"hidden_size": "64"}, "must be a whole number"),
        ({"num_hidden_layers": 0}, "must be above 0"),
        ({"vision_config": None}, "not in config.json: vision_config.hidden_size (transformers' default 3584)"),
        ({"vision_config": [1]}, "vision_config is [1], but must be a JSON object"),
        ({"text_config": [1]}, "text_config is [1], but must be a JSON object"),
        ({"text_config": {}}, "not in config.json: text_config.hidden_size (transformers' default 8192)"),
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_the_released_sizes_as_versions_of_transformers_write_them(path):
    """Up to 4.51 what equals a default is left out of vision_config; 4.52 to 4.57 write the decoder's sizes twice."""
    assert RerankerConfig.load(path) == RerankerConfig()


def test_there_is_a_file_of_each_layout():
    assert len(list(CONFIGS.glob("*.json"))) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": "x"}, "vision_config.embed_dim is 'x', but must be a whole number"),
        ({"depth": None}, "vision_config.depth is null"),
        ({"num_attention_heads": 0}, "vision_config.num_attention_heads is 0, but must be above 0"),
        ({"num_heads": 7}, "vision: the width (embed_dim) 64 is not a multiple of its 7 heads"),
        ({"mlp_ratio": False}, "vision_config.mlp_ratio is false, but must be a number"),
        ({"mlp_ratio": 1e-9}, "the MLP must be 1 to 1048576 wide"),
        ({"hidden_act": "gelu"}, "vision_config.hidden_act is 'gelu'"),
        ({"hidden_size": 32}, "vision_config.hidden_size is 32, but the decoder it feeds has a hidden_size of 64"),
        ({"in_channels": 4}, "vision_config.in_channels is 4, but a picture has 3"),
        ({"patch_size": [14, 14]}, "vision_config.patch_size is [14, 14]"),
        ({"rope_parameters": {"rope_type": "linear"}}, "vision_config.rope_parameters.rope_type is 'linear'"),
        ({"rope_theta": "x"}, "vision_config.rope_theta is 'x'"),
        ({"head_dim": 16}, "vision_config.head_dim is 16, but embed_dim 64 is split among 2 heads"),
    ],
)
def test_an_error_names_the_part(change, message):
    values = tiny_config().to_dict()
    with pytest.raises(ConfigError) as caught:
        RerankerConfig.from_dict({**values, "vision_config": {**values["vision_config"], **change}})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": "3"}, "text_config.num_hidden_layers is '3'"),
        ({"hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'"),
        ({"head_dim": 8}, "text_config.head_dim is 8, but hidden_size 64 is split among 4 heads"),
        ({"rope_parameters": {"mrope_section": "x"}}, "text_config.rope_parameters.mrope_section is 'x'"),
    ],
)
def test_an_error_names_the_nested_part(change, message):
    values = tiny_config().to_dict("nested")
    with pytest.raises(ConfigError) as caught:
        RerankerConfig.from_dict({**values, "text_config": {**values["text_config"], **change}})
    assert message in str(caught.value)


def without(values, *keys):
    """The same without these keys, those of an inner part after a dot."""
    left = json.loads(json.dumps(values))
    for key in keys:
        *parts, last = key.split(".")
        inner = left
        for part in parts:
            inner = inner[part]
        del inner[last]
    return left


MROPE = "mrope_section (transformers' default [16, 24, 24])"
HEADS = "num_attention_heads (transformers' default 64)"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("hidden_size", "hidden_size (transformers' default 8192)"),
        ("num_attention_heads", HEADS),
        ("num_key_value_heads", "num_key_value_heads (transformers' default 8)"),
        ("rope_scaling", f"rope_scaling.{MROPE}"),
        ("rope_scaling.mrope_section", f"rope_scaling.{MROPE}"),
        ("vision_config", "vision_config.hidden_size (transformers' default 3584)"),
        ("vision_config.hidden_size", "vision_config.hidden_size (transformers' default 3584)"),
        ("vision_config.num_heads", "vision_config.num_heads (transformers' default 16)"),
        ("vision_start_token_id", "vision_start_token_id (transformers' default 151652)"),
        ("image_token_id", "image_token_id (transformers' default 151655)"),
        ("num_hidden_layers", "num_hidden_layers (transformers' default 80)"),
        ("score_token_id", "score_token_id (m0's default 100)"),
    ],
)
def test_a_key_that_is_not_in_the_file_is_named(missing, said):
    values = tiny_config().to_dict()
    values["vision_config"] |= {"embed_dim": 72 if missing == "vision_config.num_heads" else 64}
    values |= {"layer_types": ["full_attention"] * 3}
    if missing == "score_token_id":
        values |= {"vocab_size": 100, "vision_start_token_id": 1, "vision_end_token_id": 2, "image_token_id": 3}
    RerankerConfig.from_dict(values | {"score_token_id": 4})
    with pytest.raises(ConfigError) as caught:
        RerankerConfig.from_dict(without(values, missing))
    assert str(caught.value).endswith(f" (not in config.json: {said}).")


def test_a_file_without_a_model_type():
    with pytest.raises(ConfigError, match=r"model_type is not in config\.json, but m0 implements 'qwen2_vl' only"):
        RerankerConfig.from_dict(without(tiny_config().to_dict(), "model_type"))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["hidden_size"], "text_config.hidden_size (transformers' default 8192)"),
        (["rope_parameters"], f"text_config.rope_parameters.{MROPE}"),
        (["rope_parameters.mrope_section", "num_attention_heads"], f"text_config.rope_parameters.{MROPE}, text_config.{HEADS}"),
    ],
)
def test_a_key_that_is_not_in_the_nested_part_is_named(missing, said):
    with pytest.raises(ConfigError) as caught:
        RerankerConfig.from_dict(without(tiny_config().to_dict("nested"), *(f"text_config.{key}" for key in missing)))
    assert str(caught.value).endswith(f" (not in config.json: {said}).")


def test_an_error_about_keys_that_are_in_the_file_names_no_default():
    values = without(tiny_config().to_dict(), "rms_norm_eps", "max_position_embeddings", "vision_config.depth")
    for change in ({"num_key_value_heads": 3}, {"hidden_size": 72}, {"image_token_id": 9999}, {"image_token_id": 508}):
        with pytest.raises(ConfigError) as caught:
            RerankerConfig.from_dict(values | change)
        assert "not in config.json" not in str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_read(tmp_path, mark):
    (tmp_path / "config.json").write_text(mark + json.dumps(tiny_config().to_dict()), encoding="utf-8")
    assert RerankerConfig.load(tmp_path) == tiny_config()


def test_what_changes_nothing_is_read(tmp_path):
    """A window for layers that are not there, the other names of things, and keys that nothing reads."""
    values = tiny_config().to_dict()
    values |= {"use_sliding_window": True, "max_window_layers": 3, "hidden_act": "swish", "head_dim": 5, "in_chans": 1}
    values |= {"layer_types": None, "text_config": None, "transformers_weights": "model.safetensors"}
    values["vision_config"] = {**values["vision_config"], "in_chans": 1, "spatial_patch_size": 16, "num_attention_heads": 2}
    assert RerankerConfig.from_dict(values) == tiny_config()


def test_the_tower_s_rotary_base_is_written(tmp_path):
    config = tiny_config()
    config = config.replace(vision=replace(config.vision, rope_theta=500.0))
    for layout in ("hub", "nested"):
        assert RerankerConfig.from_dict(config.to_dict(layout)) == config
    with pytest.raises(ConfigError, match=r"vision\.norm_eps is 1e-05"):
        config.replace(vision=replace(config.vision, norm_eps=1e-5)).to_dict()
