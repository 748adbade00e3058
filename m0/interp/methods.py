"""The methods of a `Reranker` that look inside; each calls a file of this room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from m0.engine.host import Host
from m0.errors import InputError
from m0.interp.cache import Recording
from m0.interp.edits import EditFunction, Editing
from m0.interp.positions import Selector
from m0.interp.taps import Tap, find_taps


class InspectionMixin(Host):
    """What `m0.reranker.Reranker` can show of its activations."""

    def taps(self, names: str | Iterable[str] = "*") -> list[Tap]:
        """The activations that have a name, with their shapes; `names`: shell patterns. Raises InputError where one fits none."""
        return find_taps(self.model.config, names)

    def record(self, *names: str, at: Selector | None = None, every_token: bool = False) -> Recording:
        """Keep activations of everything that is scored inside the `with` block, by this thread.

            with reranker.record("decoder.layers.*.attention.pattern") as cache:
                reranker.score([(query, document)])

        Inside an `edit` it keeps what the edit made of it; an `edit` inside it comes after.

        Args:
            names: shell patterns of taps; only these are kept. The tower's patterns must be asked for by names with "vision".
            at: keep only the rows of these tokens (of attention, the rows of these queries); see `m0.interp.positions`.
            every_token: let the last layer compute all tokens, not only the score token, which alone the score needs.

        Raises InputError where a name fits no tap.
        """
        if not names:
            raise InputError("record() is told no activation to keep; reranker.taps() lists them.")
        return Recording(self, find_taps(self.model.config, names), at, every_token)

    def edit(
        self,
        edits: Mapping[str, EditFunction],
        at: Selector | None = None,
        to: Selector | None = None,
        heads: int | Sequence[int] | None = None,
        every_token: bool = False,
    ) -> Editing:
        """Change activations of everything that is scored inside the `with` block, by this thread.

            with reranker.edit({"decoder.layers.3.attention.z": zero}, heads=[1]):
                reranker.score([(query, document)])

        Args:
            edits: shell patterns of taps, and for each what to do: a function of one pair's tensor that returns the new one,
                among them those of `m0.interp.edits`.
            at, to: only at these tokens; `to`: of scores and patterns, only towards these.
            heads: only in these heads.
            every_token: as for `record`.

        Raises InputError where a name fits no tap or a tap has no such heads.
        """
        return Editing.of(self, edits, at, to, heads, every_token)
