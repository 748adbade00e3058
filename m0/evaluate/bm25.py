"""BM25 (Robertson & Zaragoza 2009) as a first stage and as a baseline, through the library bm25s."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import numpy as np

from m0.errors import MissingExtraError
from m0.evaluate.dataset import Dataset
from m0.evaluate.runs import Run

# Scripts written without blanks are cut into pairs of characters, the rest into words.
UNSPACED = r"぀-ヿ㐀-䶿一-鿿豈-﫿฀-๿຀-໿က-႟ក-៿"
WORDS = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+")


def terms(text: str) -> list[str]:
    """Lower-case words; for Chinese, Japanese, Thai, Lao, Burmese and Khmer pairs of neighbouring characters."""
    found = []
    for match in WORDS.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = match.group()
        if re.match(rf"[{UNSPACED}]", word) and len(word) > 1:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            found.append(word)
    return found


class BM25:
    """An index over some documents' words."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise MissingExtraError("BM25 needs bm25s: pip install 'm0-reranker[eval]'.") from None
        self.ids = list(texts)
        self.index = bm25s.BM25()
        self.index.index([terms(text) for text in texts.values()], show_progress=False)
        self.known = set(self.index.vocab_dict)

    def scores(self, query: str) -> np.ndarray:
        """Of every document, in the order given."""
        wanted = [term for term in terms(query) if term in self.known]
        return self.index.get_scores(wanted) if wanted else np.zeros(len(self.ids), dtype=np.float32)


def bm25_run(dataset: Dataset, depth: int) -> Run:
    """The `depth` documents whose words fit best, for each query that has words; documents of pictures alone cannot be found."""
    index = BM25({key: dataset.text(document) for key, document in dataset.corpus.items()})
    run: Run = {}
    for query, content in dataset.queries.items():
        scores = index.scores(dataset.text(content))
        best = np.argsort(-scores, kind="stable")[:depth]
        run[query] = {index.ids[i]: float(scores[i]) for i in best}
    return run
