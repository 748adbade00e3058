"""The methods of a `Reranker` that explain; each calls a file of this room."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, Literal

from m0.engine.host import Host
from m0.engine.options import RunOptions, settle
from m0.engine.passages import encode_best_passage
from m0.engine.results import Ranking
from m0.explain import DEFAULT_METHOD, Difference, Evidence, Explanation, explain, minimal_evidence, of_passage
from m0.explain.originals import keep_originals
from m0.explain.report import explain_ranking
from m0.inputs.ahead import warn_if_files
from m0.inputs.images import ImageSettings
from m0.inputs.lists import to_list
from m0.inputs.passages import Passage, Passages
from m0.inputs.prompt import Encoding, Limits
from m0.inputs.reading import read_parts_and_warn
from m0.locks import uses_model


class ExplanationMixin(Host):
    """What `m0.reranker.Reranker` can say about its scores."""

    @uses_model
    def explain(
        self,
        query: Any,
        document: Any,
        method: str = DEFAULT_METHOD,
        target: Literal["logit"] = "logit",
        limits: Limits | None = None,
        passages: Passages | Literal["pages"] | None = None,
        **options: Any,
    ) -> Explanation:
        """Why a document got its score: a signed relevance for every word and every cell of a picture.

        Args:
            query, document: as for `rank`.
            method: one of `m0.explain.METHODS`; docs/explanation/explaining.md compares them.
            target: what is explained: the raw logit.
            limits: as for `rank`; what is cut is not explained, and a note says so.
            passages: as for `rank`; of a document with several passages all are scored, and the one that stands for it is explained.
            options: of the method's function; or the fields of `limits` one by one.

        Raises InputError.
        """
        encoding, passage = self._encode_passage(
            query, document, _pop_limits(limits, options), passages, keep_originals(self.image_settings)
        )
        return of_passage(explain(self, encoding, method, target, **options), passage)

    @uses_model
    def explain_prompt(
        self, encoding: Encoding, method: str = DEFAULT_METHOD, target: Literal["logit"] = "logit", **options: Any
    ) -> Explanation:
        """The same of a prompt that `encode` has written."""
        return explain(self, encoding, method, target, **options)

    def explain_ranking(
        self,
        query: Any,
        documents: Iterable[Any],
        path: str | os.PathLike[str],
        top_n: int | None = 10,
        method: str = DEFAULT_METHOD,
        names: Iterable[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        limits: Limits | None = None,
        passages: Passages | Literal["pages"] | None = None,
        **options: Any,
    ) -> Ranking:
        """Rank documents and write a page with the best `top_n` explained, best first.

        Args:
            path: the HTML file; it needs no network.
            top_n: how many; None: all.
            names: what the documents are called on the page; None: their numbers.
            on_error: what happens to a document that cannot be used, or is too long for the method: "raise", or "skip" it and list it
                under `failed`.
            method, limits, passages, options: as for `explain`.

        Returns: the ranking of what is on the page. Raises InputError (of a document with its number).
        """
        lengths = _pop_limits(limits, options)
        given = to_list(documents)  # what gives them may wait for other calls, so this is not one yet
        with self.calls.shared():
            how = Passages.of(passages)
            return explain_ranking(self, query, given, path, top_n, method, names, on_error, lengths, options, how)

    @uses_model
    def explain_difference(
        self, query: Any, better: Any, worse: Any, method: str = DEFAULT_METHOD, **options: Any
    ) -> Difference:
        """Why one document stands above another: both explained, side by side. Arguments (`limits`, `passages` and a method's options
        among them) and errors as for `explain`."""
        return Difference(self.explain(query, better, method, **options), self.explain(query, worse, method, **options))

    @uses_model
    def minimal_evidence(
        self,
        query: Any,
        document: Any,
        keep: float = 0.9,
        threshold: float | None = None,
        unit: Literal["word", "sentence"] = "word",
        method: str = DEFAULT_METHOD,
        passages: Passages | Literal["pages"] | None = None,
    ) -> Evidence:
        """The least of a document that keeps the score, and the least whose loss drops it; see `m0.explain.minimal_evidence`. Words are
        tried in the order of their relevance by `method`; of a document with several passages it is that of the one that `explain`
        explains, which the result names. Raises InputError."""
        encoding, passage = self._encode_passage(query, document, Limits(), passages, self.image_settings)
        order = explain(self, encoding, method).tokens.tolist()
        return replace(minimal_evidence(self, encoding, order, keep, threshold, unit), passage=passage)

    def _encode_passage(
        self, query: Any, document: Any, limits: Limits, passages: Passages | Literal["pages"] | None, settings: ImageSettings
    ) -> tuple[Encoding, Passage | None]:
        how, tokens = Passages.of(passages), RunOptions().tokens(self.model.device)
        warn_if_files([document], settings)
        asked = read_parts_and_warn(query, "query", settings)
        return encode_best_passage(self, asked, document, limits, tokens, how, settings)


def _pop_limits(limits: Limits | None, options: dict[str, Any]) -> Limits:
    """The limits among options, which they are taken out of."""
    names = [field.name for field in fields(Limits) if field.name in options]
    return settle(limits, None, {name: options.pop(name) for name in names})[0]
