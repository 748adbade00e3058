"""Train m0-nano from nothing on the data of `nano/build_data.py`, on two CPU cores.

    PYTHONPATH=scripts python -m nano.train [--data build/nano-data] [--out weights/m0-nano] [--steps WORDS SEEING AGAIN CROSS | --minutes 90]

1. A byte-level BPE is trained on the training texts (what is held out is left out).
2. Meanings of tokens and concepts in closed form (`nano/latent.py`): which tokens occur with which emoji, sections and folders
   of drawings; how rare each token is, and for which languages it speaks.
3. Words (`nano/words.py`): bags of tokens by the thousand name their concepts. Half of the sections are left out
   of this and of the step before.
4. Seeing (`nano/seeing.py`): the vision tower learns to show what it sees in the words' meanings: emoji, drawings, and words on
   pages. No decoder layer takes part, so a step costs little.
5. Words again, towards where the pictures have come to lie.
6. `nano/circuit.py` writes all this into a decoder that compares means and matches words.
7. Cross-encoder: all but the vision tower is trained on lists of documents and queries, every query against every document of
   its list. Its sections are those that the words have not learned by heart, for else it would never need to match words. Each
   document is read once and is the parent of all its queries (`m0.model.attention.Packing`). Loss: listwise softmax over each query's
   documents (ListNet top-1, Cao et al. 2007), plus a tenth of binary cross-entropy on `logit - 2.65`, which fixes the scale that
   softmax leaves open.

Seeds are fixed. With `--steps` every machine makes the same updates; with `--minutes` learning rates follow the clock, so that a slower
machine trains less but always anneals, and the log says how many updates it made.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from nano.circuit import IMPORTANCE, LANGUAGE, MEANING, MEANINGS, RARITY, RARITY_SCALE, write_circuit
from nano.latent import concept_numbers, count_occurrences, factorize_counts, inverse_document_frequency, language_shares
from nano.lists import Lists, Pair
from nano.material import SECTION_CHARACTERS, Material, open_on_white
from nano.pages import fonts
from nano.seeing import LANGUAGE_STRENGTH, VisionTraining, mean_meanings
from nano.tokens import IMAGE_SETTINGS, SCORE_TOKEN, Piece, Writer, pack, train_tokenizer
from nano.words import WordBags
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from m0.checkpoints.files import load_checkpoint, save_checkpoint
from m0.model.config import DecoderConfig, RerankerConfig, VisionConfig
from m0.model.reranker_model import RerankerModel

STAGE_TIME_SHARES = {"words": 0.07, "seeing": 0.65, "words again": 0.06, "cross-encoder": 0.22}
"""Of the time."""
STAGE_STEPS = {"words": 500, "seeing": 2000, "words again": 500, "cross-encoder": 1100}
"""Updates unless told otherwise: about two hours on two cores that do nothing else."""
COUNTED_COLUMNS = [RARITY, *range(LANGUAGE.start, LANGUAGE.stop)]
"""Columns of the embeddings that are counted, not learned."""


def log(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


def nano_config(tokenizer: Tokenizer) -> RerankerConfig:
    return RerankerConfig(
        vision=VisionConfig(depth=4, hidden_size=192, num_heads=4),
        decoder=DecoderConfig(
            hidden_size=256,
            num_layers=6,
            num_heads=4,
            num_kv_heads=2,
            intermediate_size=768,
            vocab_size=math.ceil(tokenizer.get_vocab_size() / 64) * 64,
            mrope_section=(8, 12, 12),
        ),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        score_token_id=SCORE_TOKEN,
    )


def initialise(model: RerankerModel, generator: torch.Generator) -> None:
    """Weights that keep the scale of their input (std 1 / sqrt(fan-in)), a third of that where a branch joins the residual
    stream, and 0.15 of it out of the vision tower, so that visual tokens are as long as words; embeddings at std 0.1, biases zero.
    """
    joining = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            std = 0.1 if "embed_tokens" in name else parameter[0].numel() ** -0.5 * (0.3 if name.endswith(joining) else 1.0)
            parameter.data.normal_(0.0, std, generator=generator)
        elif not name.endswith("weight"):
            parameter.data.zero_()
    model.vision.merger.mlp[2].weight.data.mul_(0.15)


def whiten_patch_embedding(model: RerankerModel, writer: Writer, material: Material, generator: torch.Generator) -> None:
    """Patches of pictures differ mostly in brightness. The patch embedding starts with their principal components, brought
    to like size, so that edges and colours count from the first step."""
    rng = random.Random(0)
    shown = [emoji.picture(rng, 0.3) for emoji in material.emoji]
    shown += [drawing.picture(rng, 0.3) for drawing in rng.sample(material.drawings, 800)]
    patches = torch.cat([writer.picture(picture).patches for picture in shown])
    patches -= patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    weight = model.vision.patch_embed.proj.weight
    size = weight.shape[0]
    values, vectors = values.flip(0)[:size], vectors.flip(1)[:, :size]
    components = 0.7 * (vectors / (values + 2e-4 * values[0]).sqrt()).T
    turned = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q @ components
    weight.data.copy_(turned.view_as(weight))


# --- before the decoder takes part ------------------------------------------------------------------------------------


def write_counted_embeddings(
    model: RerankerModel, writer: Writer, material: Material, numbers: dict[object, int]
) -> tuple[Tensor, list[str]]:
    """What can be counted goes into the embeddings. Returns where the concepts lie, and the languages in their order."""
    words, importance, vectors = factorize_counts(count_occurrences(material, writer, numbers), MEANINGS)
    languages, shares = language_shares(material, writer)
    table = model.decoder.embed_tokens.weight.data
    table[:, MEANING], table[:, IMPORTANCE] = words, importance
    table[:, RARITY] = RARITY_SCALE * inverse_document_frequency(material, writer).log()
    table[:, LANGUAGE] = 0.0
    table[:, LANGUAGE.start : LANGUAGE.start + len(languages)] = LANGUAGE_STRENGTH * shares
    last = model.vision.merger.mlp[2]
    last.weight.data[RARITY], last.bias.data[RARITY] = 0.0, 0.0  # as rare for every visual token
    return vectors, languages


@torch.no_grad()
def picture_vectors(
    model: RerankerModel, writer: Writer, material: Material, words: WordBags, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the pictures of each emoji, and those of each drawing's name, lie: there words will be wanted. The other concepts stay
    where they are. All of length 1."""
    rng = random.Random(3)

    def mean_of_views(emoji: list) -> Tensor:
        views = (
            mean_meanings(model, writer, [concept.picture(rng, unchanged_chance) for concept in emoji])
            for unchanged_chance in (1.0, 0.0, 0.0)
        )
        return F.normalize(sum(F.normalize(view, dim=1) for view in views), dim=1)

    vectors = vectors.clone()
    for start in range(0, len(material.emoji), 200):
        emoji = material.emoji[start : start + 200]
        vectors[start : start + len(emoji)] = mean_of_views(emoji)
    numbers = torch.tensor([words.name_number[drawing.name] for drawing in material.drawings])
    name_vectors = torch.zeros(len(words.name_number), MEANINGS)
    for start in range(0, len(material.drawings), 200):
        drawings = material.drawings[start : start + 200]
        name_vectors.index_add_(0, numbers[start : start + 200], mean_of_views(drawings))
    return F.normalize(vectors, dim=1), F.normalize(name_vectors, dim=1)


