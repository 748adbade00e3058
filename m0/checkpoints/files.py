"""Safetensors in, safetensors out.

Two key layouts are in the wild, and both files and configs of each are read. Only prefixes differ:

    released files          newer transformers            here
    visual.*                model.visual.*                vision.*
    model.*                 model.language_model.*        decoder.*
    score.*                 score.*                       head.*

Loading proves that every parameter was filled, from exactly one tensor of the right shape. The model is built without
memory (on the meta device); tensors that already have the wanted type stay memory-mapped, others are converted a chunk
of the file at a time.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from m0.checkpoints.image_settings import image_settings_files
from m0.checkpoints.image_settings import load_image_settings as load_image_settings
from m0.errors import CheckpointError
from m0.inputs.images import ImageSettings
from m0.json_part import read_object
from m0.model.config import RerankerConfig
from m0.model.missing_keys import keys_of_count, keys_of_shape, note_file_defaults
from m0.model.reranker_model import RerankerModel
from m0.paths import path_of

# Longest prefix first: "model." would swallow the newer layout's.
KEY_PREFIXES = (
    ("model.language_model.", "decoder."),
    ("model.visual.", "vision."),
    ("model.", "decoder."),
    ("language_model.", "decoder."),  # saved from the bare backbone
    ("visual.", "vision."),
    ("score.", "head."),
)
HUB_PREFIXES = {"decoder.": "model.", "vision.": "visual.", "head.": "score."}
NESTED_PREFIXES = {"decoder.": "model.language_model.", "vision.": "model.visual.", "head.": "score."}
IGNORED_PREFIXES = ("lm_head.", "model.lm_head.")
"""The vocabulary projection, which ranking does not use."""
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""Tables that old versions stored and that are computed here."""

WEIGHTS, INDEX, CONFIG, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONVERT_CHUNK_BYTES = 32 * 2**20
"""How much of a file is mapped at a time while converting, so that pages already read do not pile up."""


def our_key(key: str) -> str | None:
    """The model's name of a tensor of either layout; None where it is not used."""
    if key.startswith(IGNORED_PREFIXES) or key.endswith(IGNORED_SUFFIXES):
        return None
    for theirs, ours in KEY_PREFIXES:
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def their_key(key: str, prefixes: Mapping[str, str] = HUB_PREFIXES) -> str:
    """The checkpoint's name of one of the model's parameters."""
    for ours, theirs in prefixes.items():
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    raise KeyError(key)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet."""

    key: str
    file: Path
    shape: tuple[int, ...]
    type: str
    """As safetensors names it: F32, BF16, ..."""

    @property
    def num_bytes(self) -> int:
        width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(self.type, 1)
        return width * int(torch.Size(self.shape).numel())


def list_tensors(directory: Path) -> list[StoredTensor]:
    """What a checkpoint directory holds, single file or sharded, from the files' headers alone. Raises CheckpointError."""
    tensors = []
    for file, expected in weight_files(directory).items():
        with open_safetensors(file) as handle:
            keys = set(handle.keys())
            if expected is not None and (absent := sorted(expected - keys)):
                raise CheckpointError(f"{directory / INDEX} places {absent[0]} in {file.name}, but it is not there.")
            for key in sorted(keys):
                part = handle.get_slice(key)
                tensors.append(StoredTensor(key, file, tuple(part.get_shape()), part.get_dtype()))
    return tensors


def weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a checkpoint; for shards, the keys that the index places in each.

    Where there is a single file, it is read and an index in the same folder is ignored, as in transformers, whose later saves leave the
    index of an earlier one there.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory with a model in it.")
    if (directory / WEIGHTS).is_file():
        return {directory / WEIGHTS: None}
    if (directory / INDEX).is_file():
        return _indexed_files(directory)
    if pickles := sorted(file.name for pattern in PICKLES for file in directory.glob(pattern)):
        raise CheckpointError(
            f"{directory / pickles[0]} is a pickle, which can run code when read, and is refused; convert it to safetensors."
        )
    others = sorted(file.name for file in directory.glob("*.safetensors*"))
    others += [PICKLE_INDEX] if (directory / PICKLE_INDEX).exists() else []
    there = f", only {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}" if others else ""
    raise CheckpointError(f"{directory} has neither {WEIGHTS} nor {INDEX}{there}.")


