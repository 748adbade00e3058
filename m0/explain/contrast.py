"""Why one document stands above another, and how little of a document would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.explain.explanation import Explanation
from m0.explain.flow import logit_to_score
from m0.explain.perturb import MaskedModel, Player, TextUnit, find_players
from m0.inputs.passages import Passage
from m0.inputs.prompt import Encoding


@dataclass(frozen=True)
class Difference:
    """Two documents explained side by side for one query."""

    better: Explanation
    worse: Explanation

    @property
    def logit(self) -> float:
        """By how much the first is ahead."""
        return self.better.logit - self.worse.logit

    @property
    def query_words(self) -> list[tuple[str, float, float]]:
        """Each word of the query, and what it does for the one and for the other; the largest difference first."""
        worse = {word.span: word.relevance for word in self.worse.words}
        found = [(word.text, word.relevance, worse.get(word.span, 0.0)) for word in self.better.words if word.side == "query"]
        return sorted(found, key=lambda row: -abs(row[1] - row[2]))

    def __str__(self) -> str:
        lines = [f"{self.logit:+.3f}: {self.better.logit:.3f} against {self.worse.logit:.3f} (logits, by {self.better.method})"]
        lines += [f"  query {text!r}: {a:+.3f} against {b:+.3f}" for text, a, b in self.query_words[:8]]
        for name, explanation in (("better", self.better), ("worse", self.worse)):
            words = ", ".join(f"{word.text} {word.relevance:+.3f}" for word in explanation.top(6))
            pictures = ", ".join(f"picture {picture.relevance:+.3f}" for picture in explanation.pictures)
            lines.append(f"  {name}: {', '.join(part for part in (words, pictures) if part)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Evidence:
    """The least that is needed of a document, and the least that must go."""

    score: float
    """Of the whole document."""
    sufficient: list[Player]
    """These alone keep the share `keep` of the score; none of them can be spared."""
    sufficient_score: float
    necessary: list[Player]
    """Without these the score falls below the threshold; none of them can come back."""
    necessary_score: float
    reached: bool
    """Whether the score falls below the threshold at all, when everything is left out."""
    empty_score: float
    """Of the document with nothing left in it."""
    passage: Passage | None = None
    """Which page or piece of the document this is of; None: the document is one piece."""

    def __str__(self) -> str:
        sufficient = ", ".join(player.name for player in self.sufficient) or "nothing"
        necessary = ", ".join(player.name for player in self.necessary) or "nothing"
        passage = self.passage if self.passage and self.passage.count > 1 else None
        of = f" of passage {passage.number} of {passage.count}" if passage else ""
        lines = [f"score {self.score:.4f}{of}", f"  kept at {self.sufficient_score:.4f} by: {sufficient}"]
        if self.reached and not self.necessary:
            lines.append("  below the threshold as it is")
        else:
            reached = "" if self.reached else " (threshold not reached)"
            lines.append(f"  falls to {self.necessary_score:.4f} without: {necessary}{reached}")
        if not self.sufficient:
            lines.append(f"  a document with nothing in it scores {self.empty_score:.4f} already")
        return "\n".join(lines)


def minimal_evidence(
    reranker: Scorer,
    encoding: Encoding,
    order: Sequence[float],
    keep: float = 0.9,
    threshold: float | None = None,
    unit: TextUnit = "word",
) -> Evidence:
    """The smallest sets of the document's words and regions found by going through them in order of relevance and then giving
    back each that is not needed. No member can be left out; a smaller set of quite other members may exist.

    Args:
        order: relevance of each token, which says what is tried first.
        keep: the share of the score that must remain with the sufficient set alone.
        threshold: the score below which the document counts as not relevant; None: half of its score.
        unit: what is left out at a time: words (and cells of pictures) or sentences.

    Raises InputError where `keep` or `threshold` is not above 0 and at most 1.
    """
    for name, value in (("keep", keep), ("threshold", 0.5 if threshold is None else threshold)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise InputError(f"{name} is {value!r}, but must be above 0 and at most 1.")
    players = find_players(encoding, unit, ("document",))
    masked_model = MaskedModel(reranker, encoding, players)
    weights = torch.tensor([sum(order[token] for token in player.tokens) for player in players])
    by_relevance = weights.argsort(descending=True, stable=True).tolist()
    all_players = set(range(len(players)))

    def score(left_out: set[int]) -> float:
        return logit_to_score(reranker, float(masked_model.logits([left_out])[0]))

    full_score = score(set())
    limit = full_score / 2 if threshold is None else threshold
    # Enough: in they come, one after the other, until the score is back.
    sufficient: list[int] = []
    for number in by_relevance:
        if score(all_players - set(sufficient)) >= keep * full_score:
            break
        sufficient.append(number)
    sufficient = _drop_unneeded(sufficient, lambda some: score(all_players - some) >= keep * full_score)
    # Needed: out they go, until the score is down.
    necessary: list[int] = []
    for number in by_relevance:
        if score(set(necessary)) < limit:
            break
        necessary.append(number)
    reached = score(set(necessary)) < limit
    if reached:
        necessary = _drop_unneeded(necessary, lambda some: score(some) < limit)
    return Evidence(
        full_score,
        [players[n] for n in sorted(sufficient)],
        score(all_players - set(sufficient)),
        [players[n] for n in sorted(necessary)],
        score(set(necessary)),
        reached,
        score(all_players),
    )


def _drop_unneeded(members: list[int], is_enough: Callable[[set[int]], bool]) -> list[int]:
    """What remains when each member that can be spared is given back, the last first, until none can: one that was needed beside
    others may be spared once those are gone."""
    sufficient, before = list(members), -1
    while len(sufficient) != before:
        before = len(sufficient)
        for number in reversed(list(sufficient)):
            if is_enough(set(sufficient) - {number}):
                sufficient.remove(number)
    return sufficient
