"""Train m0-nano from nothing on the data of `build_nano_data.py`, on two CPU cores.

    python scripts/train_nano.py [--data build/nano-data] [--out weights/m0-nano] [--warm-minutes 11.5] [--minutes 30]

1. A byte-level BPE is trained on the training texts (held-out names and sections are left out).
2. Warm start: token embeddings and vision tower learn to name the concept of a text or picture (an emoji, or a section in
   any language) among all concepts: softmax over the cosine of the mean token with a learned vector for each concept, which
   is thrown away at the end. No decoder layer takes part, so a step costs little.
3. Cross-encoder: lists of documents and queries, every query against every document of its batch. Each document is read
   once and is the parent of all its queries (`m0.attention.Packing`). Loss: listwise softmax over each query's documents
   (ListNet top-1, Cao et al. 2007), plus a tenth of binary cross-entropy on `logit - 2.65`, which fixes the scale that
   softmax leaves open, plus the naming of concepts half-way up: after layer 3 the last token before the query must name the
   document's concept, and the score token the query's. The upper layers then have two summaries to compare, side by side;
   attention starts by copying and comparing (see `start_by_copying`). (Without summaries the cross-encoder was still at chance
   after 400 steps, from every warm start tried; without the copying start it had barely left it after 260.)

Learning rates follow the clock, so that a slower machine trains less
but always anneals. Seeds are fixed; the number of steps that a machine reaches is written to the log and the model card.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageEnhance, ImageFilter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from m0.attention import Packing
from m0.checkpoint import load_checkpoint, save_checkpoint
from m0.config import DecoderConfig, RerankerConfig, VisionConfig
from m0.images import ImageSettings, Picture, prepare_picture
from m0.model import RerankerModel
from m0.rotary import Grid, mrope_positions

VOCABULARY = 20_000  # without the special tokens
SPECIAL_TOKENS = """
    <|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
""".split()
# How Qwen2 cuts text before merging: contractions, words with the blank before them, single digits, punctuation, blanks.
PRETOKENS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WARM_BATCH = (1024, 96, 64)  # texts, pictures, sections
SUMMARY_LAYERS = 3
SUMMARY_WEIGHT = 0.3
WARM_SCALE = 20.0
SECTION_CHARACTERS = 420
SCORE_TOKEN = 100


def log(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


# --- data -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Emoji:
    """One concept: a picture, and the texts in every language that training may see."""

    def __init__(self, row: dict, folder: Path) -> None:
        self.category = row["category"]
        self.image = Image.open(folder / row["image"]).convert("RGBA")
        self.names = {k: v for k, v in row["names"].items() if k not in row["held_out"]}
        held = {row["names"][k].casefold() for k in row["held_out"]}
        self.keywords: dict[str, list[str]] = {}
        for language, words in row["keywords"].items():
            # A held-out name listed among the keywords of its language would not be held out.
            if words := [word for word in words if language not in row["held_out"] or word.casefold() not in held]:
                self.keywords[language] = words
        self.languages = sorted(set(self.names) | set(self.keywords))
        self.texts = {t.casefold() for t in (*self.names.values(), *(w for ws in self.keywords.values() for w in ws))}

    def text(self, rng: random.Random, short: bool) -> str:
        """A name, a keyword, or as a document several of them."""
        language = rng.choice(self.languages)
        name, words = self.names.get(language), self.keywords.get(language, [])
        if name and (rng.random() < 0.5 or not words):
            if short or not words or rng.random() < 0.5:
                return name
            return ", ".join([name, *rng.sample(words, min(len(words), rng.randint(1, 4)))])
        if short:
            return rng.choice(words)
        return ", ".join(rng.sample(words, min(len(words), rng.randint(1, 5))))


class Section:
    def __init__(self, row: dict) -> None:
        self.id, self.language, self.heading, self.text_ = row["id"], row["language"], row["heading"], row["text"]
        marks = ".!?。！？؟।"
        sentences, start = [], 0
        for i, character in enumerate(self.text_):
            if character in marks and i - start > 30:
                sentences.append(self.text_[start : i + 1].strip())
                start = i + 1
        self.sentences = sentences or [self.text_]

    def pair(self, rng: random.Random) -> tuple[str, str]:
        """A query and a document: the heading, some of its words, or a sentence; and a stretch of the section."""
        length = rng.randint(SECTION_CHARACTERS // 3, SECTION_CHARACTERS)
        first = 0 if rng.random() < 0.5 else rng.randrange(len(self.sentences))
        document = " ".join(self.sentences[first:])[:length]
        kind = rng.random()
        if kind < 0.3:
            return some_words(document, rng), document
        if kind < 0.75 or len(self.sentences) < 3:
            return self.heading, document
        asked = min(first + rng.randint(0, 2), len(self.sentences) - 1)
        rest = [s for i, s in enumerate(self.sentences[first:], first) if i != asked or rng.random() < 0.3]
        return self.sentences[asked][:120], " ".join(rest)[:length] or self.text_[:length]


def some_words(text: str, rng: random.Random) -> str:
    """What somebody who knows the text might ask for: a phrase of it, or a few of its longer words. Teaches to match words."""
    words = text.split()
    if len(words) < len(text) / 15:  # written without blanks
        words = [text[i : i + 4] for i in range(0, len(text) - 3, 4)] or [text]
    count = min(rng.randint(1, 4), len(words))
    if rng.random() < 0.5:
        start = rng.randrange(len(words) - count + 1)
        return " ".join(words[start : start + count])
    longer = [word for word in words if len(word) > 3] or words
    return " ".join(rng.sample(longer, min(count, len(longer))))


def augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as screens show it: other background, size, place, colour, angle, sharpness. RGB."""
    if rng.random() < 0.3:
        return image.convert("RGB")  # as the file is: transparency dropped
    background = rng.choice([(255, 255, 255), (0, 0, 0), tuple(rng.randrange(256) for _ in range(3))])
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
    side = rng.choice([56, 56, 56, 56, 84])
    inner = max(28, int(side * rng.uniform(0.7, 1.1)))
    image = image.resize((inner, inner), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (side, side), background)
    slack = side - inner
    offset = [rng.randint(min(slack, 0), max(slack, 0)) for _ in range(2)]
    canvas.paste(image, (offset[0], offset[1]), image)
    if rng.random() < 0.3:
        canvas = ImageEnhance.Color(canvas).enhance(rng.uniform(0.3, 1.5))
    if rng.random() < 0.3:
        canvas = ImageEnhance.Brightness(canvas).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.15:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return canvas