def _indexed_files(directory: Path) -> dict[Path, set[str] | None]:
    path = directory / INDEX
    weight_map: Any = read_object(path, CheckpointError).get("weight_map")
    try:
        files: dict[Path, set[str] | None] = {}
        for key, name in weight_map.items():
            if Path(name).name != name:
                raise CheckpointError(f"{path} places {key} in {name}, outside the model's directory.")
            keys = files.setdefault(directory / name, set())
            assert keys is not None
            keys.add(key)
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is not a readable index with a weight_map.") from None
    if not files:
        raise CheckpointError(f"{path} has an empty weight_map.")
    for file in files:
        if file.suffix != ".safetensors":
            raise CheckpointError(f"{path} names {file.name}, which is not a safetensors file and is refused.")
        if not file.exists():
            raise CheckpointError(f"{file} is named in {INDEX}, but does not exist.")
    return files


def open_safetensors(file: Path) -> Any:
    """A memory-mapped file. Raises CheckpointError on what is not one, or not all of one."""
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist.") from None
    # A RuntimeError is PyTorch's, which maps the file, where that went meanwhile.
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        kind = "is cut short or damaged" if "ncomplete" in str(error) else "is not a safetensors file"
        raise CheckpointError(f"{file} {kind}: {' '.join(str(error).split())}.") from None


def parameter_shapes(config: RerankerConfig) -> dict[str, torch.Size]:
    """Name and shape of every parameter of a model of this config, without building it in memory."""
    return _shapes(_build_on_meta(config))


def _shapes(model: RerankerModel) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def _build_on_meta(config: RerankerConfig) -> RerankerModel:
    with torch.device("meta"), _NoInitialisation():
        return RerankerModel(config)


def match_tensors(tensors: list[StoredTensor], expected: Mapping[str, torch.Size], origin: Path) -> dict[str, StoredTensor]:
    """Give every parameter its tensor. Raises CheckpointError naming what is missing, unexpected or misshapen."""
    matched: dict[str, StoredTensor] = {}
    for tensor in tensors:
        key = our_key(tensor.key)
        if key is None:
            continue
        if key not in expected:
            message = f"{tensor.file} has an unexpected tensor {tensor.key} of shape {list(tensor.shape)}."
            raise CheckpointError(note_file_defaults(message, origin / CONFIG, keys_of_count(key)))
        if key in matched:
            raise CheckpointError(_repeat_message(matched[key], tensor))
        if tensor.shape != tuple(expected[key]):
            message = (
                f"{tensor.file}: {tensor.key} has shape {list(tensor.shape)}, but the config asks for {list(expected[key])}."
            )
            raise CheckpointError(note_file_defaults(message, origin / CONFIG, keys_of_shape(key)))
        if tensor.type not in FLOAT_TYPES:
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} has type {tensor.type}, but must be one of {list(FLOAT_TYPES)}."
            )
        matched[key] = tensor
    if missing := [key for key in expected if key not in matched]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"{origin} lacks the tensor {their_key(missing[0])}{more}."
        raise CheckpointError(note_file_defaults(message, origin / CONFIG, keys_of_count(missing[0])))
    return matched


def _repeat_message(first: StoredTensor, second: StoredTensor) -> str:
    if first.file == second.file:
        return f"{second.file}: {first.key} and {second.key} are the same parameter twice."
    names = first.key if first.key == second.key else f"{first.key} and {second.key}"
    return f"{first.file} and {second.file.name} both hold the same parameter: {names}."