# --- cross-encoder ----------------------------------------------------------------------------------------------------


def score_grids(model: RerankerModel, grids: list[tuple[list[Piece], list[Piece]]]) -> list[Tensor]:
    """Logits of every query against every document of its list, (queries, documents), each document computed once."""
    pieces: list[Piece] = []
    parents: list[int | None] = []
    spans = []
    for queries, documents in grids:
        first = len(pieces)
        pieces += [*documents, *queries * len(documents)]
        parents += [None] * len(documents)
        parents += [first + document for document in range(len(documents)) for _ in queries]
        spans.append((first + len(documents), len(pieces)))
    logits = model.head(model.decoder(*pack(model, pieces, parents)))
    return [
        logits[start:end].view(len(documents), len(queries)).T
        for (start, end), (queries, documents) in zip(spans, grids, strict=True)
    ]


def pointwise(logits: Tensor, labels: Tensor, clash: Tensor) -> Tensor:
    """Binary cross-entropy of each relevance, what is wanted weighing as much as all the rest of its list."""
    weight = torch.where(labels.bool(), len(labels) - 1.0, 1.0).masked_fill(clash, 0.0)
    return F.binary_cross_entropy_with_logits(logits - RerankerConfig.logit_bias, labels, weight=weight)


def list_loss(model: RerankerModel, writer: Writer, lists: list[list[Pair]]) -> tuple[Tensor, dict[str, float]]:
    grids = [([writer.query(p.query) for p in pairs], [writer.document(p.document) for p in pairs]) for pairs in lists]
    total, notes = torch.zeros(()), {}
    for number, (pairs, logits) in enumerate(zip(lists, score_grids(model, grids), strict=True)):
        clash, count = Lists.also_right_mask(pairs), len(pairs)
        target, labels = torch.arange(count), torch.eye(count)
        masked = logits.masked_fill(clash, -1e4)
        listwise = F.cross_entropy(masked, target)
        total = total + listwise + 0.1 * pointwise(logits, labels, clash) / 2
        kind = ("emoji", type(pairs[0].concept).__name__.lower(), f"third {type(pairs[0].concept).__name__.lower()}")[number]
        notes[kind] = (masked.argmax(1) == target).float().mean().item()
    return total, notes