# --- tokens ---------------------------------------------------------------------------------------------------------


def train_tokenizer(emoji: list[Emoji], sections: list[Section], out: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts():
        yield "**Document**:\n\n**Query**:\n"
        for concept in emoji:
            for language in concept.languages:
                yield " ".join([concept.names.get(language, ""), *concept.keywords.get(language, [])])
        for section in sections:
            yield f"{section.heading}\n{section.text_}"

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    assert tokenizer.id_to_token(SCORE_TOKEN) == "§", "the byte alphabet puts the score token at id 100"
    return tokenizer


@dataclass
class Piece:
    """Tokens of a document with its template, or of a query with the score token."""

    ids: list[int]
    runs: list[int | Grid]
    picture: Picture | None = None


class Writer:
    """Text or picture -> Piece, in the prompt's words (see `m0.prompt`)."""

    def __init__(self, tokenizer: Tokenizer, config: RerankerConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if (ids := self.cache.get(text)) is None:
            ids = self.cache[text] = self.tokenizer.encode(text).ids
        return ids

    def around(self, before: str, content: str | Picture, after: str, last: list[int]) -> Piece:
        if isinstance(content, str):
            ids = [*self.encode(before + content + after), *last]
            return Piece(ids, [len(ids)])
        head = [*self.encode(before), self.config.vision_start_token_id]
        tail = [self.config.vision_end_token_id, *self.encode(after), *last]
        ids = [*head, *[self.config.image_token_id] * content.num_tokens, *tail]
        return Piece(ids, [len(head), content.token_grid, len(tail)], content)

    def document(self, content: str | Picture) -> Piece:
        return self.around("**Document**:\n", content, "\n**Query**:\n", [])

    def query(self, content: str | Picture) -> Piece:
        return self.around("", content, "", [self.config.score_token_id])


def next_position(runs: list[int | Grid]) -> int:
    return sum(run if isinstance(run, int) else max(run) for run in runs)


@dataclass
class Packed:
    ids: Tensor
    positions: Tensor
    packing: Packing
    features: Tensor | None


def pack(model: RerankerModel, pieces: list[Piece], parents: list[int | None]) -> Packed:
    """Pieces end to end; every picture goes through the vision tower once, however many pieces show it."""
    ids, positions = [], []
    pictures = {id(piece.picture): piece.picture for piece in pieces if piece.picture is not None}
    for piece, parent in zip(pieces, parents, strict=True):
        start = 0 if parent is None else next_position(pieces[parent].runs)
        ids.extend(piece.ids)
        positions.append(mrope_positions(piece.runs) + start)
    features = None
    if pictures:
        shown = list(pictures.values())
        seen = model.vision(torch.cat([picture.patches for picture in shown]), [picture.grid for picture in shown])
        parts = dict(zip(pictures, seen.split([picture.num_tokens for picture in shown]), strict=True))
        features = torch.cat([parts[id(piece.picture)] for piece in pieces if piece.picture is not None])
    packing = Packing([len(piece.ids) for piece in pieces], causal=True, parents=parents)
    return Packed(torch.tensor(ids), torch.cat(positions, dim=1), packing, features)


# --- batches --------------------------------------------------------------------------------------------------------


class Sampler:
    def __init__(self, emoji: list[Emoji], sections: list[Section], writer: Writer, seed: int) -> None:
        self.emoji, self.sections, self.writer = emoji, sections, writer
        self.rng = random.Random(seed)
        self.notes: dict[str, list[float]] = defaultdict(list)
        self.by_category, self.by_language = defaultdict(list), defaultdict(list)
        for concept in emoji:
            self.by_category[concept.category].append(concept)
        for section in sections:
            self.by_language[section.language].append(section)
        self.categories = [key for key, members in self.by_category.items() if len(members) >= 60]
        self.languages = [key for key, members in self.by_language.items() if len(members) >= 20]

    def picture(self, concept: Emoji) -> Picture:
        return prepare_picture(augment(concept.image, self.rng), ImageSettings())

    def emoji_pair(self, concept: Emoji, picture_document: float, picture_query: float) -> tuple:
        rng = self.rng
        document = self.picture(concept) if rng.random() < picture_document else concept.text(rng, short=False)
        query = self.picture(concept) if rng.random() < picture_query else concept.text(rng, short=True)
        return query, document, concept

    def section_pair(self, section: Section) -> tuple:
        query, document = section.pair(self.rng)
        return query, document, section

    def some_sections(self, count: int, language: str | None = None) -> list[tuple]:
        pool = self.by_language[language] if language else self.sections
        return [self.section_pair(section) for section in self.rng.sample(pool, min(count, len(pool)))]

    def concept_batch(self, texts: int, pictures: int, sections: int) -> tuple[list[str], list[Picture], list[Emoji | Section]]:
        """Texts, then pictures, and the concept that each is of."""
        rng = self.rng
        named, shown, chosen = (
            rng.choices(self.emoji, k=texts),
            rng.sample(self.emoji, pictures),
            rng.sample(self.sections, sections),
        )
        pairs = [section.pair(rng) for section in chosen]
        written = [concept.text(rng, short=rng.random() < 0.7) for concept in named]
        written += [query for query, _ in pairs] + [document for _, document in pairs]
        return written, [self.picture(concept) for concept in shown], [*named, *chosen, *chosen, *shown]

    def list_batch(self) -> list[tuple]:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.45:
            pool = self.by_category[rng.choice(self.categories)] if rng.random() < 0.5 else self.emoji
            return [self.emoji_pair(c, 0.65, 0.15) for c in rng.sample(pool, 16)]
        if kind < 0.8:
            weights = [math.sqrt(len(self.by_language[key])) for key in self.languages]
            return self.some_sections(10, rng.choices(self.languages, weights)[0])
        pairs = [self.emoji_pair(c, 0.5, 0.1) for c in rng.sample(self.emoji, 9)]
        return pairs + self.some_sections(6, rng.choice(self.languages) if rng.random() < 0.5 else None)

    def also_right(self, pairs: list[tuple]) -> Tensor:
        """(queries, documents), True where another document's concept bears the query's words too: neither right nor wrong."""
        clash = torch.zeros(len(pairs), len(pairs), dtype=torch.bool)
        for i, (query, _, _) in enumerate(pairs):
            words = query.casefold() if isinstance(query, str) else None
            for j, (_, _, concept) in enumerate(pairs):
                if words and i != j and isinstance(concept, Emoji) and words in concept.texts:
                    clash[i, j] = True
        return clash


# --- stages ---------------------------------------------------------------------------------------------------------


class Concepts(nn.Module):
    """A vector for each concept, near which the mean token of its texts and pictures should lie; thrown away after training."""

    def __init__(self, concepts: list[Emoji | Section], hidden: int) -> None:
        super().__init__()
        self.numbers = {key: number for number, key in enumerate(dict.fromkeys(map(self.key, concepts)))}
        self.vectors = nn.Parameter(torch.randn(len(self.numbers), hidden))

    @staticmethod
    def key(concept: Emoji | Section) -> object:
        """One concept for a section in all its languages."""
        return concept.id if isinstance(concept, Section) else id(concept)

    @staticmethod
    def read(model: RerankerModel, writer: Writer, texts: list[str], pictures: list[Picture]) -> Tensor:
        """The mean token of each text, then of each picture, length 1, (texts + pictures, hidden)."""
        ids = [writer.encode(text) for text in texts]
        starts = torch.tensor([0, *(len(i) for i in ids)]).cumsum(0)[:-1]
        bags = F.embedding_bag(torch.tensor([i for some in ids for i in some]), model.decoder.embed_tokens.weight, starts)
        seen = model.vision(torch.cat([picture.patches for picture in pictures]), [picture.grid for picture in pictures])
        means = [part.mean(0) for part in seen.split([picture.num_tokens for picture in pictures])]
        return F.normalize(torch.cat([bags, torch.stack(means)]), dim=-1)

    def loss(self, model: RerankerModel, sampler: Sampler, batch: tuple[int, int, int]) -> tuple[Tensor, float]:
        texts, pictures, owners = sampler.concept_batch(*batch)
        logits = WARM_SCALE * self.read(model, sampler.writer, texts, pictures) @ F.normalize(self.vectors, dim=-1).T
        target = torch.tensor([self.numbers[self.key(owner)] for owner in owners])
        losses = F.cross_entropy(logits, target, reduction="none")
        shown = len(pictures)
        right = (logits[-shown:].argmax(1) == target[-shown:]).float().mean().item()
        return losses[:-shown].mean() + losses[-shown:].mean(), right

    @torch.no_grad()
    def settle(self, model: RerankerModel, sampler: Sampler) -> None:
        """Put each concept's vector at the mean of its texts, so that the next stage may start from a saved warm start."""
        total = torch.zeros_like(self.vectors)
        for _ in range(60):
            texts, pictures, owners = sampler.concept_batch(WARM_BATCH[0], 1, 4 * WARM_BATCH[2])
            numbers = torch.tensor([self.numbers[self.key(owner)] for owner in owners])
            total.index_add_(0, numbers, self.read(model, sampler.writer, texts, pictures))
        self.vectors.copy_(F.normalize(total, dim=-1))

    def name(self, states: Tensor, owners: list[Emoji | Section]) -> Tensor:
        """Loss of naming the owners from states, a scalar."""
        logits = WARM_SCALE * F.normalize(states, dim=-1) @ F.normalize(self.vectors, dim=-1).T
        return F.cross_entropy(logits, torch.tensor([self.numbers[self.key(owner)] for owner in owners]))


def start_by_copying(model: RerankerModel) -> None:
    """Give attention a head start: it begins by copying what it looks at, and in the upper layers by looking at the same.

    A head's output is the transpose of its value, halved, so that together they pass on a random half of the state's
    directions unchanged. Above the summary layers, queries are halved copies of the keys they share.
    """
    for number, layer in enumerate(model.decoder.layers):
        attention = layer.self_attn
        groups = attention.num_heads // attention.num_kv_heads
        value = attention.v_proj.weight.data.unflatten(0, (attention.num_kv_heads, -1)).repeat_interleave(groups, dim=0)
        attention.o_proj.weight.data.copy_(value.flatten(0, 1).T / groups)
        if number >= SUMMARY_LAYERS:
            key = attention.k_proj.weight.data.unflatten(0, (attention.num_kv_heads, -1)).repeat_interleave(groups, dim=0)
            attention.q_proj.weight.data.copy_(key.flatten(0, 1) / 2)


def read_grid(model: RerankerModel, queries: list[Piece], documents: list[Piece]) -> tuple[Tensor, Tensor]:
    """Every query against every document, each document computed once.

    Returns: logits (queries, documents), and the states after the summary layers of the last token of each sequence: the
    documents' prefixes first, then for each document all queries, (documents + documents * queries, hidden).
    """
    count = len(documents)
    parents: list[int | None] = [None] * count
    parents += [document for document in range(count) for _ in queries]
    batch = pack(model, documents + queries * count, parents)
    half_way = []
    hook = model.decoder.layers[SUMMARY_LAYERS - 1].register_forward_hook(lambda _m, _a, output: half_way.append(output))
    logits = model.head(model.decoder(model.embed(batch.ids, batch.features), batch.positions, batch.packing))
    hook.remove()
    return logits[count:].view(count, len(queries)).T, half_way[0][batch.packing.last]


def score_grid(model: RerankerModel, queries: list[Piece], documents: list[Piece]) -> Tensor:
    """Logits of every query against every document, (queries, documents)."""
    return read_grid(model, queries, documents)[0]


def list_loss(model: RerankerModel, sampler: Sampler, concepts: Concepts) -> tuple[Tensor, float]:
    pairs = sampler.list_batch()
    queries = [sampler.writer.query(query) for query, _, _ in pairs]
    logits, states = read_grid(model, queries, [sampler.writer.document(document) for _, document, _ in pairs])
    clash = sampler.also_right(pairs)
    target = torch.arange(len(pairs))
    listwise = F.cross_entropy(logits.masked_fill(clash, -1e4), target)
    wanted = torch.eye(len(pairs))
    weight = torch.where(wanted.bool(), len(pairs) - 1.0, 1.0).masked_fill(clash, 0.0)
    pointwise = F.binary_cross_entropy_with_logits(logits - model.config.logit_bias, wanted, weight=weight) / 2
    hits = (logits.masked_fill(clash, -1e4).argmax(1) == target).float().mean().item()
    owners = [owner for _, _, owner in pairs]
    summaries = concepts.name(states[: len(pairs)], owners) + concepts.name(states[len(pairs) :], owners * len(pairs))
    sampler.notes["list"].append(listwise.item())
    sampler.notes["summary"].append(summaries.item() / 2)
    return listwise + 0.1 * pointwise + SUMMARY_WEIGHT * summaries, hits


def run_stage(
    name: str,
    rates: dict[float, list[nn.Parameter]],
    loss_of: Callable[[], tuple[Tensor, float]],
    seconds: float,
    check: Callable[[], None],
) -> int:
    """AdamW for `seconds`, each group of parameters at its rate; warm-up over 3 % of the time, then cosine to zero."""
    groups = []
    for rate, members in rates.items():
        groups.append({"params": [p for p in members if p.ndim > 1], "weight_decay": 0.02, "rate": rate})
        groups.append({"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0, "rate": rate})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    everything = [p for members in rates.values() for p in members]
    begin = shown = time.monotonic()
    steps, since, total, hits = 0, 0, 0.0, 0.0
    while (share := (time.monotonic() - begin) / seconds) < 1:
        factor = min(1.0, share / 0.03 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        loss, hit = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        steps, since, total, hits = steps + 1, since + 1, total + loss.item(), hits + hit
        if time.monotonic() - shown > 60:
            log(f"{name}: {share:.0%}, step {steps}, loss {total / since:.3f}, right first {hits / since:.2f}")
            shown, total, hits, since = time.monotonic(), 0.0, 0.0, 0
            check()
    return steps


@torch.no_grad()
def concept_check(model: RerankerModel, writer: Writer, rows: list[dict], folder: Path) -> float:
    """Success@1 among 20 of held-out names against pictures, by the cosine of their keys alone."""
    rng = random.Random(5)
    names = [(row, language) for row in rows for language in row["held_out"]]
    right = 0
    for _ in range(10):
        chosen = rng.sample(names, 20)
        pictures = [prepare_picture(folder / row["image"]) for row, _ in chosen]
        keys = Concepts.read(model, writer, [row["names"][language] for row, language in chosen], pictures)
        right += ((keys[:20] @ keys[20:].T).argmax(1) == torch.arange(20)).sum().item()
    return right / 200


@torch.no_grad()
def quick_check(model: RerankerModel, writer: Writer, rows: list[dict], sections: list[dict], folder: Path) -> str:
    """Success@1 on a small part of the held-out material; the full figures come from `evaluate_nano.py`."""
    rng = random.Random(5)
    names = [(row, language) for row in rows for language in row["held_out"]]
    right = 0
    groups = 12
    for _ in range(groups):
        chosen = rng.sample(names, 20)
        pictures = [writer.document(prepare_picture(folder / row["image"])) for row, _ in chosen]
        queries = [writer.query(row["names"][language]) for row, language in chosen]
        right += (score_grid(model, queries, pictures).argmax(1) == torch.arange(20)).sum().item()
    found = 0
    languages = [key for key in {s["language"] for s in sections} if sum(s["language"] == key for s in sections) >= 10]
    for language in sorted(languages):
        chosen = rng.sample([s for s in sections if s["language"] == language], 10)
        documents = [writer.document(s["text"][:SECTION_CHARACTERS]) for s in chosen]
        queries = [writer.query(s["heading"]) for s in chosen]
        found += (score_grid(model, queries, documents).argmax(1) == torch.arange(10)).sum().item()
    return f"held-out names -> picture {right / (20 * groups):.3f}, headings -> section {found / (10 * len(languages)):.3f}"


def initialise(model: RerankerModel, seed: int) -> None:
    """Weights that keep the scale of their input (std 1 / sqrt(fan-in)), a third of that where a branch joins the residual
    stream, embeddings at std 0.5, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    joining = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            std = 0.5 if "embed_tokens" in name else parameter[0].numel() ** -0.5 * (0.3 if name.endswith(joining) else 1.0)
            parameter.data.normal_(0.0, std, generator=generator)
        elif not name.endswith("weight"):
            parameter.data.zero_()


def nano_config(tokenizer: Tokenizer) -> RerankerConfig:
    size = tokenizer.get_vocab_size()
    return RerankerConfig(
        vision=VisionConfig(depth=4, hidden_size=192, num_heads=4),
        decoder=DecoderConfig(
            hidden_size=256,
            num_layers=6,
            num_heads=4,
            num_kv_heads=2,
            intermediate_size=768,
            vocab_size=math.ceil(size / 64) * 64,
            mrope_section=(8, 12, 12),
        ),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        score_token_id=SCORE_TOKEN,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--out", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--warm-minutes", type=float, default=11.5, help="warm start")
    parser.add_argument("--minutes", type=float, default=30.0, help="cross-encoder")
    parser.add_argument("--warm", type=Path, help="take the warm start that an earlier run saved under DATA/warm")
    parser.add_argument("--resume", type=Path, help="go on with the cross-encoder of an earlier run, learning rates anew")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    rows, section_rows = read(options.data / "emoji.jsonl"), read(options.data / "sections.jsonl")
    emoji = [concept for row in rows if (concept := Emoji(row, options.data)).languages]
    sections = [Section(row) for row in section_rows if not row["held_out"]]
    tokenizer = train_tokenizer(emoji, sections, options.out)
    config = nano_config(tokenizer)
    model = RerankerModel(config)
    initialise(model, options.seed)
    log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, vocabulary {config.decoder.vocab_size}")
    save_checkpoint(model, options.data / "untrained", tokenizer_file=options.out / "tokenizer.json")

    writer = Writer(tokenizer, config)
    held = [row for row in section_rows if row["held_out"]]
    sampler = Sampler(emoji, sections, writer, options.seed)
    last_check = time.monotonic()

    def check(always: bool = False) -> None:
        nonlocal last_check
        if always or time.monotonic() - last_check > 300:
            log(quick_check(model, writer, rows, held, options.data))
            save_checkpoint(model, options.data / "latest", tokenizer_file=options.out / "tokenizer.json")
            last_check = time.monotonic()

    check(always=True)
    concepts = Concepts([*emoji, *sections], config.decoder.hidden_size)
    lookups, tower = [model.decoder.embed_tokens.weight, concepts.vectors], list(model.vision.parameters())
    warm = 0
    if options.resume or options.warm:
        model.load_state_dict(load_checkpoint(options.resume or options.warm, torch.float32).state_dict())
    else:
        warm = run_stage(
            "warm start",
            {1.5e-3: tower, 6e-3: lookups},
            lambda: concepts.loss(model, sampler, WARM_BATCH),
            options.warm_minutes * 60,
            lambda: log(f"held-out names -> picture by concept {concept_check(model, writer, rows, options.data):.3f}"),
        )
        save_checkpoint(model, options.data / "warm", tokenizer_file=options.out / "tokenizer.json")
    concepts.settle(model, sampler)
    if not options.resume:
        start_by_copying(model)

    def cross_check() -> None:
        log(", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in sampler.notes.items()))
        sampler.notes.clear()
        check()

    learned = {id(p) for p in [*tower, *lookups]}
    fresh = [p for p in model.parameters() if id(p) not in learned]
    cross = run_stage(
        "cross-encoder",
        {2e-4: [*tower, *lookups], 3.5e-4: fresh},
        lambda: list_loss(model, sampler, concepts),
        options.minutes * 60,
        cross_check,
    )
    check(always=True)
    log(f"{warm} steps of warm start, {cross} of cross-encoder")
    save_checkpoint(model, options.out, tokenizer_file=options.out / "tokenizer.json", dtype=torch.float16)


if __name__ == "__main__":
    main()
