"""Adapters of every kind that peft makes, in the names of old and new transformers: read here, saved here, read by peft again."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch

from m0.checkpoints.adapters import config as lora_config
from m0.checkpoints.adapters.switching import Adapters
from m0.errors import AdapterError

peft = pytest.importorskip("peft", reason="needs the extra 'parity'")
from peft.tuners.lora.config import EvaConfig, MontecloraConfig, VeloraConfig

from tests.parity.test_lora import HubNames, scores, twins

pytestmark = pytest.mark.filterwarnings("ignore")
Q, FULL = ["q_proj"], ["q_proj", "v_proj", "down_proj", "qkv", "fc2"]
DECODER = {"released": r"model\.", "newer": r"model\.language_model\."}
VISION = {"released": r"visual\.", "newer": r"model\.visual\."}

# Of each kind the settings; where a name differs between the layouts, "D." and "V." stand for the prefixes.
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rslora and dora": {"use_rslora": True, "use_dora": True},
    "rank 1": {"r": 1},
    "alpha of 0.5": {"lora_alpha": 0.5},
    "dropout": {"lora_dropout": 0.3},
    "lora_bias": {"lora_bias": True},
    "lora_bias, rslora": {"lora_bias": True, "use_rslora": True},
    "lora_bias where every layer has one": {"lora_bias": True, "target_modules": ["q_proj", "qkv"]},
    "ranks by end": {"rank_pattern": {"q_proj": 2, "fc2": 6}},
    "ranks by pattern": {"rank_pattern": {r"^D.layers\.[01]\..*": 3}},
    "alphas by end": {"alpha_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 30}},
    "alphas by pattern": {"alpha_pattern": {r"D.layers\.1\..*|V.blocks\.0\..*": 40}},
    "ranks and alphas, rslora, dora": {
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"D.layers.1.self_attn.q_proj": 20},
        "use_rslora": True,
        "use_dora": True,
    },
    "SEQ_CLS": {"task_type": "SEQ_CLS"},
    "SEQ_CLS, score named": {"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    "TOKEN_CLS": {"task_type": "TOKEN_CLS"},
    "QUESTION_ANS": {"task_type": "QUESTION_ANS"},
    "FEATURE_EXTRACTION": {"task_type": "FEATURE_EXTRACTION"},
    "score": {"modules_to_save": ["score"]},
    "a layer of the score head": {"modules_to_save": ["score.0"]},
    "token table": {"modules_to_save": ["embed_tokens"]},
    "every norm": {"modules_to_save": ["norm"]},
    "every mlp": {"modules_to_save": ["mlp"], "target_modules": Q},
    "a layer's mlp": {"modules_to_save": ["D.layers.1.mlp"], "target_modules": Q},
    "merger": {"modules_to_save": ["merger", "score"], "target_modules": Q},
    "lm_head that is not there": {"modules_to_save": ["lm_head", "score"]},
    "a target that is saved": {"modules_to_save": ["D.layers.1.mlp"], "target_modules": ["q_proj", "down_proj"]},
    "vision tower alone": {"target_modules": r"V.blocks.*(qkv|fc1)"},
    "decoder alone": {"target_modules": r"D.layers.*_proj"},
    "all but vision": {"target_modules": r"(?!V.).*_proj"},
    "merger and head": {"target_modules": ["merger.mlp.0", "score.0", "score.2"]},
    "one layer by full name": {"target_modules": ["D.layers.2.mlp.up_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear, SEQ_CLS": {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    "excluded by end": {"exclude_modules": ["layers.0.self_attn.q_proj", "qkv"]},
    "excluded by pattern": {"exclude_modules": r"V.*|.*\.2\..*"},
    "some layers": {"layers_to_transform": [0, 2]},
    "one layer": {"layers_to_transform": 1},
    "some layers of the decoder": {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "some layers of both": {"layers_to_transform": [1], "layers_pattern": ["layers", "blocks"]},
    "no layers named": {"layers_to_transform": []},
    "bias all": {"bias": "all"},
    "bias all, score": {"bias": "all", "modules_to_save": ["score"]},
    "bias all, dora": {"bias": "all", "use_dora": True},
    "bias lora_only": {"bias": "lora_only"},
    "bias lora_only, lora_bias": {"bias": "lora_only", "lora_bias": True},
    "patches": {"target_modules": ["proj"]},
    "patches, rslora and dora": {"target_modules": ["proj", "qkv"], "use_dora": True, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "drawn, not zero": {"init_lora_weights": False},
    "mica": {"init_lora_weights": "mica"},
    "eva": {"init_lora_weights": "eva", "eva_config": EvaConfig(), "rank_pattern": {"D.layers.0.self_attn.q_proj": 2}},
    "velora": {"velora_config": VeloraConfig(num_groups=4)},
    "monteclora": {"monteclora_config": MontecloraConfig(num_samples=2, buffer_size=2)},
    "qalora beside plain layers": {"use_qalora": True},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "megatron named": {"megatron_core": "megatron.core"},
    "weights tied": {"ensure_weight_tying": True},
}


def settings(kind: dict, layout: str) -> dict:
    """The kind's settings with the layout's names."""

    def named(value):
        if isinstance(value, str):
            for short, prefixes in (("D.", DECODER), ("V.", VISION)):
                regular = any(sign in value for sign in "*(^")
                value = value.replace(short, prefixes[layout] if regular else prefixes[layout].replace("\\", ""))
            return value
        if isinstance(value, list):
            return [named(entry) for entry in value]
        if isinstance(value, dict):
            return {named(key): entry for key, entry in value.items()}
        return value

    plain = {"r": 4, "lora_alpha": 12, "target_modules": FULL, **copy.deepcopy(kind)}
    return {key: named(value) for key, value in plain.items()}


@functools.cache
def built():
    return twins()


def pair():
    """Reference and ours, as new."""
    return copy.deepcopy(built())


def as_named(reference, layout):
    return HubNames(reference) if layout == "released" else reference


def trained(wrapped):
    """Whatever learns is moved, so that the adapter is not the zero it starts as."""
    generator = torch.Generator().manual_seed(9)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return wrapped.eval()


def test_there_are_kinds_enough():
    assert 2 * len(KINDS) >= 80


@pytest.mark.parametrize("layout", ["released", "newer"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_and_back(tmp_path, kind, layout):
    reference, model = pair()
    before = scores(reference, model)[1]
    config = peft.LoraConfig(**settings(KINDS[kind], layout))
    wrapped = trained(peft.get_peft_model(as_named(reference, layout), config))
    wrapped.save_pretrained(tmp_path / "theirs")
    adapters = Adapters(model)
    adapters.load(tmp_path / "theirs", "one")
    theirs, ours = scores(wrapped.base_model.model, model)
    assert (theirs - before).abs().max() > 2e-4, "the adapter must matter for the comparison to mean anything"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    adapters.save(tmp_path / "ours")
    fresh, again = pair()
    read = peft.PeftModel.from_pretrained(as_named(fresh, layout), tmp_path / "ours").eval()
    Adapters(again).load(tmp_path / "ours")
    theirs, ours_again = scores(read.base_model.model, again)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert torch.equal(ours_again, ours)

    if config.lora_bias and "down_proj" in config.target_modules:
        with pytest.raises(AdapterError, match="a layer without one, and cannot be merged"):
            adapters.merge()
        with pytest.raises(RuntimeError, match="has no bias"):
            read.merge_adapter()
    else:
        adapters.merge()
        torch.testing.assert_close(scores(reference, model)[1], ours, rtol=0, atol=1e-5)
        adapters.unmerge()
    adapters.activate(None)
    assert torch.equal(scores(reference, model)[1], before)


# --- other names, other ways to begin, what is refused -------------------------------------------------------------------


class Inside(torch.nn.Module):
    """The reference as a part of something else."""

    def __init__(self, reference):
        super().__init__()
        self.reranker = torch.nn.ModuleDict({"first": reference})

    def forward(self, *arguments):
        return self.reranker["first"](*arguments)


PARTS = {
    "backbone": lambda reference: reference.model,
    "text model": lambda reference: reference.model.language_model,
    "inside another": Inside,
    "inside, released": lambda reference: Inside(HubNames(reference)),
}
PART_KINDS = {
    "names": {"target_modules": FULL},
    "pattern": {"target_modules": r".*layers\.[02]\..*(q_proj|down_proj)", "rank_pattern": {r".*layers\.0\..*": 2}},
    "layers": {"layers_to_transform": [1], "layers_pattern": ["layers"], "target_modules": FULL},
    "norms": {"modules_to_save": ["norm"], "target_modules": FULL, "bias": "lora_only"},
}


@pytest.mark.parametrize("kind", PART_KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_adapters_made_on_a_part_of_the_model_or_around_it(tmp_path, part, kind):
    reference, model = pair()
    before = scores(reference, model)[1]
    config = peft.LoraConfig(r=4, lora_alpha=12, **PART_KINDS[kind])
    trained(peft.get_peft_model(PARTS[part](reference), config)).save_pretrained(tmp_path / "theirs")
    adapters = Adapters(model)
    adapters.load(tmp_path / "theirs")
    theirs, ours = scores(reference, model)
    assert (theirs - before).abs().max() > 2e-4
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    adapters.save(tmp_path / "ours")
    fresh, again = pair()
    peft.PeftModel.from_pretrained(PARTS[part](fresh), tmp_path / "ours").eval()
    torch.testing.assert_close(scores(fresh, again)[0], theirs, rtol=0, atol=1e-5)


def test_a_head_within_another_module_is_found(tmp_path):
    reference, model = pair()
    config = peft.LoraConfig(r=4, target_modules=Q, modules_to_save=["score"])
    wrapped = trained(peft.get_peft_model(Inside(reference), config))
    wrapped.save_pretrained(tmp_path)
    Adapters(model).load(tmp_path)
    theirs, ours = scores(wrapped.base_model.model, model)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
def test_adapters_that_began_with_the_base_weights_are_read_once_converted(tmp_path, start):
    reference, model = pair()
    wrapped = peft.get_peft_model(reference, peft.LoraConfig(r=4, lora_alpha=12, target_modules=FULL, init_lora_weights=start))
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "first")
    wrapped.peft_config["default"].init_lora_weights = start
    trained(wrapped)
    theirs = scores(wrapped.base_model.model, model)[0]
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    wrapped.save_pretrained(tmp_path / "moved")
    adapters = Adapters(model)
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion") as caught:
        adapters.load(tmp_path / "moved")
    assert "\n" not in str(caught.value)
    adapters.load(tmp_path / "plain")
    torch.testing.assert_close(scores(reference, model)[1], theirs, rtol=0, atol=2e-5)


def test_a_token_table_that_peft_adds_by_itself(tmp_path):
    """`save_embedding_layers=True`: the tensors are not announced, and peft reads them into the model."""
    reference, model = pair()
    reference.get_input_embeddings = lambda: reference.model.language_model.embed_tokens
    reference.get_output_embeddings = lambda: None
    wrapped = trained(peft.get_peft_model(reference, peft.LoraConfig(r=4, target_modules=Q)))
    with torch.no_grad():
        reference.model.language_model.embed_tokens.weight.mul_(1.5)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    Adapters(model).load(tmp_path)
    theirs, ours = scores(reference, model)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_files_in_sixteen_bits(tmp_path):
    reference, model = pair()
    wrapped = trained(peft.get_peft_model(reference, peft.LoraConfig(r=4, target_modules=FULL, modules_to_save=["score"])))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(parameter.bfloat16())
    theirs = scores(reference, model)[0]
    state = {key: value.bfloat16() for key, value in peft.get_peft_model_state_dict(wrapped).items()}
    wrapped.save_pretrained(tmp_path)
    from safetensors.torch import save_file

    save_file(state, tmp_path / "adapter_model.safetensors")
    Adapters(model).load(tmp_path)
    torch.testing.assert_close(scores(reference, model)[1], theirs, rtol=0, atol=1e-5)


REFUSED = {
    "a token table": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens, a token table"),
    "single tokens": ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, "trainable_token_indices"),
    "aLoRA": ({"alora_invocation_tokens": [3, 4]}, "alora_invocation_tokens"),
    "BD-LoRA": ({"use_bdlora": peft.tuners.lora.config.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)}, "use_bdlora"),
    "KaSA": ({"kasa_config": peft.tuners.lora.config.KasaConfig()}, "kasa_config"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "OLoRA": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_computed_otherwise_is_refused(tmp_path, kind):
    reference, model = pair()
    changes, message = REFUSED[kind]
    peft.get_peft_model(reference, peft.LoraConfig(**{"r": 4, "target_modules": Q, **changes})).save_pretrained(tmp_path)
    before = scores(reference, model)[1]
    adapters = Adapters(model)
    with pytest.raises(AdapterError) as caught:
        adapters.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert adapters.configs == {}
    assert torch.equal(scores(reference, model)[1], before)


@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "VeraConfig"])
def test_other_methods_are_refused(tmp_path, kind):
    reference, model = pair()
    more = {"feedforward_modules": []} if kind == "IA3Config" else {}
    peft.get_peft_model(reference, getattr(peft, kind)(target_modules=Q, **more)).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="m0 reads 'LORA' only"):
        Adapters(model).load(tmp_path)


def test_every_setting_of_peft_has_its_place():
    """A new peft with a new setting: say what it does to a finished adapter, in m0/checkpoints/adapters/config.py and docs/reference/adapters.md."""
    fields = {entry.name for entry in dataclasses.fields(peft.LoraConfig)}
    places = [*lora_config.READ_KEYS, *lora_config.KEYS_WITHOUT_EFFECT, *lora_config.REFUSED_KEYS]
    assert len(places) == len(set(places))
    assert fields <= set(places)
    page = (Path(__file__).parents[2] / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (no|yes|while it trains)[^|]*\| ([^|]+) \|$", page, re.MULTILINE)
    said = {name: (changes, does) for names, changes, does in rows for name in re.findall(r"\w+", names)}
    assert fields <= set(said)
    for name in fields:
        assert said[name][1].startswith("refused") == (name in lora_config.REFUSED_KEYS), name
        assert (said[name][0] == "yes") >= (name in lora_config.REFUSED_KEYS), name


def test_ways_to_begin_are_all_known():
    """Those that peft's annotation lists, and LoRA-GA, which it leaves out."""
    import typing

    hint = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    named = [value for part in typing.get_args(hint) for value in typing.get_args(part)]
    assert "pissa" in named
    for start in [*named, "lora_ga"]:
        kept = start in lora_config.READABLE_INITS
        assert kept + start.startswith(lora_config.REFUSED_INITS) + (start == "loftq") == 1, start
