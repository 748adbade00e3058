"""Adapters: attach, switch, merge, unmerge, files. Values are compared with peft's in tests/parity."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from m0 import LoRAConfig
from m0.checkpoints.adapters.switching import Adapters
from m0.errors import AdapterError

KINDS = [{}, {"use_rslora": True}, {"use_dora": True}]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(10, 30), torch.arange(20).expand(3, 20), [12, 8])


def disturb(adapters, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(model, kind):
    before = logits(model)
    Adapters(model).add("new", LoRAConfig(r=4, target_modules="all-linear", **kind))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_gives_the_same_scores_and_unmerged_the_same_bits(model, kind):
    adapters = Adapters(model)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plain = logits(model)
    adapters.add("new", LoRAConfig(r=4, target_modules="all-linear", **kind))
    disturb(adapters)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 1e-3
    adapters.merge()
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=1e-5)
    adapters.unmerge()
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert torch.equal(logits(model), adapted)
    adapters.activate(None)
    assert torch.equal(logits(model), plain)


def test_several_adapters_are_switched_by_name(model, tmp_path):
    adapters = Adapters(model)
    plain = logits(model)
    seen = {}
    for seed, (name, kind) in enumerate(zip(("first", "second", "third"), KINDS, strict=True)):
        adapters.add(name, LoRAConfig(r=2 + seed, target_modules=("q_proj", "up_proj"), modules_to_save=("score",), **kind))
        disturb(adapters, seed)
        seen[name] = logits(model)
        adapters.save(tmp_path / name)
    for name in ("second", "first", "third", "first"):
        adapters.activate(name)
        assert torch.equal(logits(model), seen[name])
        adapters.merge()  # switching away from a merged adapter unmerges it
    adapters.remove("first")
    assert torch.equal(logits(model), plain)
    for name in ("second", "third"):
        adapters.remove(name)
    for name, expected in seen.items():
        assert adapters.load(tmp_path / name) == name
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)


def test_adapters_stay_float32_on_a_bfloat16_model(model):
    adapters = Adapters(model.to(torch.bfloat16))
    adapters.add("new", LoRAConfig(r=2, use_dora=True))
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    adapters.merge()
    assert model.dtype == torch.bfloat16


def test_only_the_adapter_learns(model):
    adapters = Adapters(model)
    adapters.add("new", LoRAConfig(r=2, dropout=0.1, modules_to_save=("score",)))
    learning = list(adapters.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(learning, lr=0.1)
    before = logits(model)
    model.train()
    model(torch.arange(10, 30), torch.arange(20).expand(3, 20), [12, 8]).sum().backward()
    optimizer.step()
    model.eval()
    assert (logits(model) != before).all()
    adapters.activate(None)
    own = [parameter for name, parameter in model.named_parameters() if ".adapters." not in name]
    assert own
    assert all(parameter.grad is None for parameter in own)


def test_the_state_keeps_its_names(model):
    names = set(model.state_dict())
    Adapters(model).add("new", LoRAConfig())
    assert names < set(model.state_dict())


@pytest.fixture
def stored(model, tmp_path):
    adapters = Adapters(model)
    adapters.add("good", LoRAConfig(r=2, target_modules=("q_proj",), modules_to_save=("score",)))
    adapters.save(tmp_path)
    adapters.remove("good")
    return tmp_path


def edit_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory, change):
    tensors = {key: value.clone() for key, value in load_file(directory / "adapter_model.safetensors").items()}
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: edit_config(d, peft_type="IA3"), "peft_type is 'IA3'"),
        (lambda d: edit_config(d, bias="some"), "bias is 'some'"),
        (lambda d: edit_config(d, layer_replication=[[0, 2], [1, 3]]), "layer_replication is [[0, 2], [1, 3]]"),
        (lambda d: edit_config(d, r=0), "rank r is 0"),
        (lambda d: edit_config(d, r=3), "has shape"),
        (lambda d: edit_config(d, use_dora=True), "lacks magnitude"),
        (lambda d: edit_config(d, modules_to_save=None), "unexpected tensor"),
        (lambda d: edit_config(d, modules_to_save=["score", "embed_tokens"]), "lacks the module model.embed_tokens"),
        (lambda d: edit_tensors(d, lambda t: t.pop(f"{Q}.lora_B.weight")), "lacks lora_B"),
        (lambda d: edit_tensors(d, lambda t: t.update({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)})), "no module x"),
        (lambda d: edit_tensors(d, lambda t: t.update({"stray": torch.zeros(2)})), "unexpected tensor stray"),
        (lambda d: (d / "adapter_config.json").unlink(), "does not exist"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "not a readable JSON"),
        (lambda d: (d / "adapter_model.safetensors").unlink(), "does not exist"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"nonsense" * 9), "not a safetensors file"),
        (lambda d: (d / "adapter_model.safetensors").rename(d / "adapter_model.bin"), "is a pickle"),
    ],
)
def test_a_damaged_adapter_gets_one_sentence_and_leaves_the_model_alone(model, stored, damage, message):
    from m0.errors import CheckpointError

    damage(stored)
    before = logits(model)
    adapters = Adapters(model)
    with pytest.raises(CheckpointError) as caught:
        adapters.load(stored, "bad")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert adapters.configs == {}
    assert torch.equal(logits(model), before)


def test_wrong_names(model, stored):
    adapters = Adapters(model)
    with pytest.raises(AdapterError, match="there is no adapter 'x'; loaded: none"):
        adapters.activate("x")
    with pytest.raises(AdapterError, match="no linear layer is named"):
        adapters.add("new", LoRAConfig(target_modules=("nothing",)))
    with pytest.raises(AdapterError, match="without dots"):
        adapters.add("a.b", LoRAConfig())
    adapters.load(stored, "good")
    with pytest.raises(AdapterError, match="already"):
        adapters.load(stored, "good")


def trained(adapters, name, **options):
    adapters.add(name, LoRAConfig(r=2, **options))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("new", [{"modules_to_save": ("score",)}, {"use_dora": True}, {"target_modules": ("score.0",)}])
def test_a_fresh_adapter_starts_from_the_model_itself(model, new, merged):
    """Whatever adapter is active or merged, a new one changes nothing yet."""
    inputs = torch.tensor([5, 6, 7, 100]), torch.arange(4).expand(3, 4), [4]
    before = model(*inputs)
    adapters = Adapters(model)
    trained(adapters, "first", target_modules="all-linear", modules_to_save=("score",))
    if merged:
        adapters.merge()
    adapters.add("second", LoRAConfig(r=2, **{"target_modules": ("q_proj", "up_proj"), **new}))
    torch.testing.assert_close(model(*inputs), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["train", "type", "values", "keys", "forward", "training"])
def test_any_word_may_name_an_adapter(model, name, tmp_path):
    adapters = Adapters(model)
    trained(adapters, name, target_modules=("q_proj",))
    adapters.save(tmp_path / name)
    adapters.remove(name)
    assert adapters.load(tmp_path / name) == name


def test_the_directory_of_an_adapter_may_have_a_dot(model, tmp_path):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("q_proj",))
    adapters.save(tmp_path / "run.v2")
    assert adapters.load(tmp_path / "run.v2") == "run_v2"


def rewritten(folder, tensors=None, **settings):
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))


def test_adapters_that_do_not_fit_are_refused(model, tmp_path):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("q_proj", "v_proj"))
    adapters.save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rewritten(tmp_path, {key: value for key, value in tensors.items() if "layers.0." not in key})
    with pytest.raises(AdapterError, match=r"lacks lora_A and lora_B of model\.layers\.0"):
        adapters.load(tmp_path, "second")
    rewritten(tmp_path, {key: value.to(torch.int32) for key, value in tensors.items()})
    with pytest.raises(AdapterError, match="int32"):
        adapters.load(tmp_path, "second")
    rewritten(tmp_path, tensors, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"has an adapter of .*v_proj"):
        adapters.load(tmp_path, "second")
    for settings in ({"init_lora_weights": "pissa"}, {"use_rslora": "no"}, {"some_new_setting": {"a": 1}}):
        rewritten(tmp_path, tensors, **{"target_modules": ["q_proj", "v_proj"], "use_rslora": False, **settings})
        with pytest.raises(AdapterError, match=next(iter(settings))):
            adapters.load(tmp_path, "second")
        rewritten(tmp_path, tensors, **dict.fromkeys(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"(": 2}},
        {"target_modules": "("},
        {"dropout": "a"},
        {"alpha": "x"},
        {"alpha": float("nan")},
        {"modules_to_save": ("",)},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(AdapterError) as caught:
        LoRAConfig(**settings)
    assert "\n" not in str(caught.value)


# --- what the file holds, what its config says -----------------------------------------------------------------------------


def saved(model, folder, **options):
    """An adapter's folder, its tensors, and the logits it gives."""
    adapters = Adapters(model)
    trained(adapters, "made", **options)
    adapters.save(folder)
    found = logits(model)
    adapters.remove("made")
    return load_file(folder / "adapter_model.safetensors"), found


