"""Speed and memory of the released size (2.2 B random parameters) on this machine, beside transformers' Qwen2-VL.

    python scripts/bench/speed.py [--only NAME ...] [--runs 3] [--threads 2] [--groups 1] [--json FILE] [--plot FILE] [--folder DIR]

Both run in one process on the same weights, in bfloat16, turn by turn; figures are medians, smallest and largest in brackets. The reference is called as the
vendor's code calls it: batches of 8, left-padded, SDPA (`tests/parity/reference.py`). Prompts are tokenized and pictures opened
beforehand for both. `memory` and `load` run in processes of their own.

| name | what is timed | bar |
| --- | --- | --- |
| mixed | 8 text pairs of 32 to 512 tokens, 1664 in all | 2.5 times the reference's speed; 85 % of the speed of its matrix products alone |
| text | one text pair of 512 tokens | 1.15 |
| short | text pairs of 16, 32 and 128 tokens, one at a time | none |
| picture | a picture of 768 tokens and a query of 30 | 1.3 |
| many | 16 queries x 8 documents of 800 tokens, half of them with a picture; the reference's 16 batches are timed once and taken 16 times | 10 |
| kept | a kept document of 800 tokens and a new query of 16, against the whole pair (both ours) | 15 |
| growth | ours at 1,000 to 10,000 tokens of text, a token | linear within 25 % after attention's own part |
| nano | m0-nano, 1000 short documents against transformers with the same weights, in several types (as stored is float16), compiled and in 8 bits | 5 |
| groups | one 8-bit layer with groups of inputs | none |
| int8 | mixed, in 8 bits (`--groups`: of inputs) | 4 times the bfloat16 reference, 1.6 times our own bfloat16 |
| profile | where our time goes in mixed and picture, by kind of operation | none |
| gpu | 64 pairs, text and pictures, on a GPU, as it is, compiled and in float8; without one it says so | 2; 50 % of the speed of the chip's matrix products |
| memory | peak of 8 pairs with pictures, weights included | 0.7 of the reference's |
| load | from a bfloat16 file to the first score | 0.25 of the reference's time |
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from training import write_checkpoint

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)
WORDS = "the network must be configured after the system was installed on the disk of this machine ".split()
REQUIRED_RATIOS = {"mixed": 2.5, "text": 1.15, "picture": 1.3, "many": 10, "kept": 15, "nano": 5, "int8": 4, "gpu": 2}
IN_ONE_PROCESS = ("mixed", "text", "short", "picture", "profile", "kept", "many", "growth", "nano", "groups", "int8", "gpu")
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::matmul", "aten::bmm", "aten::mkldnn_linear"),
    "attention": ("flash_attention", "scaled_dot_product"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::index", "aten::index_select", "aten::_to_copy"),
}
"""By the beginnings (or parts) of PyTorch's names; all others are norms, activations, rotations and sums."""
SIZE = (896, 672)
"""Of a picture of 768 visual tokens."""


def text(words: int, first: int = 0) -> str:
    return " ".join(WORDS[(first + i) % len(WORDS)] for i in range(words))


