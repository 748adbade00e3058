"""config.json as transformers reads it: what a file leaves out, in either layout, alone and in pairs; and what it computes then."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from m0 import RerankerConfig, RerankerModel
from m0.errors import ConfigError
from m0.model.config_file import DECODER_DEFAULTS, TOKEN_DEFAULTS, VISION_DEFAULTS, decoder_sizes, split_config, vision_sizes
from tests.conftest import fill_randomly, noise

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from transformers import PreTrainedConfig, Qwen2VLConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from m0.inputs.images import prepare_picture
from m0.model.rotary import mrope_positions
from tests.parity.reference import ReferenceReranker, share_back

NOT_COMPUTED = {"initializer_range", "use_cache", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Fields that change nothing in a forward pass of a trained model: of first values, generation and training."""
# Every value another than its default.
TEXT = {
    "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "intermediate_size": 8960, "vocab_size": 151936, "rms_norm_eps": 1e-6, "max_position_embeddings": 65536,
    "rope_theta": 5e5, "rope_scaling": {"type": "mrope", "mrope_section": [8, 28, 28]}, "hidden_act": "silu",
    "use_sliding_window": False, "sliding_window": 77, "max_window_layers": 3,
}  # fmt: skip
VISION = {
    "depth": 24, "embed_dim": 1024, "num_heads": 8, "mlp_ratio": 3, "hidden_size": 1536, "patch_size": 16, "in_channels": 3,
    "temporal_patch_size": 4, "spatial_merge_size": 4, "hidden_act": "quick_gelu", "rope_parameters": {"rope_theta": 999.0},
}  # fmt: skip
TOKENS = {"vision_start_token_id": 1, "vision_end_token_id": 2, "image_token_id": 3}


def file_of(text, vision, tokens, layout):
    values = {"model_type": "qwen2_vl", **tokens, "vision_config": vision}
    return {**values, **text} if layout == "flat" else {**values, "text_config": text}


def theirs(values):
    """Their reading under our names: the arguments of a DecoderConfig, those of a VisionConfig, the merger's width, the ids."""
    read = Qwen2VLConfig.from_dict(copy.deepcopy(values))
    text, vision = read.text_config, read.vision_config
    decoder = {
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads,
        "intermediate_size": text.intermediate_size,
        "vocab_size": text.vocab_size,
        "norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_parameters["rope_theta"],
        "mrope_section": tuple(text.rope_parameters.get("mrope_section", (16, 24, 24))),  # as their rotary module takes it
        "max_positions": text.max_position_embeddings,
    }
    tower = {
        "depth": vision.depth,
        "hidden_size": vision.embed_dim,
        "num_heads": vision.num_heads,
        "mlp_ratio": vision.mlp_ratio,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "in_channels": vision.in_channels,
        "rope_theta": vision.rope_parameters["rope_theta"],
    }
    return decoder, tower, vision.hidden_size, {key: getattr(read, key) for key in TOKENS}


def makes_a_model(decoder, tower, output, tokens):
    """Whether sizes go together: said here again, independently."""
    head, tower_head = decoder["hidden_size"] // decoder["num_heads"], tower["hidden_size"] // tower["num_heads"]
    return (
        output == decoder["hidden_size"]
        and head * decoder["num_heads"] == decoder["hidden_size"]
        and decoder["num_heads"] % decoder["num_kv_heads"] == 0
        and 2 * sum(decoder["mrope_section"]) == head
        and tower_head * tower["num_heads"] == tower["hidden_size"]
        and tower_head % 4 == 0
        and max(tokens.values()) < decoder["vocab_size"]
    )


def compare(values):
    """Ours equals theirs, and is refused just where it makes no model. Returns whether it was accepted."""
    decoder, tower, output, tokens = theirs(values)
    _, text, vision = split_config(values)
    assert decoder_sizes(text) == decoder
    assert vision_sizes(vision) == tower
    assert vision.integer("hidden_size") == output
    if not makes_a_model(decoder, tower, output, tokens):
        with pytest.raises(ConfigError) as caught:
            RerankerConfig.from_dict(values)
        assert "\n" not in str(caught.value)
        return False
    ours = RerankerConfig.from_dict(values)
    assert {key: getattr(ours, key) for key in TOKENS} == tokens
    assert ours == RerankerConfig(ours.vision, ours.decoder, **tokens)
    return True