def newer(tensors):
    """The same under the names of transformers from 4.52."""
    prefixes = {"model.": "model.language_model.", "visual.": "model.visual.", "score.": "score."}
    found = {}
    for key, value in tensors.items():
        path = key.removeprefix("base_model.model.")
        old = next(prefix for prefix in prefixes if path.startswith(prefix))
        found[f"base_model.model.{prefixes[old]}{path.removeprefix(old)}"] = value
    return found


def test_dropout_is_off_where_the_model_does_not_train(model, tmp_path):
    adapters = Adapters(model)
    trained(adapters, "first", dropout=0.5, use_dora=True)
    assert torch.equal(logits(model), logits(model))
    adapters.save(tmp_path)
    expected = logits(model)
    adapters.remove("first")
    adapters.load(tmp_path)
    assert torch.equal(logits(model), expected)
    adapters.remove(adapters.active)
    model.train()
    trained(adapters, "second", dropout=0.5)
    assert not torch.equal(logits(model), logits(model))


@pytest.mark.parametrize(
    "names", [["classifier", "score"], ["score", "classifier", "score"], ["qa_outputs", "score"], ["score", "lm_head"], ["a.b"]]
)
def test_names_that_neither_model_nor_file_has_are_skipped(model, tmp_path, names):
    _, expected = saved(model, tmp_path, modules_to_save=("score",) if "score" in names else ())
    edit_config(tmp_path, modules_to_save=names, task_type="SEQ_CLS")
    adapters = Adapters(model)
    adapters.load(tmp_path, "read")
    assert torch.equal(logits(model), expected)
    assert adapters.configs["read"].modules_to_save == (("score",) if "score" in names else ())


