"""Files: both layouts, shards, types, memory, and every way in which a checkpoint can be unusable."""

import codecs
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from m0 import LoRAConfig, Reranker
from m0.checkpoints.files import (
    list_tensors,
    load_checkpoint,
    open_safetensors,
    our_key,
    parameter_shapes,
    save_checkpoint,
    their_key,
)
from m0.checkpoints.image_settings import load_image_settings
from m0.errors import CheckpointError, M0Error
from m0.model.config import DecoderConfig
from m0.model.reranker_model import RerankerModel
from tests.conftest import noise, tiny_config


def same(a, b):
    mine, other = a.state_dict(), b.state_dict()
    return set(mine) == set(other) and all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize("layout", ["hub", "nested"])
@pytest.mark.parametrize("shard", [10**9, 60_000])
def test_written_and_read_back(tmp_path, model, layout, shard):
    save_checkpoint(model, tmp_path, layout=layout, max_shard_bytes=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard < 10**9)
    assert same(load_checkpoint(tmp_path), model)
    assert not list(tmp_path.glob(".*")), "no temporary files are left"


def test_keys_go_both_ways():
    for key in parameter_shapes(tiny_config()):
        assert our_key(their_key(key)) == key
    assert our_key("lm_head.weight") is None
    assert our_key("model.language_model.layers.0.mlp.up_proj.weight") == "decoder.layers.0.mlp.up_proj.weight"
    assert their_key("vision.merger.ln_q.bias") == "visual.merger.ln_q.bias"


