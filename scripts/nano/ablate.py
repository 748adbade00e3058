"""What each choice in m0-nano's training and architecture is worth: the same start, the same number of updates, one change.

    PYTHONPATH=scripts python -m nano.ablate [--data build/nano-data] [--steps 120] [--minutes 3] [--only NAME ...] [--out ablations.json]

Needs what `nano/train.py` leaves under --data: circuit/, where the cross-encoder starts.

| variant | change |
| --- | --- |
| listwise | none: as `nano/train.py`, the listwise softmax |
| pairwise | RankNet instead of the listwise softmax |
| pointwise | binary cross-entropy alone |
| lora, then head | as the vendor: LoRA (r 16) on the decoder for two thirds of the steps, then the head; all else stays |
| head, then lora | the other way round |
| lora and head | both together in one stage |
| one axis | picture tokens are positioned one after another, as text is: M-RoPE without its two spatial axes |
| merging, no merging | vision tower of --minutes and cross-encoder anew, with 2x2 merging and without (four times the visual tokens) |

Measured on the held-out checks of `nano/train.py`, success@1, with the seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nano.checks import HeldOutChecks
from nano.circuit import write_circuit
from nano.course import Course, StageLength, log
from nano.latent import concept_numbers
from nano.lists import Lists, Pair
from nano.material import Material
from nano.pages import Faces
from nano.reading import Reading
from nano.scoring import score_grids
from nano.seeing import VisionTraining
from nano.spelling import Spelling
from nano.tokens import Piece, Writer
from nano.train import cross_encoder_rates, initialise, list_loss, nano_config, pointwise
from nano.words import WordBags
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from m0.checkpoints.adapters.config import LoRAConfig
from m0.checkpoints.adapters.switching import Adapters
from m0.checkpoints.files import load_checkpoint
from m0.model.reranker_model import RerankerModel

LORA = LoRAConfig(r=16, alpha=32.0)  # on every linear layer of the decoder


def ranknet(logits: Tensor, is_right: Tensor, clash: Tensor) -> Tensor:
    is_wrong = ~(is_right.bool() | clash)
    margins = logits.diagonal()[:, None] - logits
    return F.softplus(-margins)[is_wrong].mean()


def sum_losses(
    loss: Callable[..., Tensor], model: RerankerModel, writer: Writer, lists: list[list[Pair]]
) -> tuple[Tensor, dict]:
    grids = [([writer.query(p.query) for p in pairs], [writer.document(p.document) for p in pairs]) for pairs in lists]
    logits = score_grids(model, grids)
    terms = [loss(some, torch.eye(len(pairs)), Lists.also_right_mask(pairs)) for some, pairs in zip(logits, lists, strict=True)]
    return torch.stack(terms).sum(), {}


class OneAxisWriter(Writer):
    """Pieces whose picture tokens stand one after another on all three axes."""

    def query(self, content: Any) -> Piece:
        return self._flatten_runs(super().query(content))

    def document(self, content: Any) -> Piece:
        return self._flatten_runs(super().document(content))

    @staticmethod
    def _flatten_runs(piece: Piece) -> Piece:
        return replace(piece, runs=[len(piece.ids)])


def train(rates: dict[float, list[nn.Parameter]], steps: int, loss_of: Callable[[], tuple[Tensor, dict]]) -> float:
    """AdamW with warm-up and cosine for a number of steps; returns seconds a step."""
    groups = [{"params": parameters, "rate": rate} for rate, parameters in rates.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
    all_parameters = [parameter for parameters in rates.values() for parameter in parameters]
    begin = time.monotonic()
    for step in range(steps):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, share / 0.05 + 0.05) * (0.5 + 0.5 * math.cos(math.pi * share))
        loss, _ = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(all_parameters, 1.0)
        optimizer.step()
    return (time.monotonic() - begin) / steps


class Ablations:
    def __init__(self, data: Path, steps: int, minutes: float) -> None:
        self.data, self.steps, self.minutes = data, steps, minutes
        self.material = Material(data)
        self.faces = Faces(data)
        self.checks = HeldOutChecks(self.material, self.faces)
        self.tokenizer = Tokenizer.from_file(str(data / "circuit" / "tokenizer.json"))
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, name: str) -> None:
        torch.manual_seed(1)
        if name in ("merging", "no merging"):
            result = self._train_from_scratch(1 if name == "no merging" else 2)
        else:
            model = load_checkpoint(self.data / "circuit", torch.float32).train()
            result = self._from_circuit(name, model)
        self.results[name] = result
        log(f"{name}: {result}")

    def _from_circuit(self, name: str, model: RerankerModel) -> dict[str, Any]:
        writer = (OneAxisWriter if name == "one axis" else Writer)(self.tokenizer, model.config)
        lists = Lists(self.material, self.faces, 2)
        losses = {"pairwise": partial(sum_losses, ranknet), "pointwise": partial(sum_losses, pointwise)}
        loss = losses.get(name, list_loss)

        def loss_of() -> tuple[Tensor, dict]:
            return loss(model, writer, lists.step())

        if "lora" in name:
            adapters = Adapters(model)
            adapters.add("ablation", LORA)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            low_rank, head = list(adapters.parameters()), list(model.head.parameters())
            orders = {
                "lora, then head": [(low_rank, 2 / 3), (head, 1 / 3)],
                "head, then lora": [(head, 1 / 3), (low_rank, 2 / 3)],
                "lora and head": [([*low_rank, *head], 1.0)],
            }
            seconds = 0.0
            for parameters, share in orders[name]:
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                for parameter in parameters:
                    parameter.requires_grad_(True)
                seconds += share * train({1e-3: parameters}, round(share * self.steps), loss_of)
        else:
            seconds = self._train_cross(model, writer, lists, loss)
        model.eval()
        return {"seconds a step": round(seconds, 2), **self._measure(model, writer)}

    def _train_from_scratch(self, merge: int) -> dict[str, Any]:
        """A vision tower from nothing for some minutes under the words of the whole run, then circuit and cross-encoder."""
        generator = torch.Generator().manual_seed(1)
        config = nano_config(self.tokenizer)
        config = config.replace(vision=replace(config.vision, spatial_merge_size=merge))
        model = RerankerModel(config)
        initialise(model, generator)
        writer, lists = Writer(self.tokenizer, config), Lists(self.material, self.faces, 1)
        numbers, table = concept_numbers(self.material), model.decoder.embed_tokens.weight
        table.data.copy_(load_checkpoint(self.data / "circuit", torch.float32).decoder.embed_tokens.weight)
        words = WordBags(self.material, writer, numbers, 1)
        vectors = F.normalize(words.mean_vectors(table.detach(), len(numbers)), dim=1)
        hidden = config.decoder.hidden_size
        reading = Reading(self.material, writer, Spelling(self.material.texts()), self.faces, hidden, 1)
        seeing = VisionTraining(model, writer, self.material, words, vectors, reading, 1)
        course = Course(self.data / f"ablation-{merge}.pt", {"model": model})
        course.run_stage(
            "seeing",
            {1.5e-3: list(model.vision.parameters())},
            lambda _: seeing.loss(seeing.batch(0.25)),
            StageLength(seconds=60 * self.minutes),
        )
        write_circuit(model, writer, generator)
        seconds = self._train_cross(model, writer, lists, list_loss)
        model.eval()
        return {"seconds a step": round(seconds, 2), "steps of seeing": course.done["seeing"], **self._measure(model, writer)}

    def _train_cross(
        self, model: RerankerModel, writer: Writer, lists: Lists, loss: Callable[..., tuple[Tensor, dict]]
    ) -> float:
        """As `nano/train.py`: the tower stays, the layers of the circuit learn more slowly than the rest."""
        model.vision.requires_grad_(False)
        groups = cross_encoder_rates(model)
        return train(groups, self.steps, lambda: loss(model, writer, lists.step()))

    def _measure(self, model: RerankerModel, writer: Writer) -> dict[str, float]:
        text = self.checks.score_by_model(model, writer).removeprefix("held out: ")
        return {kind: float(value) for kind, value in (part.rsplit(" ", 1) for part in text.split(", "))}


ABLATION_NAMES = (
    "listwise", "pairwise", "pointwise", "lora, then head", "head, then lora", "lora and head", "one axis", "merging", "no merging",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--steps", type=int, default=120, help="updates of each variant's cross-encoder")
    parser.add_argument("--minutes", type=float, default=3.0, help="training of the vision tower where it is another one")
    parser.add_argument("--only", nargs="+", choices=ABLATION_NAMES, default=ABLATION_NAMES, metavar="NAME")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ablations = Ablations(options.data, options.steps, options.minutes)
    for name in options.only:
        ablations.run(name)
        if options.out:
            options.out.write_text(json.dumps(ablations.results, indent=2) + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for result in ablations.results.values() for key in result))
    print("| variant | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, result in ablations.results.items():
        print(f"| {name} | " + " | ".join(str(result.get(column, "")) for column in columns) + " |")


if __name__ == "__main__":
    main()