@pytest.mark.parametrize("name", ["classifier", "lm_head", "model.lm_head", "qa_outputs"])
def test_a_saved_module_that_the_model_has_not_is_named(model, tmp_path, name):
    tensors, _ = saved(model, tmp_path, modules_to_save=("score",))
    tensors[f"base_model.model.{name}.weight"] = torch.zeros(2, 64)
    rewritten(tmp_path, tensors, modules_to_save=[name, "score"])
    before, count = logits(model), sum(p.numel() for p in model.parameters())
    with pytest.raises(AdapterError, match=rf"holds {name}\.weight.* (no module|is the vocabulary)"):
        Adapters(model).load(tmp_path)
    assert torch.equal(logits(model), before)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("lm_head",), "lm_head is the vocabulary projection"),
        (("model.lm_head",), "model.lm_head is the vocabulary projection"),
        (("classifier",), "no module classifier"),
        (("model",), "model means model, too much to be saved whole"),
        (("visual",), "visual means visual, too much"),
        (("layers",), "means model.layers, too much"),
        (("blocks",), "means visual.blocks, too much"),
        (("language_model",), "too much"),
        (("model.visual",), "too much"),
        (("score", "score"), "names score twice"),
        (("score", "score.0"), r"score.0 lies in score"),
        (("score.0", "score"), r"score.0 lies in score"),
        (("model.layers.1.mlp", "model.layers.1"), r"model.layers.1.mlp lies in model.layers.1"),
        (("mlp", "model.layers.1.mlp"), "mlp and model.layers.1.mlp both name model.layers.1.mlp"),
        (("norm", "input_layernorm"), "norm and input_layernorm both name"),
        (("merger", "merger.ln_q"), "visual.merger.ln_q lies in visual.merger"),
        (("model.layers.1.mlp", "model.language_model.layers.1.mlp"), "both name model.language_model.layers.1.mlp"),
        (("q_proj",), r"q_proj is a target and lies in model.layers.0.self_attn.q_proj"),
        (("self_attn",), r"is a target and lies in model.layers.0.self_attn"),
        (("proj",), r"is a target and lies in"),
    ],
)
def test_modules_that_cannot_be_saved_get_one_sentence_and_nothing_is_copied(model, names, message):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("up_proj",), modules_to_save=("score",))
    before, parameters = logits(model), list(map(id, model.parameters()))
    with pytest.raises(AdapterError, match=message) as caught:
        adapters.add("new", LoRAConfig(r=2, target_modules=("q_proj",), modules_to_save=names))
    assert "\n" not in str(caught.value)
    assert list(adapters.configs) == ["first"]
    assert adapters.active == "first"
    assert torch.equal(logits(model), before)
    assert list(map(id, model.parameters())) == parameters


