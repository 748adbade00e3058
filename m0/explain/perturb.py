"""Explanations by leaving things out: occlusion and Shapley values over words, sentences and picture regions.

What is left out is replaced by what says nothing: a full stop's embedding for a token, grey for a stretch of a picture, which
then goes through the vision tower anew. All else stays where it stood. Works with models whose inside is unknown, too: only
scores are asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from m0.engine.batch import tokens_at_a_time
from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.explain.explanation import Explanation, Interaction
from m0.explain.flow import build_explanation, compute_inputs, compute_logits
from m0.explain.gradient import BASELINE_BRIGHTNESS, compute_baseline
from m0.inputs.images import Picture
from m0.inputs.prompt import Encoding
from m0.interp.positions import document, image, picture_tokens, query
from m0.interp.words import Span, assign_tokens_to_spans, find_sentences, find_words

TextUnit = Literal["word", "sentence"]
MAX_REGIONS_PER_SIDE = 8
"""A picture is cut into at most this many regions a side."""


@dataclass(frozen=True)
class Player:
    """Something that can be left out."""

    name: str
    side: str
    tokens: tuple[int, ...]
    picture: int | None = None
    """Number of the picture whose cells these are."""
    box: tuple[int, int, int, int] | None = None
    """Rows and columns of its cells: first row, first column, and the ones behind the last."""
    span: Span | None = None


def find_players(encoding: Encoding, unit: TextUnit = "word", sides: Collection[str] = ("document", "query")) -> list[Player]:
    """Words or sentences, and regions of pictures, in the order of the prompt. Raises InputError for another unit."""
    if unit not in ("word", "sentence"):
        raise InputError(f"unit is {unit!r}, but must be 'word' or 'sentence'.")
    spans = find_words(encoding) if unit == "word" else find_sentences(encoding)
    tokens_by_span: dict[int, list[int]] = {}
    for token, span_index in enumerate(assign_tokens_to_spans(encoding, spans)):
        if span_index is not None:
            tokens_by_span.setdefault(span_index, []).append(token)
    players = [
        Player(spans[number].text, spans[number].side, tuple(some), span=spans[number])
        for number, some in tokens_by_span.items()
        if spans[number].side in sides
    ]
    for number in range(len(encoding.pictures)):
        shown, tokens = picture_tokens(encoding, number)
        side = encoding.origins[tokens[0]].side
        if side not in sides:
            continue
        rows, columns = shown.token_grid
        for top, bottom in _split_evenly(rows):
            for left, right in _split_evenly(columns):
                inside = tuple(tokens[r * columns + c] for r in range(top, bottom) for c in range(left, right))
                name = f"picture {number} ({top}, {left})"
                players.append(Player(name, side, inside, number, (top, left, bottom, right)))
    return sorted(players, key=lambda player: player.tokens[:1])


def _split_evenly(cells: int) -> list[tuple[int, int]]:
    count = min(cells, MAX_REGIONS_PER_SIDE)
    edges = [round(i * cells / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


class MaskedModel:
    """Logits of a prompt with any of its players left out."""

    def __init__(
        self, reranker: Scorer, encoding: Encoding, players: Sequence[Player], batch_tokens: int | None = None
    ) -> None:
        self.reranker, self.encoding, self.players = reranker, encoding, list(players)
        self.batch_tokens = tokens_at_a_time(batch_tokens, reranker.model.device)
        self.start, self.baseline = compute_inputs(reranker, encoding), compute_baseline(reranker, encoding)
        self.shown = image(encoding)
        self.logits_by_set: dict[frozenset[int], float] = {}

    def logits(self, left_out: Sequence[Collection[int]]) -> Tensor:
        """For each set of players' numbers, the logit without them, (sets,), float64."""
        sets = [frozenset(some) for some in left_out]
        new_sets = [some for some in dict.fromkeys(sets) if some not in self.logits_by_set]
        sets_at_a_time = max(1, self.batch_tokens // len(self.encoding))
        with torch.no_grad():
            for start in range(0, len(new_sets), sets_at_a_time):
                some = new_sets[start : start + sets_at_a_time]
                logits = compute_logits(self.reranker, self.encoding, torch.stack(self._masked_embeddings(some)))
                self.logits_by_set |= dict(zip(some, logits.double().tolist(), strict=True))
        return torch.tensor([self.logits_by_set[some] for some in sets], dtype=torch.float64)

    def _masked_embeddings(self, sets: Sequence[frozenset[int]]) -> list[Tensor]:
        versions = []
        places_by_regions: dict[frozenset[int], list[int]] = {}
        for place, some in enumerate(sets):
            version = self.start.embeddings.clone()
            masked_tokens = [
                token for number in some if self.players[number].picture is None for token in self.players[number].tokens
            ]
            version[masked_tokens] = self.baseline.embeddings[masked_tokens]
            versions.append(version)
            if regions := frozenset(n for n in some if self.players[n].picture is not None):
                places_by_regions.setdefault(regions, []).append(place)
        for regions, places in places_by_regions.items():
            shown = replace(self.encoding, pictures=self._grey_out(regions))
            features = compute_inputs(self.reranker, shown).embeddings[self.shown]
            for place in places:
                versions[place][self.shown] = features
        return versions

    def _grey_out(self, regions: Collection[int]) -> list[Picture]:
        """The prompt's pictures with these regions grey."""
        pictures = []
        for number, picture in enumerate(self.encoding.pictures):
            pixels, side = np.array(picture.pixels), picture.settings.factor
            for region in regions:
                player = self.players[region]
                if player.picture == number and player.box is not None:
                    top, left, bottom, right = (edge * side for edge in player.box)
                    pixels[top:bottom, left:right] = BASELINE_BRIGHTNESS
            pictures.append(replace(picture, pixels=pixels))
        return pictures


def occlusion(
    reranker: Scorer, encoding: Encoding, unit: TextUnit = "word", matrix: bool = False, batch_tokens: int | None = None
) -> Explanation:
    """Occlusion (Zeiler & Fergus 2014): how much the logit falls when one word, sentence or region is left out. Signed; no sum is
    promised.

    Args:
        unit: what is left out of texts at a time.
        matrix: also leave out a player of the query and one of the document together, for the interaction of each pair:
            f(all) - f(without q) - f(without d) + f(without both). Needs as many scores as there are pairs.
    """
    players = find_players(encoding, unit)
    masked_model = MaskedModel(reranker, encoding, players, batch_tokens)
    logits = masked_model.logits([[], *([number] for number in range(len(players)))])
    falls, token_shares = logits[0] - logits[1:], _token_shares(encoding, players)
    interaction = None
    if matrix:
        asked = [n for n, player in enumerate(players) if player.side == "query"]
        shown = [n for n, player in enumerate(players) if player.side == "document"]
        both = masked_model.logits([(q, d) for q in asked for d in shown]).view(len(asked), len(shown))
        values = logits[0] - logits[1:][asked][:, None] - logits[1:][shown][None, :] + both
        left, right = query.all(encoding), document.all(encoding)
        interaction = Interaction(token_shares[asked][:, left].T @ values @ token_shares[shown][:, right], left, right)
    return build_explanation(reranker, "occlusion", encoding, logits[0], falls @ token_shares, True, interaction=interaction)


def shapley(
    reranker: Scorer,
    encoding: Encoding,
    permutations: int = 16,
    unit: TextUnit = "word",
    seed: int = 0,
    batch_tokens: int | None = None,
) -> Explanation:
    """Shapley values by sampled orders (Castro et al. 2009), each order also backwards, which evens the sample out. Signed.

    What players bring in any order adds up to the logit minus that of the prompt without all of them, so the ledger closes
    whatever the number of samples; `errors` says how sure each value is.

    Args:
        permutations: orders, an even number; each needs as many scores as there are players.
        unit: what counts as one player in texts.

    Raises InputError where `permutations` is no even number of at least 2.
    """
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 2 or permutations % 2:
        raise InputError(f"permutations is {permutations!r}, but must be an even number of at least 2.")
    players = find_players(encoding, unit)
    masked_model = MaskedModel(reranker, encoding, players, batch_tokens)
    generator = torch.Generator().manual_seed(seed)
    all_players = range(len(players))
    rounds = []
    for _ in range(permutations // 2):
        order = torch.randperm(len(players), generator=generator).tolist()
        both = torch.zeros(len(players), dtype=torch.float64)
        for some in (order, order[::-1]):
            # In comes one after the other; left out are those still to come.
            values = masked_model.logits([some[place:] for place in range(len(some) + 1)])
            both[some] += values.diff() / 2
        rounds.append(both)
    sampled = torch.stack(rounds)
    ends = masked_model.logits([all_players, []])
    errors = sampled.std(0) / math.sqrt(len(rounds)) if len(rounds) > 1 else torch.full_like(sampled[0], torch.nan)
    total = float(sampled.mean(0).sum())
    ledger = {"players": total, "without all": float(ends[0]), "logit": float(ends[1])}
    ledger["gap"] = ledger["logit"] - ledger["without all"] - total
    token_shares = _token_shares(encoding, players)
    values = sampled.mean(0) @ token_shares
    return build_explanation(reranker, "shapley", encoding, ends[1], values, True, ledger=ledger, errors=errors @ token_shares)


def _token_shares(encoding: Encoding, players: Sequence[Player]) -> Tensor:
    """What share of each player falls on each of its tokens, (players, tokens); rows add up to 1."""
    token_shares = torch.zeros(len(players), len(encoding), dtype=torch.float64)
    for number, player in enumerate(players):
        token_shares[number, list(player.tokens)] = 1 / len(player.tokens)
    return token_shares