class Bench:
    """Ours and the reference on the same weights, and the table of what was found."""

    def __init__(self, runs: int, plot: Path | None = None, int8_groups: int = 1) -> None:
        self.runs, self.plot, self.int8_groups, self.rows = runs, plot, int8_groups, []

    @cached_property
    def pair(self) -> tuple[Any, Any]:
        from m0 import Reranker
        from m0.checkpoints.hub import locate
        from m0.engine.prefix_cache import DocumentCache
        from m0.inputs.images import ImageSettings
        from m0.inputs.prompt import load_tokenizer
        from tests.parity.reference import full_size_pair

        reference, model = full_size_pair(torch.bfloat16)
        ours = Reranker(model, load_tokenizer(locate("m0-nano") / "tokenizer.json"), ImageSettings())
        ours.documents = DocumentCache(max_bytes=0)
        return reference, ours

    def second_reranker(self) -> Any:
        """Ours once more, of the same weights in the same memory."""
        from m0 import Reranker, RerankerModel
        from m0.engine.prefix_cache import DocumentCache

        with torch.device("meta"):
            model = RerankerModel(self.ours.model.config)
        model.load_state_dict(self.ours.model.state_dict(), assign=True)
        found = Reranker(model.eval(), self.ours.prompt.tokenizer, self.ours.image_settings)
        found.documents = DocumentCache(max_bytes=0)
        return found

    @property
    def reference(self) -> Any:
        return self.pair[0]

    @property
    def ours(self) -> Any:
        return self.pair[1]

    def encode(self, length: int, query: str = "network", first: int = 0) -> Any:
        return self.ours.encode(query, text(length, first), max_length=length, max_doc_length=length)

    def our_scores(self, encodings: list[Any]) -> list[float]:
        return self.ours.logits_of(encodings)

    def their_scores(self, encodings: list[Any]) -> list[float]:
        return logits_by(self.reference, encodings)

    def compare(self, name: str, what: str, ours: Callable[[], Any], theirs: Callable[[], Any], times: int = 1) -> None:
        """A row with the ratios of each turn; `times`: how often the reference's work is needed, which is then timed once."""
        ours(), theirs() if times == 1 else None  # the first call pays for what later ones find
        once = [times * timed(theirs)] * self.runs if times > 1 else None
        self.time_in_turns(name, what, ours, theirs, REQUIRED_RATIOS.get(name), once)

    def time_in_turns(
        self,
        name: str,
        what: str,
        ours: Callable[[], Any],
        other: Callable[[], Any],
        bar: float | None,
        found: list[float] | None = None,
    ) -> None:
        """A row of both, timed turn by turn; `found`: the other's times where they are known."""
        other_times, our_times = list(found or ()), []
        for _ in range(self.runs):
            if found is None:
                other_times.append(timed(other))
            our_times.append(timed(ours))
        self.row(name, what, spread(our_times), spread(other_times), ratios(other_times, our_times), bar)

    def row(self, name: str, what: str, ours: str, theirs: str, ratio: str, bar: Any = None) -> None:
        self.rows.append([name, what, ours, theirs, ratio, "" if bar is None else str(bar)])
        print(f"| {' | '.join(self.rows[-1])} |", flush=True)

    # --- workloads ----------------------------------------------------------------------------------------------------

    def mixed(self) -> None:
        some = [self.encode(length, first=length) for length in LENGTHS]
        theirs = self.their_scores(some)
        difference = max(abs(a - b) for a, b in zip(self.our_scores(some), theirs, strict=True))
        what = f"8 text pairs, {sum(map(len, some))} tokens (logits differ by {difference:.1e} of {max(map(abs, theirs)):.2f})"
        self.compare("mixed", what, lambda: self.our_scores(some), lambda: self.their_scores(some))
        self.compare_products("mixed", some, 0.85)

    def compare_products(self, name: str, some: list[Any], bar: float | None, ours: Any = None) -> None:
        """A row with our time beside that of its linear layers alone, turn by turn: the speed that F.linear reaches here."""
        work, inputs = [], {}
        for linear, count in self.products(some):
            shape = (max(count, sum(map(len, some))), linear.in_features)
            if shape not in inputs:
                inputs[shape] = torch.randn(shape).to(linear.weight)
            work.append((inputs[shape][:count], linear))

        def run() -> None:
            for x, linear in work:
                F.linear(x, linear.weight, linear.bias)

        with torch.inference_mode():
            run()
            self.time_in_turns(name, "its matrix products alone", partial((ours or self.ours).logits_of, some), run, bar)

    def products(self, some: list[Any]) -> list[tuple[torch.nn.Linear, int]]:
        """The linear layers that these prompts go through, each with its rows."""
        found, rows, patches = [], sum(map(len, some)), patches_of(some)
        for place, linear in self.ours.model.named_modules():
            if not isinstance(linear, torch.nn.Linear) or place.startswith("head"):
                continue
            if place.startswith("vision"):
                count = patches // 4 if "merger" in place else patches
            else:
                last = place.startswith(f"decoder.layers.{len(self.ours.model.decoder.layers) - 1}.")
                count = len(some) if last and not place.endswith(("k_proj", "v_proj")) else rows
            if count:
                found.append((linear, count))
        return found

    def compare_chip(self, name: str, some: list[Any], bar: float, ours: Any) -> None:
        """A row with our time beside that of 8192 x 8192 x 8192 products of as many operations in all, attention's counted."""
        vision, decoder, side = self.ours.model.config.vision, self.ours.model.config.decoder, 8192
        operations = sum(2 * count * linear.weight.numel() for linear, count in self.products(some))
        operations += 2 * patches_of(some) * self.ours.model.vision.patch_embed.proj.weight.numel()
        for encoding in some:
            operations += sum(4 * (p.grid[0] * p.grid[1]) ** 2 * vision.hidden_size * vision.depth for p in encoding.pictures)
            causal = len(encoding) * (len(encoding) + 1) // 2
            operations += 4 * causal * decoder.num_heads * decoder.head_dim * (decoder.num_layers - 1)
        x, y = torch.randn(2, side, side, device=self.ours.model.device).to(self.ours.model.dtype)
        rows = operations / (2 * side**2)
        portions = [side] * int(rows // side) + [int(rows % side)]

        def run() -> None:
            for portion in portions:
                x[:portion] @ y

        run()
        what = f"{operations / 1e12:.0f} TFLOP, as products of 8192 x 8192 x 8192"
        self.time_in_turns(name, what, partial(ours.logits_of, some), run, bar)

    def text(self) -> None:
        some = [self.encode(512)]
        self.compare("text", "one text pair, 512 tokens", lambda: self.our_scores(some), lambda: self.their_scores(some))

    def short(self) -> None:
        for length in (16, 32, 128):
            some = [self.encode(length, "a")]
            what = f"one text pair, {len(some[0])} tokens"
            self.compare("short", what, lambda some=some: self.our_scores(some), lambda some=some: self.their_scores(some))

    def picture(self) -> None:
        some = [self.ours.encode(text(26), {"image": picture(1)})]
        what = f"a picture of {some[0].pictures[0].num_tokens} tokens, {len(some[0])} in all"
        self.compare("picture", what, lambda: self.our_scores(some), lambda: self.their_scores(some))

    def kept(self) -> None:
        from m0.engine.prefix_cache import DocumentCache

        some, nothing = [self.encode(800, text(14))], self.ours.documents
        self.ours.documents = DocumentCache()
        self.our_scores(some), self.our_scores(some)
        assert self.ours.documents.counts.computed == 1
        keeping, kept, anew = self.ours.documents, [], []
        for _ in range(self.runs):
            self.ours.documents = keeping
            kept.append(statistics.median(timed(lambda: self.our_scores(some)) for _ in range(3)))
            self.ours.documents = nothing
            anew.append(timed(lambda: self.our_scores(some)))
        own = len(some[0]) - some[0].num_prefix_tokens
        self.row(
            "kept",
            f"{own} of {len(some[0])} tokens new",
            spread(kept),
            spread(anew),
            ratios(anew, kept),
            REQUIRED_RATIOS["kept"],
        )

    def many(self) -> None:
        queries = [text(12, first) for first in range(16)]
        documents = [text(790, i) if i % 2 else [{"image": picture(i)}, text(24, i)] for i in range(8)]
        read = [self.ours.read(document) for document in documents]
        some = [self.ours.encode(query, document, max_length=810, max_doc_length=810) for query in queries for document in read]
        first = some[:8]
        what = f"16 queries x 8 documents, {sum(map(len, some))} tokens"
        self.compare("many", what, lambda: self.our_scores(some), lambda: self.their_scores(first), times=16)

    def profile(self) -> None:
        for name, some in (
            ("mixed", [self.encode(length, first=length) for length in LENGTHS]),
            ("picture", [self.ours.encode(text(26), {"image": picture(1)})]),
        ):
            self.our_scores(some)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                self.our_scores(some)
            spent = dict.fromkeys([*KINDS, "all else"], 0.0)
            for event in profile.key_averages():
                kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), "all else")
                spent[kind] += event.self_cpu_time_total
            total = sum(spent.values())
            shares = ", ".join(f"{kind} {time / total:.1%}" for kind, time in spent.items())
            self.row("profile", f"{name}: {shares}", f"{total / 1e6:.2f}", "", "")

    def growth(self) -> None:
        found, attentions = [], []
        for length in (1000, 2000, 4000, 10_000):
            some = [self.encode(length)]
            seconds = min(timed(lambda some=some: self.our_scores(some)) for _ in range(2))
            attention = self.attention(length)
            found.append((length, (seconds - attention) / length))
            attentions.append(attention)
            self.row(
                "growth",
                f"{length} tokens",
                f"{seconds:.2f}",
                f"attention {attention:.2f}",
                f"{1e3 * found[-1][1]:.2f} ms a token",
            )
        rates = [rate for _, rate in found]
        self.row("growth", "largest over smallest, without attention", "", "", f"{max(rates) / min(rates):.2f}", 1.25)
        if self.plot:
            draw_growth(*zip(*found, strict=True), attentions, self.plot)

    def attention(self, length: int) -> float:
        """Seconds of all layers' attention alone on one sequence."""
        from m0.model.attention import Attend, Packing

        config = self.ours.model.config.decoder
        attend, packing = Attend(), Packing([length], causal=True)
        query, key, value = (
            torch.randn(length, heads, config.head_dim).bfloat16()
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        )

        def run() -> None:
            attend(query, key, value, packing)

        with torch.inference_mode():
            run()
            return (config.num_layers - 1) * min(timed(run) for _ in range(2))

    def nano(self) -> None:
        from m0 import Reranker
        from m0.engine.prefix_cache import DocumentCache
        from m0.engine.quantize import has_kernels
        from tests.parity.reference import ReferenceReranker, share_back

        plain = Reranker.from_pretrained("m0-nano", dtype="float32", device="cpu")
        some = [plain.encode("network", text(6 + i % 30, i) + f" {i}") for i in range(1000)]
        tokens = sum(map(len, some))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            reference = ReferenceReranker(plain.model.config).eval()
            share_back(plain.model, reference)
            for parameter in reference.parameters():  # its frequencies stay as they are
                parameter.data = parameter.data.to(dtype)
            theirs = partial(logits_by, reference, some)
            for way in ("", ", compiled", ", int8, compiled"):
                if "int8" in way and not has_kernels():
                    continue
                # On a CPU we compute in float32 what is stored as float16, and in bfloat16 when told to.
                ours = Reranker.from_pretrained("m0-nano", dtype=None if dtype == torch.float16 else dtype, device="cpu")
                ours.documents = DocumentCache(max_bytes=0)
                if "int8" in way:
                    ours.quantize("int8")
                if "compiled" in way:
                    ours.compile()
                mine = partial(ours.logits_of, some)
                worst = max(abs(a - b) for a, b in zip(mine(), theirs(), strict=True))
                what = f"m0-nano, 1000 documents, {tokens} tokens, {str(ours.model.dtype).removeprefix('torch.')}{way}"
                what += f"; reference {str(dtype).removeprefix('torch.')}"
                self.compare("nano", f"{what} (logits differ by {worst:.0e})", mine, theirs)

    def int8(self) -> None:
        some = [self.encode(length, first=length) for length in LENGTHS]
        rounded = self.second_reranker()
        rounded.quantize("int8", groups=self.int8_groups)
        what = f"8 text pairs in 8 bits, {self.int8_groups} group{'s' * (self.int8_groups > 1)}"
        self.compare("int8", what, lambda: rounded.logits_of(some), lambda: self.their_scores(some))
        ours = "the same against our bfloat16"
        self.time_in_turns("int8", ours, lambda: rounded.logits_of(some), lambda: self.our_scores(some), 1.6)

    def gpu(self) -> None:
        from m0.engine.quantize import has_float8

        if not torch.cuda.is_available():
            self.row("gpu", "64 pairs, text and pictures: there is no GPU here", "", "", "", REQUIRED_RATIOS["gpu"])
            return
        self.reference.cuda(), self.ours.model.cuda()
        some = [
            self.encode(LENGTHS[i // 2 % 8], first=i + i // 16)
            if i % 2
            else self.ours.encode(text(26, i), [{"image": picture(i)}, text(24, i)])
            for i in range(64)
        ]
        what = f"64 pairs, half of them with a picture, {sum(map(len, some))} tokens, on {torch.cuda.get_device_name()}"
        theirs, one = self.their_scores(some), [self.encode(512)]
        for way in ("", "compiled", "float8, compiled"):
            ours = self.second_reranker()
            if "float8" in way:
                if not has_float8(ours.model.device):
                    continue
                ours.quantize("float8")
            if "compiled" in way:
                ours.compile()
            difference = max(abs(a - b) for a, b in zip(ours.logits_of(some), theirs, strict=True))
            note = f"{way}{', ' * bool(way)}logits differ by {difference:.1e} of {max(map(abs, theirs)):.2f}"
            self.compare("gpu", f"{what} ({note})", partial(ours.logits_of, some), lambda: self.their_scores(some))
            self.compare_products("gpu", some, None, ours)
            self.compare_chip("gpu", some, 0.5, ours)
            ours.logits_of(one), self.their_scores(one)  # warm
            self.time_in_turns(
                "gpu", f"one text pair, 512 tokens ({way})", partial(ours.logits_of, one), lambda: self.their_scores(one), None
            )

    def groups(self) -> None:
        from m0.engine.quantize import Int8Linear

        linear = self.ours.model.decoder.layers[0].mlp.down_proj
        x, largest = torch.randn(1664, linear.in_features).bfloat16(), torch.rand(linear.in_features)
        with torch.inference_mode():
            plain = statistics.median(timed(lambda: linear(x)) for _ in range(2 * self.runs))
            for groups in (1, 4, 16):
                layer = Int8Linear(linear, False, largest, groups)
                layer(x)
                mine = statistics.median(timed(lambda layer=layer: layer(x)) for _ in range(2 * self.runs))
                self.row(
                    "groups",
                    f"8960 to 1536, 1664 rows, {groups} groups, against bfloat16",
                    f"{mine:.3f}",
                    f"{plain:.3f}",
                    f"{plain / mine:.2f}",
                )


def draw_growth(lengths: Sequence[int], rates: Sequence[float], attentions: Sequence[float], path: Path) -> None:
    """Seconds of a text by its length; `rates`: seconds a token without attention; `attentions`: seconds of attention."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rest = [length * rate for length, rate in zip(lengths, rates, strict=True)]
    axes.plot(lengths, [a + b for a, b in zip(rest, attentions, strict=True)], marker="o", label="whole")
    axes.plot(lengths, rest, marker="o", label="without attention")
    axes.plot(lengths, [length * rates[0] for length in lengths], "k:", label=f"at the rate of {lengths[0]} tokens")
    axes.set_xlabel("tokens of text")
    axes.set_ylabel("seconds")
    axes.legend()
    figure.savefig(path, dpi=120)


def logits_by(reference: Any, encodings: list[Any]) -> list[float]:
    """The reference's logits, 8 prompts at a time."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(encodings), 8):
            some = encodings[start : start + 8]
            pictures = [picture for encoding in some for picture in encoding.pictures]
            patches = torch.cat([p.patches for p in pictures]).to(reference.score[0].weight) if pictures else None
            found += reference([e.token_ids for e in some], patches, [p.grid for p in pictures]).tolist()
    return found


def patches_of(some: list[Any]) -> int:
    return sum(rows * columns for encoding in some for rows, columns in (picture.grid for picture in encoding.pictures))


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (SIZE[1] // 14, SIZE[0] // 14, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).resize(SIZE, Image.Resampling.BICUBIC)


def timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def ratios(slower: Sequence[float], faster: Sequence[float]) -> str:
    """Of each turn: median, smallest and largest."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


# --- in processes of their own ----------------------------------------------------------------------------------------


def run_in_own_process(stage: str, folder: Path, threads: int) -> dict[str, float]:
    """Run one stage of this script in a new process; what it measured."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_stage(stage: str, folder: Path) -> None:
    """ours/theirs x load/memory: print seconds to the first score, and the peak memory in GiB."""
    whose, what = stage.split("-")
    if whose == "theirs":
        import m0  # writes their prompts as well; its import is not theirs to answer for

        assert m0.Reranker
    begin = time.perf_counter()
    if whose == "ours":
        from m0 import Reranker

        reranker = Reranker.from_pretrained(folder, dtype="bfloat16", device="cpu")
        run = reranker.logits_of
        encoder = reranker
    else:
        run, encoder = their_reranker(folder)
    if what == "load":
        run([encoder.encode("network", text(12))])
    else:
        pictures = [{"image": picture(i)} for i in range(8)]
        run([encoder.encode(text(20), [shown, text(30, i)]) for i, shown in enumerate(pictures)])
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def their_reranker(folder: Path) -> tuple[Callable[[list[Any]], Any], Any]:
    """transformers' from_pretrained, with the score head as the vendor's class has it; and something that writes prompts."""
    from m0 import RerankerConfig
    from m0.inputs.images import ImageSettings
    from m0.inputs.prompt import PromptEncoder, load_tokenizer
    from m0.inputs.reading import read_parts
    from tests.parity.reference import from_pretrained

    reference = from_pretrained(folder)
    prompt = PromptEncoder(load_tokenizer(folder / "tokenizer.json"), RerankerConfig.load(folder))

    class Encoder:
        @staticmethod
        def encode(query: Any, document: Any) -> Any:
            settings = ImageSettings()
            return prompt.encode(read_parts(query, "query", settings), read_parts(document, "document", settings))

    return partial(logits_by, reference), Encoder


def measure_processes(names: list[str], folder: Path, runs: int, threads: int) -> list[list[str]]:
    rows = []
    if names:
        write = [sys.executable, __file__, "--stage", "write", "--folder", str(folder)]
        subprocess.run(write, check=True)
    if "load" in names:
        run_in_own_process("ours-load", folder, threads)  # the file is in the page cache for both from here on
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(runs):
            for whose, seconds in found.items():
                seconds.append(run_in_own_process(f"{whose}-load", folder, threads)["seconds"])
        rows.append(
            [
                "load",
                "file to first score, imports included",
                spread(found["ours"]),
                spread(found["theirs"]),
                ratios(found["ours"], found["theirs"]),
                "0.25",
            ]
        )
    if "memory" in names:
        peaks = {whose: run_in_own_process(f"{whose}-memory", folder, threads)["gib"] for whose in ("ours", "theirs")}
        ratio = peaks["ours"] / peaks["theirs"]
        rows.append(
            [
                "memory",
                "8 pairs with pictures, peak GiB",
                f"{peaks['ours']:.2f}",
                f"{peaks['theirs']:.2f}",
                f"{ratio:.2f}",
                "0.7",
            ]
        )
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*IN_ONE_PROCESS, "memory", "load"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--groups", type=int, default=1, help="of inputs, in int8")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--plot", type=Path, help="draw the growth there")
    parser.add_argument("--folder", type=Path, help="where to put a checkpoint of 5 GB; default: a temporary folder")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stage == "write":
        write_checkpoint(options.folder)
        return
    if options.stage:
        run_stage(options.stage, options.folder)
        return
    print(
        f"{platform.machine()}, {options.threads} threads, PyTorch {torch.__version__}, medians of {options.runs} runs, seconds\n"
    )
    print("| name | what | ours | reference | ratio | bar |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    apart = [name for name in options.only if name not in IN_ONE_PROCESS]
    rows = []
    if apart:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows += measure_processes(apart, Path(folder), options.runs, options.threads)
    if len(apart) < len(options.only):
        bench = Bench(options.runs, options.plot, options.groups)
        for name in IN_ONE_PROCESS:
            if name in options.only:
                getattr(bench, name)()
        rows += bench.rows
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
