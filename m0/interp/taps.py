"""Taps: every activation that has a name in a paper, where it is found in the model, and how to look at it.

Most stand where a module begins or ends and are reached by PyTorch's own hooks; scores and pattern are formed only while
somebody watches them (`m0.model.attention.Attend`). A model without hooks is the plain model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m0.errors import InputError
from m0.model.attention import Attend, Block, Watcher
from m0.model.config import RerankerConfig
from m0.model.reranker_model import RerankerModel

RowUnit = Literal["tokens", "sequences", "patches", "cells"]
"""What the first axis counts: a sequence's tokens, sequences, a picture's patches, or its visual tokens."""
Hook = Callable[[Tensor, "Block | None"], Tensor]
"""Gets an activation as the model holds it, all sequences or pictures end to end, and returns what takes its place. Scores and
patterns come block by block."""
HookKind = Literal[
    "input", "output", "query", "key", "value", "rotated_query", "rotated_key", "scores", "pattern", "result"
]  # fmt: skip


@dataclass(frozen=True)
class Tap:
    """One named activation."""

    name: str
    shape: str
    """Of one sequence or picture. In the decoder's last layer only the score token asks, so what its queries lead to has one
    row, unless every token is asked for."""
    rows: RowUnit
    module: str
    """Where it is found: a module of the model."""
    how: HookKind
    heads: int = 0
    """How many heads it has on its second axis (scores and pattern: on its first); 0: none."""

    @property
    def is_pattern(self) -> bool:
        """Whether it holds attention scores or patterns."""
        return self.how in ("scores", "pattern")

    @property
    def layer(self) -> int | None:
        """Number of its layer or block."""
        numbers = [int(part) for part in self.name.split(".") if part.isdigit()]
        return numbers[0] if numbers else None

    def __str__(self) -> str:
        return f"{self.name}  {self.shape}"


def all_taps(config: RerankerConfig) -> list[Tap]:
    """Every tap of a model, in the order data flows."""
    vision, decoder = config.vision, config.decoder
    width, inner = vision.hidden_size, vision.mlp_size
    taps = [Tap("vision.embeddings", f"(patches, {width})", "patches", "vision.patch_embed", "output")]
    for i in range(vision.depth):
        prefix, module_prefix = f"vision.blocks.{i}", f"vision.blocks.{i}"
        taps += _block_taps(
            prefix,
            module_prefix,
            "patches",
            width,
            vision.num_heads,
            vision.num_heads,
            vision.head_dim,
            "norm1",
            "norm2",
            "attn",
        )
        taps += [
            Tap(f"{prefix}.mlp.pre", f"(patches, {inner})", "patches", f"{module_prefix}.mlp.fc1", "output"),
            Tap(f"{prefix}.mlp.post", f"(patches, {inner})", "patches", f"{module_prefix}.mlp.fc2", "input"),
            Tap(f"{prefix}.mlp.out", f"(patches, {width})", "patches", f"{module_prefix}.mlp", "output"),
            Tap(f"{prefix}.residual.after", f"(patches, {width})", "patches", module_prefix, "output"),
        ]
    size, inner = decoder.hidden_size, decoder.intermediate_size
    taps += [
        Tap("vision.merger.in", f"(patches, {width})", "patches", "vision.merger", "input"),
        Tap("vision.merger.out", f"(visual tokens, {size})", "cells", "vision.merger", "output"),
        Tap("decoder.embeddings", f"(tokens, {size})", "tokens", "decoder", "input"),
    ]
    for i in range(decoder.num_layers):
        prefix, module_prefix = f"decoder.layers.{i}", f"decoder.layers.{i}"
        heads, kv_heads = decoder.num_heads, decoder.num_kv_heads
        names = ("input_layernorm", "post_attention_layernorm", "self_attn")
        taps += _block_taps(prefix, module_prefix, "tokens", size, heads, kv_heads, decoder.head_dim, *names)
        taps += [
            Tap(f"{prefix}.mlp.pre", f"(tokens, {inner})", "tokens", f"{module_prefix}.mlp.gate_proj", "output"),
            Tap(f"{prefix}.mlp.up", f"(tokens, {inner})", "tokens", f"{module_prefix}.mlp.up_proj", "output"),
            Tap(f"{prefix}.mlp.post", f"(tokens, {inner})", "tokens", f"{module_prefix}.mlp.down_proj", "input"),
            Tap(f"{prefix}.mlp.out", f"(tokens, {size})", "tokens", f"{module_prefix}.mlp", "output"),
            Tap(f"{prefix}.residual.after", f"(tokens, {size})", "tokens", module_prefix, "output"),
        ]
    return [
        *taps,
        Tap("decoder.norm.out", f"(1, {size})", "tokens", "decoder.norm", "output"),
        Tap("head.pre", f"(1, {size})", "sequences", "head.0", "output"),
        Tap("head.hidden", f"(1, {size})", "sequences", "head.1", "output"),
        Tap("head.logit", "(1,)", "sequences", "head", "output"),
    ]


def _block_taps(
    prefix: str,
    module_prefix: str,
    rows: RowUnit,
    width: int,
    heads: int,
    kv_heads: int,
    dim: int,
    norm1: str,
    norm2: str,
    attention: str,
) -> list[Tap]:
    """What a block of the tower and a layer of the decoder have in common, up to its MLP."""
    name, module = f"{prefix}.attention", f"{module_prefix}.{attention}"
    separate = rows == "tokens"  # query, key and value are three layers in the decoder, one in the tower
    places: list[tuple[str, HookKind]] = (
        [(f"{module}.q_proj", "output"), (f"{module}.k_proj", "output"), (f"{module}.v_proj", "output")]
        if separate
        else [(f"{module}.qkv", "query"), (f"{module}.qkv", "key"), (f"{module}.qkv", "value")]
    )
    (query, query_how), (key, key_how), (value, value_how) = places
    out = f"{module}.{'o_proj' if separate else 'proj'}"
    per_head, per_kv_head = f"({rows}, {heads}, {dim})", f"({rows}, {kv_heads}, {dim})"
    return [
        Tap(f"{prefix}.residual.before", f"({rows}, {width})", rows, module_prefix, "input"),
        Tap(f"{prefix}.attention_norm.out", f"({rows}, {width})", rows, f"{module_prefix}.{norm1}", "output"),
        Tap(f"{name}.query", per_head, rows, query, query_how, heads),
        Tap(f"{name}.key", per_kv_head, rows, key, key_how, kv_heads),
        Tap(f"{name}.value", per_kv_head, rows, value, value_how, kv_heads),
        Tap(f"{name}.rotated_query", per_head, rows, f"{module}.attend", "rotated_query", heads),
        Tap(f"{name}.rotated_key", per_kv_head, rows, f"{module}.attend", "rotated_key", kv_heads),
        Tap(f"{name}.scores", f"({heads}, {rows}, {rows})", rows, f"{module}.attend", "scores", heads),
        Tap(f"{name}.pattern", f"({heads}, {rows}, {rows})", rows, f"{module}.attend", "pattern", heads),
        Tap(f"{name}.z", per_head, rows, out, "input", heads),
        Tap(f"{name}.result", f"({rows}, {heads}, {width})", rows, out, "result", heads),
        Tap(f"{name}.out", f"({rows}, {width})", rows, f"{module_prefix}.{attention}", "output"),
        Tap(f"{prefix}.residual.between", f"({rows}, {width})", rows, f"{module_prefix}.between", "output"),
        Tap(f"{prefix}.mlp_norm.out", f"({rows}, {width})", rows, f"{module_prefix}.{norm2}", "output"),
    ]


def find_taps(config: RerankerConfig, patterns: str | Iterable[str]) -> list[Tap]:
    """The taps whose names match any of these shell patterns (`*` reaches over dots).

    Scores and patterns of the vision tower are so large (gigabytes a picture at the released size) that only a pattern that begins
    with "vision" matches them. Raises InputError where a pattern matches none.
    """
    pattern_list = [patterns] if isinstance(patterns, str) else list(patterns)
    taps = all_taps(config)

    def matches(tap: Tap, pattern: str) -> bool:
        large = tap.is_pattern and tap.rows == "patches"
        return fnmatchcase(tap.name, pattern) and (not large or pattern.startswith("vision"))

    for pattern in pattern_list:
        if not isinstance(pattern, str) or not any(matches(tap, pattern) for tap in taps):
            raise InputError(f"no activation is named {pattern!r}; reranker.taps() lists them.")
    return [tap for tap in taps if any(matches(tap, pattern) for pattern in pattern_list)]


HOOK_LOCK = threading.RLock()
"""Held while hooks are attached, taken away, or copied with their module: PyTorch numbers them without a lock."""


class HookHandles:
    """Hooks that are taken away together. They act in the thread that attached them: in others the model is the plain model."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def add_pre_hook(self, module: nn.Module, hook: Callable[[Any, tuple[Any, ...]], Any]) -> None:
        """Call `hook(module, arguments)` before the module; what it returns takes the arguments' place, but for None."""
        thread = threading.current_thread()

        def hook_in_thread(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return hook(module, args) if threading.current_thread() is thread else None

        with HOOK_LOCK:
            self._undo.append(module.register_forward_pre_hook(hook_in_thread).remove)

    def add_forward_hook(self, module: nn.Module, hook: Callable[[Any, tuple[Any, ...], Any], Any]) -> None:
        """Call `hook(module, arguments, output)` after the module; what it returns takes the output's place, but for None."""
        thread = threading.current_thread()

        def hook_in_thread(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return hook(module, args, output) if threading.current_thread() is thread else None

        with HOOK_LOCK:
            self._undo.append(module.register_forward_hook(hook_in_thread).remove)

    def add_attention_watcher(self, attend: Attend, watcher: Watcher) -> None:
        """Show scores and patterns to `watcher` (see `m0.model.attention.Attend`)."""
        entry = (threading.current_thread(), watcher)

        def undo() -> None:
            attend.watchers = [other for other in attend.watchers if other is not entry]

        with HOOK_LOCK:
            attend.watchers = [*attend.watchers, entry]  # another thread may be reading the old list
            self._undo.append(undo)

    def remove(self) -> None:
        """Take all hooks away."""
        with HOOK_LOCK:
            while self._undo:
                self._undo.pop()()


def attach_hook(model: RerankerModel, tap: Tap, hook: Hook, handles: HookHandles) -> None:
    """Let `hook` look at an activation and replace it, in this thread's calls. What it returns unchanged stays the very tensor it was."""
    module = model.get_submodule(tap.module)

    def hook_heads_apart(x: Tensor) -> Tensor:
        """See it with its heads apart."""
        if not tap.heads:
            return hook(x, None)
        by_head = x.unflatten(-1, (tap.heads, -1))
        hooked = hook(by_head, None)
        return x if hooked is by_head else hooked.flatten(-2)

    if tap.is_pattern:

        def watch(name: str, x: Tensor, block: Block) -> Tensor:
            return hook(x, block) if name == tap.how else x

        assert isinstance(module, Attend)
        handles.add_attention_watcher(module, watch)
    elif tap.how == "input":
        handles.add_pre_hook(module, lambda _, args: (hook_heads_apart(args[0]), *args[1:]))
    elif tap.how == "output":
        handles.add_forward_hook(module, lambda _, args, output: hook_heads_apart(output))
    elif tap.how in ("rotated_query", "rotated_key"):
        place = 0 if tap.how == "rotated_query" else 1
        handles.add_pre_hook(module, lambda _, args: (*args[:place], hook(args[place], None), *args[place + 1 :]))
    elif tap.how == "result":
        handles.add_forward_hook(module, lambda m, args, output: _hook_head_results(m, args[0], output, tap.heads, hook))
    else:
        part = ("query", "key", "value").index(tap.how)
        handles.add_forward_hook(module, lambda _, args, output: _hook_qkv_part(output, part, tap.heads, hook))


def effective_weight_and_bias(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight (inputs, outputs) and bias (outputs,) of a linear layer as it acts, an adapter on it included; hooks are passed by."""
    ones = torch.eye(layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    bias = layer.forward(torch.zeros_like(ones[:1]))
    return layer.forward(ones) - bias, bias[0]


def _hook_head_results(module: Any, z: Tensor, output: Tensor, heads: int, hook: Hook) -> Tensor:
    """Each head's share of the output: z through the head's own columns of the output projection."""
    weight, _ = effective_weight_and_bias(module)
    results = torch.einsum("thd,hdw->thw", z.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1)))
    hooked = hook(results, None)
    return output if hooked is results else output + (hooked - results).sum(1)


def _hook_qkv_part(output: Tensor, part: int, heads: int, hook: Hook) -> Tensor:
    parts = output.unflatten(-1, (3, heads, -1))
    before = parts[:, part]
    hooked = hook(before, None)
    if hooked is before:
        return output
    return torch.stack([hooked if i == part else parts[:, i] for i in range(3)], dim=1).flatten(1)


def check_heads(tap: Tap, heads: int | Sequence[int] | None) -> list[int] | None:
    """Numbers of heads as a list. Raises InputError where the tap has no such heads."""
    if heads is None:
        return None
    chosen = [heads] if isinstance(heads, int) else list(heads)
    for head in chosen:
        if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < tap.heads:
            known = f"has the heads 0 to {tap.heads - 1}" if tap.heads else "has no heads"
            raise InputError(f"head {head!r} is asked for, but {tap.name} {known}.")
    return chosen
