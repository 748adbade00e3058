"""Adapters: attach, switch, merge, unmerge, files. Values are compared with peft's in tests/parity."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from m0 import LoRAConfig
from m0.errors import AdapterError
from m0.lora import Adapters

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