def test_names_of_two_layouts_are_not_mixed(model):
    mixed = LoRAConfig(target_modules=("model.layers.0.self_attn.q_proj",), modules_to_save=("model.language_model.norm",))
    with pytest.raises(AdapterError, match="two layouts of names"):
        Adapters(model).add("new", mixed)


@pytest.mark.parametrize("names", [["score", "score.0"], ["score.0", "score"], ["score.0", "score.2", "score"]])
def test_a_file_whose_saved_modules_overlap_is_refused(model, tmp_path, names):
    saved(model, tmp_path, modules_to_save=("score",))
    edit_config(tmp_path, modules_to_save=names)
    with pytest.raises(AdapterError, match=r"score\.[02] lies in score, and both are to be saved"):
        Adapters(model).load(tmp_path)


def test_one_module_by_two_names_is_one_module(model, tmp_path):
    """Reading peft's own files: it matches each module once, whatever names fit."""
    _, expected = saved(model, tmp_path, target_modules=("q_proj",), modules_to_save=("model.layers.1.mlp", "score"))
    edit_config(tmp_path, modules_to_save=["layers.1.mlp", "model.layers.1.mlp", "score", "score"])
    Adapters(model).load(tmp_path)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("names", [("embed_tokens",), ("norm",), ("merger",), ("score.0", "score.2"), ("model.norm", "ln_q")])
def test_modules_by_the_ends_of_their_names(model, tmp_path, names):
    tensors, expected = saved(model, tmp_path, target_modules=("q_proj",), modules_to_save=names)
    Adapters(model).load(tmp_path)
    assert torch.equal(logits(model), expected)
    whole = {key for key in tensors if ".lora_" not in key}
    assert len(whole) == {"embed_tokens": 1, "norm": 7, "merger": 6, "score.0": 4, "model.norm": 3}[names[0]]


PROJECTIONS = r"model\.language_model\.layers\..*_proj"


@pytest.mark.parametrize(
    ("pattern", "layout"),
    [
        (r"model\..*proj", "released"),
        (r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*", "released"),
        (r"(?!model\.visual).*proj", "newer"),
        (r"model\.layers\..*proj", "released"),
        (PROJECTIONS, "newer"),
        (r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:proj).*)", "newer"),
        (r"(?!visual)(?!score).*proj", "released"),
    ],
)
def test_patterns_are_read_on_the_names_of_the_files_own_layout(model, tmp_path, pattern, layout):
    tensors, expected = saved(model, tmp_path)
    rewritten(tmp_path, newer(tensors) if layout == "newer" else tensors, target_modules=pattern)
    adapters = Adapters(model)
    adapters.load(tmp_path, "read")
    assert torch.equal(logits(model), expected)
    adapters.save(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "adapter_model.safetensors")) == set(
        load_file(tmp_path / "adapter_model.safetensors")
    )
    adapters.remove("read")
    adapters.load(tmp_path / "again")
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("pattern", "layout"), [(PROJECTIONS, "released"), (r"model\.layers\..*proj", "newer"), ("proj", "newer")]
)
def test_patterns_of_the_other_layout_or_of_parts_do_not_fit(model, tmp_path, pattern, layout):
    tensors, _ = saved(model, tmp_path)
    rewritten(tmp_path, newer(tensors) if layout == "newer" else tensors, target_modules=pattern)
    with pytest.raises(AdapterError, match="does not name as a target"):
        Adapters(model).load(tmp_path)


