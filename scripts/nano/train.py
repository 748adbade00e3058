"""Train m0-nano from nothing on the data of `nano/build_data.py`, on two CPU cores.

    PYTHONPATH=scripts python -m nano.train [--data build/nano-data] [--out weights/m0-nano] [--steps … | --minutes 90]

1. A byte-level BPE is trained on the training texts (what is held out is left out), and the spelling of every token is written down
   (`nano/spelling.py`).
2. Reading (`nano/reading.py`): the vision tower learns to show the spelling of the text that it sees.
3. Meanings of tokens and concepts in closed form (`nano/latent.py`): which tokens occur with which emoji, sections and folders
   of drawings; how rare each token is, and for which languages it speaks.
4. Words (`nano/words.py`): bags of tokens by the thousand name their concepts. Half of the sections are left out
   of this and of the step before.
5. Seeing (`nano/seeing.py`): the vision tower goes on reading and learns to show emoji and drawings in the words' meanings.
   No decoder layer has taken part so far, so a step costs little.
6. Words again, towards where the pictures have come to lie.
7. `nano/circuit.py` writes all this into a decoder that compares means and matches words and their spelling.
8. Cross-encoder: all but the vision tower is trained on lists of documents and queries, every query against every document of
   its list. Its sections are those that the words have not learned by heart, for else it would never need to match words. Each
   document is read once and is the parent of all its queries (`m0.model.attention.Packing`). Loss: listwise softmax over each query's
   documents (ListNet top-1, Cao et al. 2007), plus a tenth of binary cross-entropy on `logit - 2.65`, which fixes the scale that
   softmax leaves open.

Seeds are fixed. With `--steps` every machine makes the same updates; with `--minutes` learning rates follow the clock, so that a slower
machine trains less but always anneals, and the log says how many updates it made. Where the course stands is kept in `--course`: the same
command goes on from there after an interruption; and `--again STAGE…` runs stages that are over once more, from the weights as they are,
for a longer course in several goes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from nano.checks import HeldOutChecks
from nano.circuit import (
    IMPORTANCE,
    LANGUAGE,
    MEANING,
    MEANINGS,
    RARITY,
    RARITY_SCALE,
    ROPE_THETA,
    SPELLING,
    write_circuit,
)
from nano.course import Course, StageLength, at_most_every, log
from nano.latent import concept_numbers, count_occurrences, factorize_counts, inverse_document_frequency, language_shares
from nano.lists import Lists, Pair
from nano.material import Material
from nano.pages import Faces
from nano.reading import Reading
from nano.scoring import score_grids
from nano.seeing import VisionTraining, mean_meanings, tower_tokens
from nano.spelling import Spelling
from nano.tokens import IMAGE_SETTINGS, SCORE_TOKEN, Writer, train_tokenizer
from nano.words import WordBags
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from m0.checkpoints.files import save_checkpoint
from m0.model.config import DecoderConfig, RerankerConfig, VisionConfig
from m0.model.reranker_model import RerankerModel

STAGE_TIME_SHARES = {"reading": 0.55, "words": 0.06, "seeing": 0.27, "words again": 0.03, "cross-encoder": 0.09}
"""Of the time."""
STAGE_STEPS = {"reading": 6000, "words": 400, "seeing": 1500, "words again": 200, "cross-encoder": 400}
"""Updates unless told otherwise: about ninety minutes on two cores that do nothing else."""
LANGUAGE_STRENGTH = 0.5
"""How much a token of one language alone speaks for it."""
CROPS_PER_STEP = 14
PLAIN_SHARE, LETTERS_SHARE = 0.2, 0.6
"""Of the reading stage: plain type at first, and letters alone at first, for trigrams are learned from letters that are known."""
COUNTED_COLUMNS = [RARITY, *range(LANGUAGE.start, LANGUAGE.stop), *range(SPELLING.start, SPELLING.stop)]
"""Columns of the embeddings that are counted, not learned."""


def nano_config(tokenizer: Tokenizer) -> RerankerConfig:
    return RerankerConfig(
        vision=VisionConfig(depth=4, hidden_size=192, num_heads=4),
        decoder=DecoderConfig(
            hidden_size=384,
            num_layers=6,
            num_heads=3,
            num_kv_heads=3,
            intermediate_size=768,
            rope_theta=ROPE_THETA,
            vocab_size=math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        ),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        score_token_id=SCORE_TOKEN,
    )


def initialise(model: RerankerModel, generator: torch.Generator) -> None:
    """Weights that keep the scale of their input (std 1 / sqrt(fan-in)), a third of that where a branch joins the residual
    stream; embeddings at std 0.1, biases zero. Patches are not whitened: reading then takes twice as many updates to begin.
    """
    joining = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            std = 0.1 if "embed_tokens" in name else parameter[0].numel() ** -0.5 * (0.3 if name.endswith(joining) else 1.0)
            parameter.data.normal_(0.0, std, generator=generator)
        elif not name.endswith("weight"):
            parameter.data.zero_()


# --- before the decoder takes part ------------------------------------------------------------------------------------


def write_counted_embeddings(
    model: RerankerModel, writer: Writer, material: Material, numbers: dict[object, int], spelling: Tensor
) -> Tensor:
    """What can be counted goes into the embeddings. Returns where the concepts lie."""
    words, importance, vectors = factorize_counts(count_occurrences(material, writer, numbers), MEANINGS)
    languages, shares = language_shares(material, writer)
    table = model.decoder.embed_tokens.weight.data
    table[:, MEANING], table[:, IMPORTANCE] = words, importance
    table[:, RARITY] = RARITY_SCALE * inverse_document_frequency(material, writer).log()
    table[:, LANGUAGE] = 0.0
    table[:, LANGUAGE.start : LANGUAGE.start + len(languages)] = LANGUAGE_STRENGTH * shares
    table[:, SPELLING] = spelling
    return vectors


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


# --- the course ------------------------------------------------------------------------------------------------------


class Training:
    """All stages, one after another, on one model."""

    def __init__(self, options: argparse.Namespace, lengths: dict[str, StageLength]) -> None:
        self.options, self.length = options, lengths
        self.generator = torch.Generator().manual_seed(options.seed)
        self.material = material = Material(options.data)
        tokenizer = train_tokenizer(material.texts(), options.out)
        self.tokenizer_file = options.out / "tokenizer.json"
        config = nano_config(tokenizer)
        self.model = model = RerankerModel(config)
        initialise(model, self.generator)
        log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, vocabulary {config.decoder.vocab_size}")
        self.writer = writer = Writer(tokenizer, config)
        self.spelling = Spelling(material.texts())
        hidden = config.decoder.hidden_size
        self.reading = Reading(material, writer, self.spelling, Faces(options.data), hidden, options.seed)
        self.course = Course(options.course or options.data / "course.pt", {"model": model, "letters": self.reading.letters})
        self.table = model.decoder.embed_tokens.weight
        self.save(options.data / "untrained")
        self.course.load()
        for stage in options.again:
            self.course.done.pop(stage, None)

    def save(self, folder: Path) -> None:
        save_checkpoint(
            self.model, folder, tokenizer_file=self.tokenizer_file, dtype=torch.bfloat16, image_settings=IMAGE_SETTINGS
        )

    def tower(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What Muon trains, and the rest: convolution, norms and biases, and one matrix too large to be made orthogonal in time."""
        large = self.model.vision.merger.mlp[0].weight
        parameters = [*self.model.vision.parameters(), *self.reading.letters.parameters()]
        matrices = [p for p in self.model.vision.parameters() if p.ndim == 2 and p is not large]
        return matrices, [p for p in parameters if not any(p is matrix for matrix in matrices)]

    def run(self) -> None:
        self.read()
        words, vectors = self.learn_words()
        self.see(words, vectors)
        self.learn_words_again(words, vectors)
        self.train_cross_encoder()
        log(f"updates: {self.course.done}")
        self.save(self.options.out)
        (self.options.data / "steps.json").write_text(json.dumps(self.course.done), encoding="utf-8")

    def read(self) -> None:
        def draw(share: float) -> tuple:
            """Few and plain crops first: many small updates are what the first letters take. Then more, and as pages show them."""
            if share < PLAIN_SHARE:
                return self.reading.batch(4, 0, (16, 24), noise=0.0)
            if share < 0.4:
                return self.reading.batch(8, 0, (15, 28), noise=0.5)
            pages = int(self.reading.rng.random() < 0.25)
            return self.reading.batch(CROPS_PER_STEP - 4 * pages, pages, (12, 34), noise=1.0)

        matrices, others = self.tower()
        with Beside(draw) as drawn:

            def loss(share: float) -> tuple[Tensor, dict[str, float]]:
                pictures, read = drawn.next(share)
                ramp = min(1.0, max(0.0, (share - LETTERS_SHARE) / 0.1))
                late = min(1.0, max(0.0, (share - 0.7) / 0.15))
                tokens = torch.cat(tower_tokens(self.model, pictures))
                return self.reading.loss(tokens, read, 1.0 - 0.5 * late, 2.0 * ramp, 0.3 * late, late)

            self.course.run_stage("reading", {2e-3: others}, loss, self.length["reading"], matrices=matrices)

    def learn_words(self) -> tuple[WordBags, Tensor]:
        model, material, writer = self.model, self.material, self.writer
        numbers = concept_numbers(material)
        self.checks = HeldOutChecks(material, self.reading.faces)
        words = WordBags(material, writer, numbers, self.options.seed)
        if "words" in self.course.done:  # what was counted is in the course
            self.counted = self.course.extra["counted"]
            return words, self.course.extra["vectors"]
        spelled = self.spelling.of_tokens(writer.tokenizer, material.texts(), len(self.table))
        concepts = nn.Parameter(write_counted_embeddings(model, writer, material, numbers, spelled))
        self.counted = self.table.detach()[:, COUNTED_COLUMNS].clone()
        self.course.run_stage(
            "words",
            {3e-3: [self.table], 2e-3: [concepts]},
            lambda _: words.loss(self.table, F.normalize(concepts, dim=1)),
            self.length["words"],
        )
        self.course.extra |= {"vectors": F.normalize(concepts.detach(), dim=1), "counted": self.counted}
        self.course.save()
        log(f"words, {self.checks.score_by_bags(model, writer)}")
        return words, self.course.extra["vectors"]

    def see(self, words: WordBags, vectors: Tensor) -> None:
        seeing = VisionTraining(self.model, self.writer, self.material, words, vectors, self.reading, self.options.seed)
        matrices, others = self.tower()
        # First as the files are, then more and more as a screen might show them.
        with Beside(lambda share: seeing.batch(max(0.2, 0.9 - 1.8 * share))) as drawn:
            self.course.run_stage(
                "seeing",
                {2e-3: others, 3e-4: [self.table]},
                lambda share: seeing.loss(drawn.next(share)),
                self.length["seeing"],
                at_most_every(lambda: log(self.checks.score_by_bags(self.model, self.writer))),
                matrices=matrices,
            )
        log(f"seeing, {self.checks.score_by_bags(self.model, self.writer)}")

    def learn_words_again(self, words: WordBags, vectors: Tensor) -> None:
        if "circuit" in self.course.done:
            return
        vectors, drawings = picture_vectors(self.model, self.writer, self.material, words, vectors)
        log("concepts have settled")
        self.course.run_stage(
            "words again",
            {2e-3: [self.table]},
            lambda _: words.loss(self.table, vectors, drawings),
            self.length["words again"],
        )
        log(f"bags, {self.checks.score_by_bags(self.model, self.writer)}")
        # Means are of levelled embeddings, so training has moved these columns as well, for the sake of their length alone.
        self.table.data[:, COUNTED_COLUMNS] = self.counted
        write_circuit(self.model, self.writer, self.generator)
        self.course.done["circuit"] = 1
        self.course.save()
        self.save(self.options.data / "circuit")
        log(f"circuit, {self.checks.score_by_model(self.model, self.writer)}")

    def train_cross_encoder(self) -> None:
        lists = Lists(self.material, self.reading.faces, self.options.seed)

        def check() -> None:
            log(self.checks.score_by_model(self.model, self.writer))
            self.save(self.options.data / "latest")

        # The vision tower has learned from batches of hundreds of pictures; the few of a list would only shake it. As the vendor
        # did, it is kept.
        self.model.vision.requires_grad_(False)
        self.course.run_stage(
            "cross-encoder",
            cross_encoder_rates(self.model),
            lambda _: list_loss(self.model, self.writer, lists.step()),
            self.length["cross-encoder"],
            at_most_every(check),
        )
        log(self.checks.score_by_model(self.model, self.writer))