def test_a_sharded_save_over_a_single_one_leaves_no_stale_weights(tmp_path, model):
    save_checkpoint(model, tmp_path)
    save_checkpoint(model, tmp_path, max_shard_bytes=60_000)
    assert not (tmp_path / "model.safetensors").exists()
    save_checkpoint(model, tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert same(load_checkpoint(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_types(tmp_path, model, dtype):
    save_checkpoint(model, tmp_path, dtype=torch.bfloat16)
    loaded = load_checkpoint(tmp_path, dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    expected = model.to(torch.bfloat16).to(dtype)
    assert same(loaded, expected)
    assert load_checkpoint(tmp_path).dtype == torch.bfloat16


@pytest.fixture
def stored(tmp_path, model):
    save_checkpoint(model, tmp_path)
    return tmp_path


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    tensors = {key: value.clone() for key, value in tensors.items()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def drop(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add(tensors):
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)


def reshape(tensors):
    tensors["visual.blocks.0.norm1.weight"] = torch.zeros(7)


def whole_numbers(tensors):
    tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)


def twice(tensors):
    tensors["model.language_model.norm.weight"] = torch.zeros(64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, ["lacks the tensor model.layers.1.mlp.up_proj.weight"]),
        (add, ["unexpected tensor model.layers.9.mlp.up_proj.weight of shape [2, 2]", "model.safetensors"]),
        (reshape, ["visual.blocks.0.norm1.weight has shape [7]", "asks for [64]", "model.safetensors"]),
        (whole_numbers, ["model.norm.weight has type I8"]),
        (twice, ["model.safetensors: model.language_model.norm.weight and model.norm.weight are the same parameter twice."]),
    ],
)
def test_every_tensor_is_accounted_for(stored, change, words):
    rewrite(stored, change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(stored)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_shards_with_the_same_parameter_are_both_named(stored, model):
    save_checkpoint(model, stored, max_shard_bytes=60_000)
    *others, last = sorted(stored.glob("*.safetensors"))
    first, key = next((file, key) for file in others for key in load_file(file) if key.startswith("model."))
    for copy in (key, key.replace("model.", "model.language_model.", 1)):
        shard = load_file(last)
        shard.pop(key, None)
        save_file({**shard, copy: torch.zeros(3)}, last)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(stored)
        names = key if copy == key else f"{key} and {copy}"
        assert str(caught.value) == f"{first} and {last.name} both hold the same parameter: {names}."


def leave_out(directory, *keys):
    values = json.loads((directory / "config.json").read_text())
    for key in keys:
        part, _, name = key.rpartition(".")
        del (values[part] if part else values)[name]
    (directory / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("layout", ["hub", "nested"])
@pytest.mark.parametrize(
    ("key", "message", "default"),
    [
        ("num_hidden_layers", "lacks the tensor model.layers.3.input_layernorm.weight", 80),
        ("intermediate_size", "model.layers.0.mlp.down_proj.weight has shape [64, 96]", 29568),
        ("vocab_size", "embed_tokens.weight has shape [512, 64]", 152064),
        ("vision_config.depth", "lacks the tensor visual.blocks.3.norm1.weight", 32),
        ("vision_config.embed_dim", "visual.blocks.0.attn.proj.bias has shape [64]", 1280),
        ("vision_config.mlp_ratio", "visual.blocks.0.mlp.fc1.bias has shape [128]", 4),
        ("vision_config.patch_size", "visual.patch_embed.proj.weight has shape [64, 3, 2, 16, 16]", 14),
        ("vision_config.spatial_merge_size", "visual.merger.mlp.0.bias has shape [576]", 2),
    ],
)
def test_tensors_that_do_not_fit_a_default_name_the_key_that_is_not_in_the_file(tmp_path, layout, key, message, default):
    config = tiny_config()
    changes = {"mlp_ratio": 2.0, "patch_size": 16, "spatial_merge_size": 3}
    name = key.rpartition(".")[2]
    if name in changes:
        config = config.replace(vision=replace(config.vision, **{name: changes[name]}))
    save_checkpoint(RerankerModel(config), tmp_path, layout=layout)
    key = key if layout == "hub" or key.startswith("vision") else f"text_config.{key}"
    leave_out(tmp_path, key)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    if layout == "hub":
        assert message in str(caught.value)
    assert str(caught.value).endswith(f" (not in config.json: {key} (transformers' default {default})).")


def test_a_message_names_no_key_that_has_nothing_to_do_with_it(stored):
    leave_out(stored, "vision_config.patch_size", "vision_config.depth", "rms_norm_eps", "vision_config.temporal_patch_size")
    rewrite(stored, reshape)
    values = json.loads((stored / "config.json").read_text())
    values["vision_config"]["num_hidden_layers"] = 3  # another name of the depth
    (stored / "config.json").write_text(json.dumps(values))
    for change in (reshape, drop, twice):
        rewrite(stored, change)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(stored)
        assert "not in config.json" not in str(caught.value)


def test_picture_settings_that_do_not_fit_a_default_name_it(stored, model):
    leave_out(stored, "vision_config.spatial_merge_size")
    values = json.loads((stored / "preprocessor_config.json").read_text())
    (stored / "preprocessor_config.json").write_text(json.dumps({**values, "merge_size": 4}))
    with pytest.raises(CheckpointError) as caught:
        load_image_settings(stored, model.config)
    said = "vision_config.spatial_merge_size (transformers' default 2)"
    assert str(caught.value).endswith(f"merge_size is 4, but by the model's config.json it is 2 (not in config.json: {said}).")


def test_byte_order_marks_of_all_json_files_are_read(tmp_path, tiny, tiny_directory):
    """An editor on Windows puts one before whatever it saves."""
    tiny_config = json.loads((tiny_directory / "config.json").read_text())
    tiny.save_pretrained(tmp_path / "a")
    save_checkpoint(tiny.model, tmp_path / "a", max_shard_bytes=200_000)
    processor = {"image_processor": json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())}
    (tmp_path / "a" / "processor_config.json").write_text(json.dumps(processor))
    adapters = Reranker.from_pretrained(tiny_directory, dtype="float32").adapters
    adapters.add("x", LoRAConfig(r=2))
    adapters.save(tmp_path / "adapter")
    files = [*(tmp_path / "a").glob("*.json"), tmp_path / "adapter" / "adapter_config.json"]
    assert {file.name for file in files} >= {"model.safetensors.index.json", "tokenizer.json", "processor_config.json"}
    for file in files:
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    pair = [("q", "document"), ("q", noise(60, 60))]
    loaded = Reranker.from_pretrained(tmp_path / "a", dtype="float32", adapter=tmp_path / "adapter")
    assert loaded.logits(pair) == tiny.logits(pair)
    assert loaded.image_settings == tiny.image_settings
    loaded.adapters.activate(None)
    loaded.save_pretrained(tmp_path / "b")
    assert not any(file.read_bytes().startswith(codecs.BOM_UTF8) for file in (tmp_path / "b").iterdir())
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == tiny_config | {"torch_dtype": "float32"}
    (tmp_path / "a" / "tokenizer.json").write_bytes(b"\xff\xfe{\0")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable tokenizer"):
        Reranker.from_pretrained(tmp_path / "a")


def test_the_vocabulary_projection_is_ignored(stored, model):
    rewrite(stored, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 3)}))
    assert same(load_checkpoint(stored), model)