def test_our_defaults_are_theirs():
    """And a field that a new version of transformers adds is looked at by a person first."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for kind, ours in ((Qwen2VLTextConfig, DECODER_DEFAULTS), (Qwen2VLVisionConfig, VISION_DEFAULTS)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in common}
        own = {
            key: defaults.pop(key) for key in list(defaults) if key in NOT_COMPUTED or key in ("rope_parameters", "layer_types")
        }
        assert all(own[key] is None for key in ("rope_parameters", "layer_types") if key in own)
        assert {key: value for key, value in ours.items() if key not in ("rope_theta", "mrope_section")} == defaults
        assert kind().rope_parameters["rope_theta"] == ours["rope_theta"]
    assert {field.name: field.default for field in dataclasses.fields(Qwen2VLConfig) if field.name in TOKENS} == TOKEN_DEFAULTS


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_each_key_left_out_alone_and_in_pairs(layout):
    keys = [*((0, key) for key in TEXT), *((1, key) for key in VISION), *((2, key) for key in TOKENS)]
    left_out = [(), *itertools.combinations(keys, 1), *itertools.combinations(keys, 2)]
    accepted = 0
    for out in left_out:
        parts = [{key: v for key, v in part.items() if (n, key) not in out} for n, part in enumerate((TEXT, VISION, TOKENS))]
        accepted += compare(file_of(*parts, layout))
    assert len(left_out) == 1 + 28 + 28 * 27 // 2
    assert accepted > 100  # and many do not go together: 8192 wide, or 64 heads


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_each_key_left_out_of_sizes_that_equal_the_defaults(layout):
    """All of these make a model, of the largest size of the family."""
    vision = {"hidden_size": 8192}
    text = {key: value for key, value in DECODER_DEFAULTS.items() if key != "mrope_section"}
    for out in [(), *itertools.combinations(text, 1), *itertools.combinations(text, 2), tuple(text)]:
        values = file_of({key: v for key, v in text.items() if key not in out}, vision, {}, layout)
        assert compare(values)


FILE = file_of(TEXT, VISION, TOKENS, "flat")
NESTED = file_of(TEXT, VISION, TOKENS, "nested")
NO_ROPE = {key: value for key, value in TEXT.items() if "rope" not in key}
MROPE = {"rope_type": "default", "rope_theta": 123.0, "mrope_section": [8, 28, 28]}


@pytest.mark.parametrize(
    "values",
    [
        {key: value for key, value in FILE.items() if key != "vision_config"},
        {**FILE, "vision_config": None},
        {**FILE, "vision_config": {}},
        {**FILE, "text_config": None},
        {**FILE, "text_config": {}},
        {"model_type": "qwen2_vl"},
        {**FILE, "num_key_value_heads": None},
        {**NESTED, "text_config": {**TEXT, "num_key_value_heads": None}},
        {**NESTED, "hidden_size": 64, "rope_theta": 7.0, "num_hidden_layers": 3},  # flat keys beside text_config
        {**FILE, "vision_config": {**VISION, "num_attention_heads": 4}},
        {**FILE, "vision_config": {**VISION, "num_hidden_layers": 5}},
        {**FILE, "vision_config": {"hidden_size": 1536, "num_attention_heads": 32, "num_hidden_layers": 5}},
        {**FILE, "vision_config": {**VISION, "in_chans": 1, "spatial_patch_size": 14}},
        {**FILE, "vision_config": {"hidden_size": 1536, "in_chans": 1, "spatial_patch_size": 16}},
        {**FILE, "vision_config": {**VISION, "rope_theta": 5.0}},
        {**FILE, "vision_config": {"hidden_size": 1536, "rope_theta": 5.0}},
        {**FILE, "vision_config": {**VISION, "rope_scaling": {"rope_type": "default", "rope_theta": 5.0}}},
        {**FILE, "vision_config": {**VISION, "rope_scaling": {}, "rope_parameters": {"rope_type": "axial"}}},
        file_of(NO_ROPE, VISION, TOKENS, "flat"),
        file_of({**NO_ROPE, "rope_parameters": MROPE}, VISION, TOKENS, "flat"),
        file_of({**NO_ROPE, "rope_parameters": MROPE}, VISION, TOKENS, "nested"),
        file_of({**TEXT, "rope_parameters": MROPE}, VISION, TOKENS, "nested"),  # rope_scaling wins
        file_of({**NO_ROPE, "rope_scaling": None, "rope_theta": 9.0, "rope_parameters": MROPE}, VISION, TOKENS, "nested"),
        file_of({**NO_ROPE, "rope_scaling": {}, "rope_parameters": MROPE}, VISION, TOKENS, "flat"),
        file_of({**NO_ROPE, "rope_scaling": {"type": "linear", "rope_type": "mrope"}}, VISION, TOKENS, "flat"),
        file_of({**TEXT, "use_sliding_window": True, "max_window_layers": 28}, VISION, TOKENS, "nested"),
        file_of({**TEXT, "use_sliding_window": True, "sliding_window": None}, VISION, TOKENS, "nested"),
        file_of({**TEXT, "use_sliding_window": None}, VISION, TOKENS, "flat"),
        file_of({**TEXT, "use_sliding_window": True, "layer_types": ["full_attention"] * 28}, VISION, TOKENS, "nested"),
        file_of({**TEXT, "head_dim": 128}, VISION, TOKENS, "nested"),
        file_of({**TEXT, "head_dim": 64}, VISION, TOKENS, "flat"),
    ],
)
def test_keys_that_contradict_each_other(values):
    compare(values)


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("key", [key for key in TEXT if key not in ("rope_scaling", "sliding_window", "max_window_layers")])
def test_what_null_means(layout, key):
    """Where transformers takes a null, so do we, and to the same effect; where it does not, it is refused."""
    values = file_of({**TEXT, key: None}, VISION, TOKENS, layout)
    try:
        read = theirs(values)
    except Exception:
        read = None
    if read is None or None in read[0].values():  # refused there, or no model can be made of it
        with pytest.raises(ConfigError, match=f"{key} is null"):
            RerankerConfig.from_dict(values)
    else:
        compare(values)


def sliding(values):
    kinds = Qwen2VLConfig.from_dict(copy.deepcopy(values)).text_config.layer_types
    return "sliding_attention" in kinds


@pytest.mark.parametrize("layers", [2, 3, 4, None])
@pytest.mark.parametrize("use", [True, False, None, "absent"])
@pytest.mark.parametrize("window", [None, 16, "absent"])
def test_layers_with_a_window_are_refused_and_no_others(layers, use, window):
    given = {"max_window_layers": layers, "use_sliding_window": use, "sliding_window": window}
    text = {key: value for key, value in TEXT.items() if key not in given} | {"num_hidden_layers": 3}
    text |= {
        key: value for key, value in given.items() if value != "absent" and not (key == "max_window_layers" and value is None)
    }
    values = file_of(text, VISION, TOKENS, "nested")
    if sliding(values):
        with pytest.raises(ConfigError, match="use_sliding_window"):
            RerankerConfig.from_dict(values)
    else:
        assert compare(values)


SMALL_TEXT = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
    "vocab_size": 512,
}  # fmt: skip
SMALL_VISION = {"embed_dim": 64, "hidden_size": 256, "num_heads": 2, "depth": 2}


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ({}, {}),  # norm_eps 1e-5, no rotary settings at all
        ({"num_key_value_heads": None}, {"num_attention_heads": 4}),
        ({"rope_theta": 100.0}, {"rope_theta": 10.0, "mlp_ratio": 2}),
        ({"rope_parameters": {"rope_theta": 50.0, "mrope_section": [4, 30, 30]}}, {"in_chans": 1, "spatial_patch_size": 16}),
    ],
)
def test_states_of_a_model_whose_file_leaves_much_out(layout, text, vision):
    tokens = {"vision_start_token_id": 508, "vision_end_token_id": 509, "image_token_id": 510}
    values = file_of({**SMALL_TEXT, **text}, {**SMALL_VISION, **vision}, tokens, layout)
    config = RerankerConfig.from_dict(values)
    model = RerankerModel(config).eval()
    fill_randomly(model)
    with torch.no_grad():  # small embeddings, where the norms' epsilon counts
        model.decoder.embed_tokens.weight.mul_(0.05)
    reference = ReferenceReranker.__new__(ReferenceReranker)
    nn.Module.__init__(reference)
    described = Qwen2VLConfig.from_dict(copy.deepcopy(values))
    described._attn_implementation = "sdpa"
    reference.model = Qwen2VLModel(described)
    reference.score = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    reference.image_token_id = config.image_token_id
    share_back(model, reference)
    picture = prepare_picture(noise(84, 56))
    ids = torch.tensor([5, 6, 508, *[510] * picture.num_tokens, 509, 7, 8, 100])
    with torch.no_grad():
        expected = reference.eval().states([ids], picture.patches, [picture.grid])
        positions = mrope_positions([3, picture.token_grid, 4])
        found = final_state(model, ids, positions, picture)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    for written in ("hub", "nested"):
        assert RerankerConfig.from_dict(config.to_dict(written)) == config


def final_state(model, ids, positions, picture):
    seen = []
    hook = model.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        model(ids, positions, [len(ids)], picture.patches, [picture.grid])
    finally:
        hook.remove()
    return seen[0]
