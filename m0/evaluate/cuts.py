"""What was cut of documents and queries to keep within the limits, and pages of pictures' files that were not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from m0.evaluate.files import format_count, format_ids
from m0.inputs.prompt import CutPages, Encoding

Cuts = tuple[str, ...]
"""Of one pair: "document", "query": its text was cut; "document page 1 of 3": one page or frame alone was read."""


def cuts_of(encoding: Encoding) -> Cuts:
    """Which sides of a prompt were cut, and pages of which pictures' files alone were read."""
    return tuple(
        dict.fromkeys(
            f"{cut.side} page {cut.page} of {cut.pages}" if isinstance(cut, CutPages) else cut.side for cut in encoding.cut
        )
    )


class CutSummary:
    """What was cut in an evaluation's pairs, by document and query."""

    def __init__(self, pairs: Mapping[tuple[str, str], Cuts | None]) -> None:
        """`pairs`: by query and document; None: not known."""
        self.unknown = sum(cuts is None for cuts in pairs.values())
        self.texts: dict[str, dict[str, None]] = {"document": {}, "query": {}}
        """By side, the ids of those cut in any pair."""
        self.pages: dict[str, dict[str, str]] = {"document": {}, "query": {}}
        for (query, document), cuts in pairs.items():
            for cut in cuts or ():
                side, _, page = cut.partition(" ")
                key = query if side == "query" else document
                if page:
                    self.pages[side][key] = page
                else:
                    self.texts[side][key] = None

    def remarks(self) -> Iterator[str]:
        """A sentence on each kind that there is."""
        for side, nouns in (("document", "documents"), ("query", "queries")):
            if texts := self.texts[side]:
                verb = "was" if len(texts) == 1 else "were"
                yield f"{format_count(len(texts), nouns)} {verb} cut to fit: {format_ids(texts)}."
            if pages := self.pages[side]:
                pages_by_id = format_ids([f"{key} ({page})" for key, page in pages.items()])
                yield f"of {format_count(len(pages), nouns)} only one page or frame was read: {pages_by_id}."
        if self.unknown:
            yield f"whether anything was cut is not known of {format_count(self.unknown, 'pairs')} that an earlier version scored."

    def counts(self) -> dict[str, int]:
        """For the report."""
        return {
            "documents": len(self.texts["document"]),
            "queries": len(self.texts["query"]),
            "documents_with_unread_pages": len(self.pages["document"]),
            "queries_with_unread_pages": len(self.pages["query"]),
            "pairs_not_known": self.unknown,
        }


def are_cuts(value: Sequence[object]) -> bool:
    """Whether a value that was read from a file is `Cuts`."""
    return all(isinstance(cut, str) and cut.partition(" ")[0] in ("document", "query") for cut in value)