def cut_short(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_in_the_header(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def no_safetensors(directory):
    (directory / "model.safetensors").write_bytes(b"\x80\x04 this is not what it says" * 10)


def emptied(directory):
    (directory / "model.safetensors").write_bytes(b"")


def pickled(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def gone(directory):
    (directory / "model.safetensors").unlink()


def index(content):
    """Shards instead of the single file, placed by this index."""

    def damage(directory):
        (directory / "model.safetensors").rename(directory / "x.safetensors")
        (directory / "model.safetensors.index.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return damage


def a_variant(directory):
    (directory / "model.safetensors").rename(directory / "model.fp16.safetensors")


def an_index_of_pickles(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-00001.bin"}}))


def a_folder_of_that_name(directory):
    gone(directory)
    (directory / "model.safetensors").mkdir()


def a_link_to_nothing(directory):
    gone(directory)
    (directory / "model.safetensors").symlink_to(directory / "no-such-file")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "is cut short or damaged"),
        (cut_in_the_header, "is not a safetensors file"),
        (no_safetensors, "is not a safetensors file"),
        (emptied, "is not a safetensors file"),
        (pickled, "is a pickle"),
        (gone, "has neither model.safetensors nor"),
        (index({}), "is not a readable index"),
        (index("{"), "is not a readable JSON file"),
        (index("[" * 100_000), "is not a readable JSON file"),
        (index([1]), "holds a JSON list, not an object"),
        (index({"weight_map": {"a": 5}}), "is not a readable index"),
        (index({"weight_map": {}}), "has an empty weight_map"),
        (index({"weight_map": {"a": "../x.safetensors"}}), "outside the model's directory"),
        (index({"weight_map": {"a": "x.bin"}}), "is not a safetensors file and is refused"),
        (index({"weight_map": {"a": "y.safetensors"}}), "does not exist"),
        (index({"weight_map": {"a": "x.safetensors"}}), "it is not there"),
        (a_variant, "has neither model.safetensors nor model.safetensors.index.json, only model.fp16.safetensors."),
        (an_index_of_pickles, "only pytorch_model.bin.index.json."),
        (a_folder_of_that_name, "has neither model.safetensors nor"),
        (a_link_to_nothing, "has neither model.safetensors nor"),
    ],
)
def test_a_damaged_checkpoint_gets_one_sentence(stored, damage, message):
    damage(stored)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(stored)
    assert message in str(caught.value)
    assert str(stored) in str(caught.value)
    assert "\n" not in str(caught.value)


def stale_index(directory, shard):
    """An index of an earlier save in shards, and the shard itself, if wanted, with other weights."""
    weights = load_file(directory / "model.safetensors")
    name = "model-00001-of-00001.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
    if shard:
        save_file({key: torch.zeros_like(value) for key, value in weights.items()}, directory / name)


@pytest.mark.parametrize("shard", [False, True])
def test_a_single_file_wins_over_an_index(stored, model, shard):
    """transformers leaves the index standing where it saves in one file after shards."""
    stale_index(stored, shard)
    assert same(load_checkpoint(stored), model)
    assert {tensor.file.name for tensor in list_tensors(stored)} == {"model.safetensors"}


@pytest.mark.parametrize("text", ["{", '{"weight_map": {"a": "../../x.bin"}}'])
def test_an_index_that_is_not_read_may_be_broken(stored, model, text):
    (stored / "model.safetensors.index.json").write_text(text)
    assert same(load_checkpoint(stored), model)


def test_a_damaged_single_file_is_not_passed_over_for_shards(stored):
    stale_index(stored, shard=True)
    cut_short(stored)
    with pytest.raises(CheckpointError, match="is cut short or damaged"):
        load_checkpoint(stored)


def test_shards_beside_other_files(stored, model):
    """A variant or another program's file beside the shards changes nothing."""
    weights = load_file(stored / "model.safetensors")
    save_checkpoint(model, stored, max_shard_bytes=60_000)
    for name in ("model.fp16.safetensors", "consolidated.safetensors"):
        save_file({key: torch.zeros_like(value) for key, value in weights.items()}, stored / name)
    assert same(load_checkpoint(stored), model)


def test_shards_written_over_a_single_file_count_once_it_is_gone(stored, model, monkeypatch):
    """Until then what stood there is whole: it ends where the last step cannot be done."""
    with torch.no_grad():
        other = RerankerModel(model.config)
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(CheckpointError, match="Read-only file system"):
        save_checkpoint(other, stored, max_shard_bytes=60_000)
    monkeypatch.undo()
    assert same(load_checkpoint(stored), model)


def test_a_config_for_other_weights(stored):
    values = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.3"):
        load_checkpoint(stored)
    (stored / "config.json").write_text(json.dumps({**values, "intermediate_size": 100}))
    with pytest.raises(CheckpointError, match="but the config asks for"):
        load_checkpoint(stored)


def test_a_failed_write_leaves_the_old_checkpoint(stored, model, monkeypatch):
    before = (stored / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("m0.checkpoints.files.save_file", full)
    with pytest.raises(M0Error, match="No space left"):
        save_checkpoint(model, stored)
    assert (stored / "model.safetensors").read_bytes() == before
    assert not list(stored.glob(".*"))


def test_a_failed_write_of_shards_leaves_no_mixture(model, tmp_path, monkeypatch):
    save_checkpoint(model, tmp_path, max_shard_bytes=100_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sum(name.endswith(".safetensors") for name in before) > 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    written = []

    def full(tensors, path, metadata=None):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("m0.checkpoints.files.save_file", full)
    with pytest.raises(M0Error, match="No space left"):
        save_checkpoint(model, tmp_path, max_shard_bytes=100_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


MEASURE = """
import resource, sys, torch
from pathlib import Path
from m0.checkpoints.files import load_checkpoint
torch.set_num_threads(1)
import m0.reranker
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
load_checkpoint(Path(sys.argv[2]), getattr(torch, sys.argv[3]))  # what PyTorch itself loads at first use
torch.ones(4, dtype=torch.bfloat16).float().sum().item()
before = peak()
model = load_checkpoint(Path(sys.argv[1]), getattr(torch, sys.argv[3]))
for parameter in model.parameters():
    parameter.data.view(-1)[::1024].float().sum().item()  # touch every page
print(peak() - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, tiny_directory, dtype):
    """Peak resident memory at load, every page touched, at most 1.1 times the weights in the target type."""
    config = tiny_config(
        decoder=DecoderConfig(
            hidden_size=1024,
            num_layers=24,
            num_heads=16,
            num_kv_heads=4,
            intermediate_size=4096,
            vocab_size=512,
            mrope_section=(8, 12, 12),
        )
    )
    model = RerankerModel(config)
    save_checkpoint(model, tmp_path, dtype=torch.bfloat16)
    del model
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(tiny_directory), dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, weights = map(int, result.stdout.split())
    assert weights > 500e6
    assert taken < 1.1 * weights


def test_nothing_is_initialised_and_then_overwritten(stored, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were initialised in memory")

    for name in ("normal_", "uniform_"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _o=original, **k: _o(self, *a, **k) if self.is_meta else refuse()
        )
    load_checkpoint(stored)


def test_headers_tell_what_is_stored(stored):
    tensors = {tensor.key: tensor for tensor in list_tensors(stored)}
    embedding = tensors["model.embed_tokens.weight"]
    assert (embedding.shape, embedding.type, embedding.num_bytes) == ((512, 64), "F32", 512 * 64 * 4)


def test_training_a_loaded_model_leaves_its_file_alone(stored):
    before = (stored / "model.safetensors").read_bytes()
    model = load_checkpoint(stored)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (stored / "model.safetensors").read_bytes() == before


def test_a_saved_model_survives_its_source(tmp_path, model):
    save_checkpoint(model, tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a")
    save_checkpoint(loaded, tmp_path / "a")  # onto the file it is mapped from
    assert same(load_checkpoint(tmp_path / "a"), model)
    shutil.rmtree(tmp_path / "a")
    assert same(loaded, model)


def test_a_file_that_goes_while_it_is_opened(tmp_path, monkeypatch):
    """safetensors has PyTorch map it, which says so in an error of its own."""

    def gone(*_args, **_kwargs):
        raise RuntimeError("unable to open file <x> in read-only mode: No such file or directory (2)")

    monkeypatch.setattr("m0.checkpoints.files.safe_open", gone)
    with pytest.raises(CheckpointError, match="No such file"):
        open_safetensors(tmp_path / "x.safetensors")