class Beside:
    """The next pictures are drawn while the tower computes, by one thread of its own: were it to share its work out as well, OpenMP's
    threads would outnumber the cores and sleep between any two operations."""

    def __init__(self, draw: Callable[[float], Any]) -> None:
        self.draw, self.waiting = draw, None
        self.pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def next(self, share: float) -> Any:
        batch = (self.waiting or self.pool.submit(self.draw, share)).result()
        self.waiting = self.pool.submit(self.draw, share)
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--out", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--course", type=Path, help="where the course stands; default: DATA/course.pt")
    parser.add_argument("--again", nargs="+", default=[], choices=[*STAGE_STEPS, "circuit"], help="run these stages once more")
    length_of_run = parser.add_mutually_exclusive_group()
    length_of_run.add_argument("--minutes", type=float, help="of all stages together")
    length_of_run.add_argument(
        "--steps",
        type=int,
        nargs=len(STAGE_STEPS),
        default=list(STAGE_STEPS.values()),
        metavar="STEPS",
        help=f"of {', '.join(STAGE_STEPS)}; none with 0 (default: {' '.join(map(str, STAGE_STEPS.values()))})",
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs=len(STAGE_TIME_SHARES),
        default=list(STAGE_TIME_SHARES.values()),
        metavar="SHARE",
        help=f"of the minutes, for {', '.join(STAGE_TIME_SHARES)}",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.minutes is None:
        lengths = [StageLength(steps=steps) for steps in options.steps]
    else:
        lengths = [StageLength(seconds=60 * options.minutes * share) for share in options.shares]
    Training(options, dict(zip(STAGE_STEPS, lengths, strict=True))).run()


if __name__ == "__main__":
    main()