def test_ranks_and_scales_follow_the_layouts_names(model, tmp_path):
    tensors, _ = saved(model, tmp_path, target_modules=("q_proj",), rank_pattern={"model.layers.0.self_attn.q_proj": 3})
    rewritten(
        tmp_path,
        newer(tensors),
        rank_pattern={r"^model\.language_model\.layers\.0\..*": 3},
        alpha_pattern={"model.language_model.layers.0.self_attn.q_proj": 50},
    )
    adapters = Adapters(model)
    adapters.load(tmp_path)
    scales = [layer.adapter(adapters.active).scale for _, layer in adapters._layers()]
    assert scales == [50 / 3, 16.0, 16.0]
    rewritten(tmp_path, newer(tensors), rank_pattern={r"^model\.layers\.0\..*": 3})
    with pytest.raises(AdapterError, match="has shape"):
        adapters.load(tmp_path, "other")


def test_a_new_adapter_may_be_named_in_either_layout(model, tmp_path):
    tensors, expected = saved(model, tmp_path, target_modules=PROJECTIONS, modules_to_save=("model.language_model.norm",))
    assert all(key.startswith("base_model.model.model.language_model.") for key in tensors)
    Adapters(model).load(tmp_path)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k.replace("model.model.layers.0", "model.model.language_model.layers.0"), "mixes two layouts"),
        (lambda k: k.replace("model.model.layers.0", "model.language_model.layers.0"), "mixes two layouts"),
        (lambda k: k.replace("model.model.layers", "model.bert.encoder.layer"), "the model has no module bert"),
        (lambda k: re.sub(r"model\.layers|visual\.blocks", "bert.encoder.layer", k), "fits no layer of the model"),
        (lambda k: k.replace("layers.2.", "layers.9."), r"layers\.9\.self_attn\.q_proj, but the model has no module"),
        (lambda k: k.replace("model.layers.2.self_attn.q_proj", "lm_head"), "lm_head is the vocabulary projection"),
        (lambda k: k.replace("layers.2.self_attn.q_proj", "norm"), "norm is a RMSNorm, but adapters go on linear layers"),
        (lambda k: k.replace("lora_A.weight", "lora_embedding_A"), "a token table"),
        (lambda k: k.replace("lora_A.weight", "lora_A.other.weight"), "unexpected tensor|lacks lora_A"),
    ],
)
def test_names_that_do_not_fit(model, tmp_path, change, message):
    tensors, _ = saved(model, tmp_path, target_modules=("q_proj", "qkv"))
    rewritten(tmp_path, {change(key): value for key, value in tensors.items()})
    before = logits(model)
    with pytest.raises(AdapterError, match=message) as caught:
        Adapters(model).load(tmp_path)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.removeprefix("base_model.model."),
        lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda k: k.replace("base_model.model.", "base_model.model.base_model.model."),
        lambda k: k.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight"),
        lambda k: k.replace(".score.", ".score.modules_to_save.default."),
    ],
)
def test_other_spellings_of_the_same_names(model, tmp_path, change):
    tensors, expected = saved(model, tmp_path, modules_to_save=("score",))
    rewritten(tmp_path, {change(key): value for key, value in tensors.items()})
    Adapters(model).load(tmp_path)
    assert torch.equal(logits(model), expected)


def test_one_layer_twice_is_refused(model, tmp_path):
    tensors, _ = saved(model, tmp_path)
    key = f"{Q}.lora_A.weight"
    rewritten(tmp_path, {**tensors, key.removeprefix("base_model.model."): tensors[key].clone()})
    with pytest.raises(AdapterError, match="twice"):
        Adapters(model).load(tmp_path)
    rewritten(tmp_path, {**tensors, f"{Q}.lora_A.default.weight": tensors[key].clone()})
    with pytest.raises(AdapterError, match="twice"):
        Adapters(model).load(tmp_path)


