"""BM25 (Robertson & Zaragoza 2009) as a first stage and as a baseline, through the library bm25s."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping
from functools import cache

import numpy as np

from m0.errors import InputError, MissingExtraError
from m0.evaluate.dataset import Dataset
from m0.evaluate.runs import Run

# Scripts written without blanks are cut into pairs of characters, the rest into words.
UNSPACED = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿฀-๿຀-໿က-႟ក-៿]")


def terms(text: str) -> list[str]:
    """Lower-case words; for Chinese, Japanese, Thai, Lao, Burmese and Khmer pairs of neighbouring characters."""
    found: list[str] = []
    for kind, characters in itertools.groupby(unicodedata.normalize("NFKC", text).casefold(), _character_kind):
        word = "".join(characters)
        if kind == "unspaced" and len(word) > 1:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        elif kind:
            found.append(word)
    return found


@cache
def _character_kind(character: str) -> str:
    if UNSPACED.match(character):
        return "unspaced"
    # Marks belong to the letter before them: vowel signs of Hindi or Tamil, vowel points of Arabic or Hebrew.
    return "word" if unicodedata.category(character)[0] in "LNM" else ""


class BM25:
    """An index over some documents' words. Raises MissingExtraError without bm25s."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise MissingExtraError("BM25 needs bm25s: pip install 'm0-reranker[eval]'.") from None
        self.ids = list(texts)
        words = [terms(text) for text in texts.values()]
        self.vocabulary = {word for text_words in words for word in text_words}
        self.index = bm25s.BM25()
        if self.vocabulary:  # documents that are pictures alone have no words
            self.index.index(words, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """Of every document, in the order given."""
        query_terms = [term for term in terms(query) if term in self.vocabulary]
        return self.index.get_scores(query_terms) if query_terms else np.zeros(len(self.ids), dtype=np.float32)


def bm25_run(dataset: Dataset, depth: int, ignore_identical_ids: bool = True) -> Run:
    """The `depth` documents whose words fit best, fewer where fewer share a word with the query; pictures alone are not found.

    Equal scores: the corpus's order. `ignore_identical_ids`: the document with the query's own id takes none of the places.

    Raises InputError where `depth` is below 1.
    """
    if isinstance(depth, bool) or depth < 1:
        raise InputError(f"BM25 is asked for {depth} documents, but must be for at least 1.")
    index = BM25({key: dataset.text(document) for key, document in dataset.corpus.items()})
    run: Run = {}
    position_of_id = {key: position for position, key in enumerate(index.ids)}
    for query, content in dataset.queries.items():
        scores = index.scores(dataset.text(content))
        if ignore_identical_ids and query in position_of_id:
            scores[position_of_id[query]] = 0.0
        best = np.argsort(-scores, kind="stable")[:depth]
        run[query] = {index.ids[i]: float(scores[i]) for i in best if scores[i] > 0}
    return run