def read_tensors(
    matched: Mapping[str, StoredTensor], dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the wanted type (None: as stored), on the wanted device, file after file."""
    by_file: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for key, tensor in matched.items():
        by_file.setdefault(tensor.file, []).append((key, tensor))
    for file, members in by_file.items():
        unconverted = [pair for pair in members if device.type == "cpu" and dtype in (None, FLOAT_TYPES[pair[1].type])]
        with open_safetensors(file) as handle:
            for key, tensor in unconverted:
                yield key, handle.get_tensor(tensor.key)
        unconverted_keys = {key for key, _ in unconverted}
        for chunk in _chunks([pair for pair in members if pair[0] not in unconverted_keys]):
            with open_safetensors(file) as handle:
                for key, tensor in chunk:
                    yield key, handle.get_tensor(tensor.key).to(device=device, dtype=dtype)


def _chunks(members: list[tuple[str, StoredTensor]]) -> Iterator[list[tuple[str, StoredTensor]]]:
    chunk: list[tuple[str, StoredTensor]] = []
    size = 0
    for pair in members:
        if chunk and size + pair[1].num_bytes > CONVERT_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(pair)
        size += pair[1].num_bytes
    if chunk:
        yield chunk


def load_checkpoint(directory: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> RerankerModel:
    """Build the model of a checkpoint directory.

    Args:
        directory: holds config.json and model.safetensors, or the shards of model.safetensors.index.json.
        dtype: type of the weights; None: as stored.
        device: where they go.

    Raises ConfigError and CheckpointError, one sentence naming file and key.
    """
    config = RerankerConfig.load(directory)
    model = _build_on_meta(config)
    matched = match_tensors(list_tensors(directory), _shapes(model), directory)
    state = dict(read_tensors(matched, dtype, torch.device(device)))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def save_checkpoint(
    model: RerankerModel,
    directory: str | os.PathLike[str],
    tokenizer_file: Path | None = None,
    dtype: torch.dtype | None = None,
    layout: str = "hub",
    max_shard_bytes: int = 5 * 10**9,
    image_settings: ImageSettings | None = None,
) -> None:
    """Write config, weights, picture settings and tokenizer in a form that this loader and transformers read.

    Each file is written under a temporary name and then moved into place, so that an older file stays whole until then. `layout`
    is "hub" (as the released files) or "nested" (as newer transformers). Raises CheckpointError where writing fails.
    """
    directory = path_of(directory, CheckpointError)
    prefixes = {"hub": HUB_PREFIXES, "nested": NESTED_PREFIXES}[layout]
    state = model.state_dict()
    tensors = {
        their_key(key, prefixes): state[key].detach().to("cpu", dtype or state[key].dtype).contiguous()
        for key in parameter_shapes(model.config)  # the model's own: adapters are saved by m0.checkpoints.adapters.layers
    }
    stored_type = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = {**model.config.to_dict(layout), "torch_dtype": stored_type}
    settings = image_settings or ImageSettings()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        pictures = image_settings_files(directory, settings, model.config.vision)
        _write_weights(directory, tensors, max_shard_bytes)
        for path, content in {directory / CONFIG: config, **pictures}.items():
            _write_json(path, content)
        if tokenizer_file is not None and tokenizer_file.resolve() != (directory / TOKENIZER).resolve():
            # Other readers refuse a byte order mark.
            (directory / TOKENIZER).write_bytes(tokenizer_file.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the model cannot be written to {directory}: {error}.") from None


def _write_weights(directory: Path, tensors: dict[str, Tensor], max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_atomically(directory / WEIGHTS, partial(_save_shard, shards[0]))
        (directory / INDEX).unlink(missing_ok=True)
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with contextlib.ExitStack() as moves:  # all are written before the first is moved into place
        for name, shard in zip(names, shards, strict=True):
            moves.enter_context(atomic_write(directory / name, partial(_save_shard, shard)))
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    (directory / WEIGHTS).unlink(missing_ok=True)


def _save_shard(tensors: dict[str, Tensor], path: str) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


class _NoInitialisation(TorchFunctionMode):
    """Weights that are read from a file need no first values. (On the meta device drawing some would import torch._dynamo, which
    takes longer than all else of loading.)"""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """Write a file under a temporary name and move it into place, so that nobody ever reads half of one."""
    with atomic_write(path, write):
        pass


@contextlib.contextmanager
def atomic_write(path: Path, write: Callable[[str], Any]) -> Iterator[None]:
    """Write a file under a temporary name, and move it into place at the end of the `with` block; after an error nothing is left of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)
        yield
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
