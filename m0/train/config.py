"""What to train, on what, and how: read from a TOML file, every key checked.

model = "m0-nano"
data = ["train.jsonl"]
output = "runs/first"

[lora]
r = 8

[[stage]]
train = "lora"
epochs = 2
loss = { listnet = 1.0, bce = 0.1 }

[[stage]]
train = "head"
epochs = 1
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from m0.checkpoints.adapters.config import LoRAConfig
from m0.errors import AdapterError, ConfigError, M0Error, MissingExtraError
from m0.paths import path_of
from m0.train.losses import DISTILLATION_LOSSES, LOSSES

DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Stage:
    """One part of a training run, with one set of trained parameters."""

    train: Literal["lora", "head", "all"]
    """`lora`: the adapter's matrices; `head`: the score head; `all`: every parameter of the model."""
    epochs: int = 1
    steps: int | None = None
    """Stop after this many steps instead of after `epochs`."""
    loss: Mapping[str, float] = field(default_factory=lambda: {"listnet": 1.0, "bce": 0.1})
    """Losses by name (`m0.train.losses`) with their weights."""
    queries_per_step: int = 16
    """Queries between two updates, over all processes."""
    queries_per_pass: int = 16
    """Queries that go through the model together; smaller needs less memory. Gradients are accumulated over a step."""
    positives: int = 1
    """Relevant documents in a query's list, at most."""
    negatives: int = 7
    """Other documents in a query's list, at most; drawn anew each epoch."""
    in_batch_negatives: bool = False
    """Each query of a pass also meets the other queries' positives; each document is computed once all the same."""
    hard_negatives: int = 0
    """Before the stage, mine this many hard negatives a query with the model as it is then."""
    mining_pool: int = 64
    """Documents of other queries among which hard negatives are looked for, a query."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    """On matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises; it then falls along a cosine."""
    final: float = 0.0
    """Where the cosine ends, as a share of the learning rate."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    @property
    def distils(self) -> bool:
        """Whether a teacher's scores are needed."""
        return any(name in DISTILLATION_LOSSES for name in self.loss)

    def check(self, number: int) -> None:
        """Raises ConfigError, naming the stage by its `number`, where a setting cannot be used."""
        where = f"stage {number}"
        if unknown := set(self.loss) - set(LOSSES):
            raise ConfigError(f"{where}: there is no loss {sorted(unknown)[0]!r}; known are {', '.join(LOSSES)}.")
        if not self.loss or not all(0 < weight < math.inf for weight in self.loss.values()):
            raise ConfigError(f"{where}: loss must name at least one loss, each with a finite weight above 0.")
        for name in ("epochs", "queries_per_step", "queries_per_pass", "positives", "mining_pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}, but must be at least 1.")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"{where}: steps is {self.steps}, but must be at least 1.")
        for name in ("negatives", "hard_negatives", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}, but must not be below 0.")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}, but must be above 0 and finite.")
        if not math.isfinite(self.weight_decay):
            raise ConfigError(f"{where}: weight_decay is {self.weight_decay}, but must be finite.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"{where}: betas are {list(self.betas)}, but must be at least 0 and below 1.")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}, but must lie between 0 and 1.")
        if self.queries_per_step % self.queries_per_pass:
            raise ConfigError(
                f"{where}: queries_per_step is {self.queries_per_step}, but must be a multiple of queries_per_pass, "
                f"{self.queries_per_pass}."
            )
        if self.hard_negatives and self.distils:
            raise ConfigError(f"{where}: a teacher has no scores for hard_negatives; leave them out, or the distilling loss.")
        if self.in_batch_negatives and self.distils:
            raise ConfigError(
                f"{where}: a teacher has no scores for in_batch_negatives; leave them out, or the distilling loss."
            )


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run. Raises ConfigError where settings do not go together."""

    data: tuple[str, ...]
    """JSONL files (`m0.train.data`); relative paths start at the config file."""
    output: str
    """The run's directory: checkpoints, curves, a record of the run, and the result."""
    stages: tuple[Stage, ...]
    model: str = "m0-nano"
    """A name, directory or hub id, as for `Reranker.from_pretrained`."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    validation: tuple[str, ...] = ()
    """JSONL files on which loss and success@1 are measured, each query against all its documents."""
    validate_every: int = 100
    """Steps."""
    checkpoint_every: int = 100
    """Steps."""
    keep_checkpoints: int = 2
    seed: int = 1
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights. What is trained is kept in float32, or float64."""
    autocast: bool = False
    """Compute in bfloat16 where that is safe (torch.autocast)."""
    gradient_checkpointing: bool = False
    """Keep each layer's input only, and compute the layer again in the backward pass: less memory, a third more time."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: a whole model in each process, or (FSDP2) its weights shared out."""
    device: str | None = None
    on_bad_line: Literal["raise", "skip"] = "raise"
    max_length: int = 10240
    max_query_length: int = 512
    max_doc_length: int | None = None
    max_pixels: int | None = None
    result: Literal["auto", "adapter", "checkpoint"] = "auto"
    """What is written at the end: a LoRA adapter in peft's format, or a full checkpoint. auto: the adapter if one was trained."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("there is no [[stage]].")
        for number, stage in enumerate(self.stages, 1):
            stage.check(number)
        kinds = {stage.train for stage in self.stages}
        if {"lora", "all"} <= kinds:
            raise ConfigError(
                "one stage trains lora and another all; an adapter is trained beside frozen weights, so choose one."
            )
        if "all" in kinds and self.dtype in ("bfloat16", "float16"):
            raise ConfigError(
                f'train = "all" needs dtype float32, not {self.dtype}: small updates vanish; autocast = true saves time.'
            )
        if self.result == "adapter" and "lora" not in kinds:
            raise ConfigError('result is "adapter", but no stage trains lora.')
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}, but must be at least 0 and below 2^63.")
        for name in ("max_length", "max_query_length", "max_doc_length", "max_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}, but must be at least 1.")
        if self.lora.modules_to_save:
            raise ConfigError('lora: modules_to_save is set by the stages: one that trains "head" saves the head.')
        if self.lora.lora_bias or self.lora.bias != "none":
            raise ConfigError("lora: lora_bias and bias are read from peft's files, but not trained; leave them out.")
        for name in ("validate_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be at least 1.")

    @property
    def trains_lora(self) -> bool:
        """Whether a stage trains an adapter."""
        return any(stage.train == "lora" for stage in self.stages)

    @property
    def trains_head(self) -> bool:
        """Whether a stage trains the score head alone."""
        return any(stage.train == "head" for stage in self.stages)

    @property
    def adapter_config(self) -> LoRAConfig:
        """The adapter's settings; the head travels with it where a stage trains it."""
        saved = ("score",) if self.trains_head else ()
        return LoRAConfig(**{**vars(self.lora), "modules_to_save": saved})

    @classmethod
    def load(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> TrainConfig:
        """Read a TOML file. `changes` replaces top-level keys. Raises ConfigError, naming the file and the key."""
        path = path_of(path, ConfigError)
        try:
            values = _read_toml(path)
            values.update(changes or {})
            return cls.of(values, path.parent)
        except M0Error as error:
            if isinstance(error, MissingExtraError) or str(error).startswith(str(path)):
                raise
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def of(cls, values: Mapping[str, Any], folder: Path | None = None) -> TrainConfig:
        """From a mapping as the TOML file holds it; `folder`: where relative paths of data and output start. Raises ConfigError."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"the settings are {type(values).__name__}, but must be a mapping.")
        settings = dict(values)
        folder = folder or Path()
        if "stages" in settings:
            raise ConfigError("there is no setting 'stages'; write [[stage]], once for each.")
        stages = settings.pop("stage", [])
        if not isinstance(stages, list):
            raise ConfigError("stage must be written [[stage]], once for each.")
        lora = settings.pop("lora", {})
        if isinstance(lora, dict) and isinstance(lora.get("target_modules"), list):
            lora = {**lora, "target_modules": tuple(lora["target_modules"])}
        for name in ("data", "validation"):
            if isinstance(settings.get(name), str):
                settings[name] = [settings[name]]
            if isinstance(settings.get(name), list | tuple):
                settings[name] = tuple(
                    str(path_of(f, ConfigError, folder)) if isinstance(f, str) else f for f in settings[name]
                )
        if isinstance(settings.get("output"), str):
            settings["output"] = str(path_of(settings["output"], ConfigError, folder))
        if isinstance(model := settings.get("model"), str) and (path := path_of(model, ConfigError, folder)).is_dir():
            settings["model"] = str(path)
        nested = {
            "stages": tuple(_build_dataclass(Stage, stage, f"stage {number}: ") for number, stage in enumerate(stages, 1)),
            "lora": _build_lora(lora),
        }
        return _build_dataclass(cls, {**settings, **nested}, "")


def _build_lora(values: Any) -> LoRAConfig:
    try:
        return _build_dataclass(LoRAConfig, values, "lora: ")
    except AdapterError as error:
        raise ConfigError(f"lora: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise MissingExtraError(
                "on Python 3.10, reading a TOML file needs tomli: pip install 'm0-reranker[train]'."
            ) from None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is not a path: {error}.") from None


def _build_dataclass(kind: type, values: Any, where: str) -> Any:
    """A dataclass from a mapping, keys and types checked against its annotations."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}holds {type(values).__name__}, but must be a table.")
    hints = get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]
    for key, value in values.items():
        if key not in known:
            shown = [name for name in known if name != "stages"]
            raise ConfigError(f"{where}there is no setting {key!r}; known are {', '.join(shown)}.")
        values = {**values, key: _coerce(value, hints[key], f"{where}{key}")}
    required = [entry.name for entry in fields(kind) if _is_required(entry)]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where}{missing[0]} is missing.")
    return kind(**values)


def _is_required(entry: Any) -> bool:
    from dataclasses import MISSING

    return entry.default is MISSING and entry.default_factory is MISSING


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """The value in the annotated type, or a ConfigError. An int will do for a float, a list for a tuple."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, arguments))}.")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            try:
                return _coerce(value, option, name)
            except ConfigError:
                continue
        raise ConfigError(f"{name} is {value!r}, which is not of the right type.")
    if origin is tuple and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ConfigError(f"{name} must hold {len(inner)} values, not {len(value)}.")
        return tuple(_coerce(item, option, name) for item, option in zip(value, inner, strict=True))
    if origin in (dict, Mapping) or hint in (dict, Mapping) or (origin is not None and issubclass(origin, Mapping)):
        if isinstance(value, Mapping):
            return {key: _coerce(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
        raise ConfigError(f"{name} is {value!r}, but must be a table.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    type_name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{name} is {value!r}, but must be {'text' if type_name == 'str' else type_name}.")