WITHOUT_EFFECT = [
    {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "MiCA"},
    {"layers_to_transform": [0, 1, 2], "layers_pattern": "layers"},
    {"layers_to_transform": [0, 1, 2], "layers_pattern": ["layers", "h"]},
    {"layers_to_transform": []},
    {"target_modules": ["q_proj", "v_proj", "qkv"], "exclude_modules": ".*visual.*"},
    {"target_modules": ["q_proj", "v_proj", "k_proj"], "exclude_modules": ["k_proj"]},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"fan_in_fan_out": True},
    {"loftq_config": {"loftq_bits": 4}, "corda_config": {"corda_method": "kpm"}, "lora_ga_config": {"scale": "stable"}},
    {"velora_config": {"num_groups": 4}, "monteclora_config": {"num_samples": 2}},
    {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
    {"use_qalora": True, "qalora_group_size": 16},
    {"ensure_weight_tying": True, "runtime_config": {"ephemeral_gpu_offload": True}},
    {"trainable_token_indices": [], "target_parameters": [], "alora_invocation_tokens": [], "layer_replication": []},
    {"some_new_setting": None, "another": False},
    {"peft_version": "0.30.0", "task_type": "TOKEN_CLS", "auto_mapping": {"a": "b"}, "revision": "x"},
]


@pytest.mark.parametrize("changes", WITHOUT_EFFECT, ids=lambda changes: next(iter(changes)))
def test_settings_that_change_nothing_in_a_finished_adapter(model, tmp_path, changes):
    _, expected = saved(model, tmp_path, target_modules=("q_proj", "v_proj"))
    edit_config(tmp_path, **changes)
    Adapters(model).load(tmp_path)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "OLoRA"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "LoftQ has quantized"),
        ({"init_lora_weights": "new"}, "does not know"),
        ({"init_lora_weights": 3}, "does not know"),
        ({"trainable_token_indices": [1]}, "replaces single rows"),
        ({"alora_invocation_tokens": [1]}, "follows certain tokens"),
        ({"layer_replication": [[0, 2]]}, "layers several times"),
        ({"target_parameters": ["q_proj.weight"]}, "no layer's weight"),
        ({"use_bdlora": {}}, "block-diagonal"),
        ({"arrow_config": {"top_k": 3}}, "several adapters"),
        ({"kasa_config": {}}, "base weights away"),
        ({"use_qalora": True, "qalora_group_size": 1}, "scales its input"),
        ({"some_new_setting": "x" * 1000}, "does not know"),
        ({"lora_alpha": None}, "lora_alpha is null"),
        ({"lora_alpha": "8"}, "alpha is '8'"),
        ({"r": None}, "r is null"),
        ({"r": 2.5}, "rank r is 2.5"),
        ({"modules_to_save": "score"}, "modules_to_save is 'score'"),
        ({"modules_to_save": [3]}, "modules_to_save is"),
        ({"modules_to_save": [""]}, "modules_to_save is"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
        ({"layers_to_transform": [0.5]}, "layers_to_transform is"),
        ({"layers_to_transform": [0], "target_modules": ".*q_proj"}, "not with a regular expression"),
        ({"layers_to_transform": [0], "layers_pattern": "("}, "not a regular expression"),
        ({"exclude_modules": "("}, "not a regular expression"),
        ({"alpha_pattern": {"(?i)q_proj": 3}}, "not a regular expression"),
        ({"rank_pattern": [3]}, "misstates"),
        ({"target_modules": [3]}, "must hold names"),
        ({"lora_bias": "yes"}, "must be true or false"),
        ({"lora_bias": True}, "lacks lora_bias of"),
        ({"lora_bias": True, "use_dora": True}, "does not go with use_dora"),
        ({"bias": "lora"}, "bias is 'lora'"),
    ],
)
def test_settings_that_are_refused(model, tmp_path, changes, message):
    saved(model, tmp_path, target_modules=("q_proj", "v_proj"))
    edit_config(tmp_path, **changes)
    before = logits(model)
    with pytest.raises(AdapterError) as caught:
        Adapters(model).load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert torch.equal(logits(model), before)


def test_left_out_settings_take_pefts_defaults(model, tmp_path):
    _, expected = saved(model, tmp_path, target_modules=("q_proj",), alpha=2.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], "r": config["r"]})
    )
    adapters = Adapters(model)
    adapters.load(tmp_path, "read")
    assert adapters.configs["read"].alpha == 8
    assert adapters.configs["read"].rank_of("anything") == 2
    assert not torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}])