def cross_encoder_rates(model: RerankerModel) -> dict[float, list[nn.Parameter]]:
    """Learning rates: the layers of the circuit learn more slowly than the free ones above."""
    layers = list(model.decoder.layers)
    return {
        3e-5: [model.decoder.embed_tokens.weight],
        6e-5: [p for layer in layers[:4] for p in layer.parameters()],
        2e-4: [*(p for layer in layers[4:] for p in layer.parameters()), *model.decoder.norm.parameters()],
        5e-4: list(model.head.parameters()),
    }


# --- the plain loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageLength:
    """Of a stage: by the clock, or in updates."""

    seconds: float = math.inf
    steps: float = math.inf

    def share(self, seconds: float, steps: int) -> float:
        """How much of it is over, in [0, 1]."""
        return min(1.0, max(seconds / self.seconds if self.seconds else 1.0, steps / self.steps if self.steps else 1.0))

    def __bool__(self) -> bool:
        return self.share(0.0, 0) < 1


def run_stage(
    name: str,
    rates: dict[float, list[nn.Parameter]],
    loss_of: Callable[[float], tuple[Tensor, dict[str, float]]],
    length: StageLength,
    check: Callable[[], None],
    matrices: Sequence[nn.Parameter] = (),
    matrix_rate: float = 2e-3,
) -> int:
    """AdamW, each group of parameters at its rate, and Muon (Jordan et al. 2024) for `matrices`; warm-up over the first 3 %, then
    cosine to zero. Returns the number of updates."""
    groups = []
    for rate, members in rates.items():
        groups.append({"params": [p for p in members if p.ndim > 1], "weight_decay": 0.02, "rate": rate})
        groups.append({"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0, "rate": rate})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)]
    if matrices:
        group = {"params": list(matrices), "weight_decay": 0.02, "rate": matrix_rate}
        optimizers.append(torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw"))
    parameters = [p for members in rates.values() for p in members]  # Muon's updates are of one size whatever the gradients'
    begin = last_log = time.monotonic()
    steps, notes_since_log = 0, defaultdict(list)
    while (share := length.share(time.monotonic() - begin, steps)) < 1:
        factor = min(1.0, share / 0.03 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share))
        loss, notes = loss_of(share)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        steps += 1
        for key, value in {"loss": loss.item(), **notes}.items():
            notes_since_log[key].append(value)
        if time.monotonic() - last_log > 60:
            text = ", ".join(f"{key} {sum(values) / len(values):.3f}" for key, values in notes_since_log.items())
            log(f"{name}: {share:.0%}, step {steps}, {text}")
            notes_since_log.clear()
            check()
            last_log = time.monotonic()
    return steps


def at_most_every(check: Callable[[], None], seconds: float = 290) -> Callable[[], None]:
    """Called often, the check is made only when so much time has passed since the last."""
    last_check = time.monotonic()

    def check_if_due() -> None:
        nonlocal last_check
        if time.monotonic() - last_check > seconds:
            check()
            last_check = time.monotonic()

    return check_if_due


# --- checks on the way ------------------------------------------------------------------------------------------------


class HeldOutChecks:
    """Success@1 on a small part of the held-out material; the full figures come from `nano/evaluate.py`."""

    def __init__(self, material: Material) -> None:
        rng = random.Random(5)
        folder = material.folder
        names = [(row, language) for row in material.emoji_rows for language in row["held_out"]]
        drawings = list({row["name"]: row for row in material.held_drawings}.values())
        by_language = defaultdict(list)
        for row in material.held_sections:
            by_language[row["language"]].append(row)
        self.groups: dict[str, list[tuple[list, list]]] = defaultdict(list)
        for _ in range(10):
            chosen = rng.sample(names, 20)
            pictures = [Image.open(folder / row["image"]) for row, _ in chosen]
            self.groups["emoji"].append(([row["names"][language] for row, language in chosen], pictures))
        for _ in range(5):
            some = rng.sample(drawings, 20)
            self.groups["drawing"].append(
                ([row["name"] for row in some], [open_on_white(folder / row["image"]) for row in some])
            )
        for rows in by_language.values():
            if len(rows) >= 10:
                some = rng.sample(rows, 10)
                texts = [row["text"][:SECTION_CHARACTERS] for row in some]
                self.groups["section"].append(([row["heading"] for row in some], texts))
        ids = defaultdict(list)
        for row in material.held_sections:
            ids[row["id"]].append(row)
        several = [rows for rows in ids.values() if len(rows) >= 2]
        for _ in range(6):
            two = [rng.sample(rows, 2) for rows in rng.sample(several, 20)]
            self.groups["translation"].append(
                ([a["heading"] for a, _ in two], [b["text"][:SECTION_CHARACTERS] for _, b in two])
            )
            some = rng.sample(material.held_sections, 20)
            pages = [Image.open(folder / row["page"]) for row in some]
            self.groups["page"].append(([row["heading"] for row in some], pages))

    @torch.no_grad()
    def score_by_bags(self, model: RerankerModel, writer: Writer) -> str:
        return self._report(
            lambda queries, documents: mean_meanings(model, writer, queries) @ mean_meanings(model, writer, documents).T
        )

    @torch.no_grad()
    def score_by_model(self, model: RerankerModel, writer: Writer) -> str:
        def grid(queries: list, documents: list) -> Tensor:
            return score_grids(model, [([writer.query(q) for q in queries], [writer.document(d) for d in documents])])[0]

        return self._report(grid)

    def _report(self, grid: Callable[[list, list], Tensor]) -> str:
        parts = []
        for kind, groups in self.groups.items():
            hits = [(grid(queries, documents).argmax(1) == torch.arange(len(queries))).float() for queries, documents in groups]
            parts.append(f"{kind} {torch.cat(hits).mean():.3f}")
        return "held out: " + ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--out", type=Path, default=Path("weights/m0-nano"))
    length_of_run = parser.add_mutually_exclusive_group()
    length_of_run.add_argument("--minutes", type=float, help="of all stages together")
    length_of_run.add_argument(
        "--steps",
        type=int,
        nargs=len(STAGE_TIME_SHARES),
        default=list(STAGE_STEPS.values()),
        metavar="STEPS",
        help=f"of {', '.join(STAGE_TIME_SHARES)}; no seeing with 0 (default: {' '.join(map(str, STAGE_STEPS.values()))})",
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs=len(STAGE_TIME_SHARES),
        default=list(STAGE_TIME_SHARES.values()),
        metavar="SHARE",
        help=f"of the minutes, for {', '.join(STAGE_TIME_SHARES)}; no seeing with 0",
    )
    parser.add_argument("--warm", type=Path, help="begin after words with the words and the tower that an earlier run saved")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    material = Material(options.data)
    tokenizer = train_tokenizer(material.texts(), options.out)
    tokenizer_file = options.out / "tokenizer.json"
    config = nano_config(tokenizer)
    model = RerankerModel(config)
    initialise(model, generator)
    log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, vocabulary {config.decoder.vocab_size}")
    save_checkpoint(model, options.data / "untrained", tokenizer_file=tokenizer_file, image_settings=IMAGE_SETTINGS)

    writer = Writer(tokenizer, config)
    whiten_patch_embedding(model, writer, material, generator)
    lists, checks = Lists(material, options.seed), HeldOutChecks(material)
    numbers = concept_numbers(material)
    table = model.decoder.embed_tokens.weight
    vectors, languages = write_counted_embeddings(model, writer, material, numbers)
    counted = table.detach()[:, COUNTED_COLUMNS].clone()
    words = WordBags(material, writer, numbers, options.seed)
    if options.minutes is None:
        lengths = [StageLength(steps=steps) for steps in options.steps]
    else:
        lengths = [StageLength(seconds=60 * options.minutes * share) for share in options.shares]
    length = dict(zip(STAGE_TIME_SHARES, lengths, strict=True))
    steps = {}

    def keep(name: str) -> None:
        save_checkpoint(model, options.data / name, tokenizer_file=tokenizer_file, image_settings=IMAGE_SETTINGS)

    if options.warm:
        model.load_state_dict(load_checkpoint(options.warm, torch.float32).state_dict())
        vectors = F.normalize(words.mean_vectors(table.detach(), len(numbers)), dim=1)
    else:
        concepts = nn.Parameter(vectors)
        steps["words"] = run_stage(
            "words",
            {3e-3: [table], 2e-3: [concepts]},
            lambda _: words.loss(table, F.normalize(concepts, dim=1)),
            length["words"],
            lambda: None,
        )
        vectors = F.normalize(concepts.detach(), dim=1)
        log(f"words, {checks.score_by_bags(model, writer)}")
        keep("words")
    if length["seeing"]:
        first_plain = 0.4 if options.warm else 0.9
        seeing = VisionTraining(model, writer, material, words, vectors, languages, fonts(options.data), options.seed)
        # The next pictures are drawn while the tower computes, by one thread of its own: were it to share its work out as well,
        # OpenMP's threads would outnumber the cores and sleep between any two operations (2.45 seconds an update; so about 2.2).
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as beside:
            waiting = beside.submit(seeing.batch, first_plain)

            def see(done: float) -> tuple[Tensor, dict[str, float]]:
                nonlocal waiting
                batch = waiting.result()
                # First as the files are, then more and more as a screen might show them.
                waiting = beside.submit(seeing.batch, max(0.2, first_plain - 1.8 * done))
                return seeing.loss(batch)

            def see_check() -> None:
                log(checks.score_by_bags(model, writer))
                keep("warm")

            tower = [*model.vision.parameters(), *seeing.letters.parameters()]
            steps["seeing"] = run_stage(
                "seeing",
                {1.5e-3: [p for p in tower if p.ndim != 2], 3e-4: [table]},
                see,
                length["seeing"],
                at_most_every(see_check),
                matrices=[p for p in tower if p.ndim == 2],
            )
        log(checks.score_by_bags(model, writer))
        keep("warm")
    vectors, drawings = picture_vectors(model, writer, material, words, vectors)
    log("concepts have settled")
    steps["words again"] = run_stage(
        "words again",
        {2e-3: [table]},
        lambda _: words.loss(table, vectors, drawings),
        length["words again"],
        lambda: None,
    )
    log(f"bags, {checks.score_by_bags(model, writer)}")

    # Means are of levelled embeddings, so training has moved these columns as well, for the sake of their length alone.
    table.data[:, COUNTED_COLUMNS] = counted
    write_circuit(model, writer, generator)
    log(f"circuit, {checks.score_by_model(model, writer)}")
    keep("circuit")

    def check() -> None:
        log(checks.score_by_model(model, writer))
        keep("latest")

    # The vision tower has learned from batches of hundreds of pictures; the few of a list would only shake it. As the vendor
    # did, it is kept.
    model.vision.requires_grad_(False)
    steps["cross-encoder"] = run_stage(
        "cross-encoder",
        cross_encoder_rates(model),
        lambda _: list_loss(model, writer, lists.step()),
        length["cross-encoder"],
        at_most_every(check),
    )
    log(checks.score_by_model(model, writer))
    log(f"steps: {steps}")
    save_checkpoint(model, options.out, tokenizer_file=tokenizer_file, dtype=torch.float16, image_settings=IMAGE_SETTINGS)
    (options.data / "steps.json").write_text(json.dumps(steps), encoding="utf-8")


if __name__ == "__main__":
    main()