def test_lora_bias_is_scaled_with_the_update(model, tmp_path, kind):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("q_proj", "qkv"), lora_bias=True, **kind)
    expected = logits(model)
    adapters.merge()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    adapters.unmerge()
    assert torch.equal(logits(model), expected)
    adapters.save(tmp_path)
    adapters.activate(None)
    layer = dict(adapters._layers())["decoder.layers.0.self_attn.q_proj"]
    x = torch.randn(3, 64)
    part = layer.adapter("first")
    scale = 32 / 2**0.5 if kind else 16
    torch.testing.assert_close(
        part(x, layer, layer(x)) - layer(x), scale * (x @ part.lora_A.T @ part.lora_B.T + part.lora_bias)
    )
    adapters.load(tmp_path, "read")
    assert torch.equal(logits(model), expected)


def test_lora_bias_on_a_layer_without_a_bias_is_not_merged(model):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("q_proj", "o_proj"), lora_bias=True)
    before = logits(model)
    with pytest.raises(
        AdapterError, match=r"a bias on model.layers.0.self_attn.o_proj, a layer without one, and cannot be merged"
    ):
        adapters.merge()
    assert not adapters.merged
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_a_merged_adapter_is_saved_as_it_was(model, tmp_path, bias):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("q_proj",), lora_bias=True, bias=bias)
    expected = load_saved(adapters, tmp_path / "before", "first")
    adapters.merge()
    found = load_saved(adapters, tmp_path / "merged", "first")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_go_with_the_adapter(model, tmp_path, bias):
    adapters = Adapters(model)
    plain = logits(model)
    trained(adapters, "first", target_modules=("q_proj",), bias=bias, modules_to_save=("score",))
    count = sum(".bias" in key for key in model.state_dict() if ".adapters." not in key)
    learned = len(list(adapters.parameters()))
    assert learned == 6 + 4 + (3 if bias == "lora_only" else count - 2)  # the head's two are saved with it
    expected = logits(model)
    adapters.save(tmp_path)
    adapters.merge()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    adapters.activate(None)
    assert torch.equal(logits(model), plain)
    trained(adapters, "second", target_modules=("v_proj",))
    adapters.activate("first")
    assert torch.equal(logits(model), expected)
    adapters.remove("first")
    assert adapters.load(tmp_path, "first") == "first"
    assert torch.equal(logits(model), expected)
    adapters.activate(None)
    assert torch.equal(logits(model), plain)


def test_an_adapter_of_the_head_and_one_that_brings_its_own(model, tmp_path):
    """Layers of a module that another adapter's stands in for are switched, saved and removed as all others."""
    adapters = Adapters(model)
    plain = logits(model)
    trained(adapters, "on", target_modules=("score.0", "q_proj"))
    on = logits(model)
    trained(adapters, "own", target_modules=("q_proj",), modules_to_save=("score",))
    own = logits(model)
    assert not any(".adapters.on." in key for key in load_saved(adapters, tmp_path / "own", "own"))
    adapters.activate("on")
    assert torch.equal(logits(model), on)
    adapters.activate("own")
    assert torch.equal(logits(model), own)
    assert any("score.0" in key for key in load_saved(adapters, tmp_path / "on", "on"))
    adapters.remove("on")
    adapters.activate(None)
    assert torch.equal(logits(model), plain)
    assert not any(".adapters.on." in name for name in model.state_dict())
    for name, expected in (("on", on), ("own", own)):
        adapters.load(tmp_path / name, f"{name}_again")
        assert torch.equal(logits(model), expected)


def load_saved(adapters, folder, name):
    adapters.save(folder, name)
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("merged", [False, True])
def test_what_was_active_stays_so_where_another_cannot_be_loaded(model, tmp_path, merged):
    adapters = Adapters(model)
    trained(adapters, "first", target_modules=("q_proj",), modules_to_save=("score",))
    adapters.save(tmp_path)
    edit_config(tmp_path, r=3)
    if merged:
        adapters.merge()
    before = logits(model)
    with pytest.raises(AdapterError, match="has shape"):
        adapters.load(tmp_path, "second")
    assert (adapters.active, adapters.merged, list(adapters.configs)) == ("first", merged, ["first"])
    assert torch.equal(logits(model), before)
