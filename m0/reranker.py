"""What a user calls: documents in, a ranking out.

reranker = Reranker.from_pretrained("m0-nano")
for result in reranker.rank("a red heart", ["ein rotes Herz", {"image": "heart.png"}]):
    print(result.score, result.document)

Each method is a few lines that call a room: `m0.engine` ranks; `m0.interp.methods` has those that look inside, `m0.explain.methods` those that explain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from tokenizers import Tokenizer

from m0.checkpoints.adapters.switching import Adapters
from m0.checkpoints.files import TOKENIZER, load_checkpoint, save_checkpoint
from m0.checkpoints.hub import locate
from m0.checkpoints.image_settings import load_image_settings
from m0.checkpoints.placement import dtype_by_name, parse_device, parse_dtype
from m0.engine.calibration import quantize_with_examples
from m0.engine.cascade import Cascade
from m0.engine.copying import Copied
from m0.engine.options import RunOptions, settle
from m0.engine.parallel import is_split
from m0.engine.prefix_cache import DocumentCache
from m0.engine.prefixes import fingerprint_of, prepare
from m0.engine.quantize import Quantization
from m0.engine.ranking import rank
from m0.engine.results import FailedDocument, RankedDocument, Ranking
from m0.engine.scoring import ScoringCall, score_pairs, score_prompts
from m0.engine.vendor import compute_score
from m0.engine.visual_features import VisualFeatures
from m0.engine.watching import OpenSessions, WatchingSession
from m0.errors import AdapterError, CheckpointError, InputError
from m0.explain.methods import ExplanationMixin
from m0.inputs.ahead import encode_pairs
from m0.inputs.images import ImageSettings
from m0.inputs.lists import to_list, to_pairs
from m0.inputs.passages import Passages
from m0.inputs.policy import SourcePolicy
from m0.inputs.prompt import Encoding, Limits, PromptEncoder, load_tokenizer
from m0.inputs.reading import read_parts_and_warn
from m0.inputs.stream import Part
from m0.interp.methods import InspectionMixin
from m0.locks import CallLock, changes_model, uses_model
from m0.model.fused import fuse
from m0.model.head import relevance
from m0.model.linear import is_quantized
from m0.model.reranker_model import RerankerModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from m0.engine.options import Keywords

__all__ = ["FailedDocument", "RankedDocument", "Ranking", "Reranker"]
Result = TypeVar("Result")


class Reranker(ExplanationMixin, InspectionMixin, Copied):
    """A model with its tokenizer and picture settings, made by `from_pretrained`.

    Any number of threads may use one; what changes the model waits for their calls (docs/guides/threads-and-processes.md). `copy.deepcopy` and `pickle`
    give another one that shares nothing with it. Every call takes `limits` and `run`, or their fields one by one:
    `rank(..., max_length=512)` is `rank(..., limits=Limits(max_length=512))`.

    Attributes:
        model: the network, a plain `torch.nn.Module`.
        adapters: LoRA adapters by name (see `m0.checkpoints.adapters`).
        image_settings: how pictures are resized; `max_pixels` and the bomb limit are here.
        name: where it was loaded from.
        documents: the prefix cache (see `prepare`); replace it for other limits.
        calls: which calls may run beside each other (`m0.locks`).
        sessions: what this thread is recording or editing just now (see `record` and `edit`).
    """

    def __init__(self, model: RerankerModel, tokenizer: Tokenizer, image_settings: ImageSettings, name: str = "") -> None:
        self.calls = CallLock()
        self.open_sessions = OpenSessions([])
        self.model = model
        self.prompt = PromptEncoder(tokenizer, model.config)
        self._image_settings = image_settings
        self.adapters = Adapters(model, self.calls)
        self.name = name
        self._documents = DocumentCache()
        self.known_fingerprint: tuple[object, str] | None = None
        self._tokenizer_file: Path | None = None

    @property
    def sessions(self) -> Sequence[WatchingSession]:
        """What this thread is recording or editing just now."""
        return self.open_sessions.here

    @property
    def image_settings(self) -> ImageSettings:
        """How pictures are resized. Another one waits for calls under way. Raises InputError for what is no ImageSettings."""
        return self._image_settings

    @image_settings.setter
    def image_settings(self, settings: ImageSettings) -> None:
        if not isinstance(settings, ImageSettings):
            raise InputError(f"image_settings is {type(settings).__name__}, but must be an ImageSettings.")
        with self.calls.exclusive():  # calls under way have read some of their pictures
            self._image_settings = settings

    @property
    def documents(self) -> DocumentCache:
        """The prefix cache. Raises InputError where it is replaced by what is no DocumentCache."""
        return self._documents

    @documents.setter
    def documents(self, cache: DocumentCache) -> None:
        if not isinstance(cache, DocumentCache):
            raise InputError(
                f"documents is {type(cache).__name__}, but must be a DocumentCache; one of max_bytes=0 keeps nothing."
            )
        self._documents = cache

    @classmethod
    @torch.inference_mode(False)  # weights made inside it could never be explained
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "m0-nano",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        adapter: str | os.PathLike[str] | None = None,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
        max_image_pixels: int | None = None,
        quantization: Quantization | None = None,
        policy: SourcePolicy | None = None,
    ) -> Reranker:
        """Load a model.

        Args:
            name: "m0-nano", a directory, or a hub id (downloaded if need be).
            dtype: "float32", "bfloat16", "float16", "float64" or a torch.dtype. None: bfloat16 on a GPU; on a CPU as stored
                where the processor computes in that type, else float32.
            device: None: the GPU if there is one, else the CPU.
            revision: branch, tag or commit on the hub.
            adapter: directory of a LoRA adapter in peft's format, loaded and made active.
            max_pixels, min_pixels: limits of the resized picture; None: the checkpoint's (the released model's: 602112 and 3136).
            max_image_pixels: refuse larger pictures before decoding them.
            quantization: "int8", "int8-weights" or "float8", see `quantize`.
            policy: where pictures and files may come from; None: from everywhere (`m0.inputs.policy`).

        Raises M0Error: DownloadError, ConfigError, CheckpointError, AdapterError or InputError, one sentence each.
        """
        where, directory = parse_device(device), locate(name, revision)
        model = load_checkpoint(directory, parse_dtype(dtype, where, directory), where)
        limits = {"max_pixels": max_pixels, "min_pixels": min_pixels, "max_image_pixels": max_image_pixels}
        settings = load_image_settings(directory, model.config, limits)
        if policy is not None:
            settings = replace(settings, policy=policy)
        reranker = cls(model, load_tokenizer(directory / TOKENIZER), settings, str(name))
        reranker.prompt.check_tokenizer(directory / TOKENIZER)
        reranker._tokenizer_file = directory / TOKENIZER
        if adapter is not None:
            reranker.adapters.load(adapter)
        if quantization is not None:
            reranker.quantize(quantization)
        return reranker

    @changes_model
    @torch.inference_mode(False)  # gradients say which layers stay unquantized
    def quantize(
        self,
        how: Quantization = "int8",
        examples: Iterable[Any] | None = None,
        groups: int = 1,
        unquantized_share: float | None = None,
        *,
        plain: float | None = None,
    ) -> None:
        """Put the linear layers into 8 bits (`m0.engine.quantize`). Scores change; there is no way back.

        Args:
            how: "int8": weights and, token by token, inputs; "int8-weights": weights only; "float8": both, on GPUs that have it.
            examples: (query, document) pairs, in any iterable, like those to come, which show the layers' largest inputs; None: a few in
                several languages, with a picture. At the released size they take some megabytes a token.
            groups: inputs of like size that have scales of their own, in 8 bits. More are closer and, with "int8", slower.
            unquantized_share: of the weights, the tower's and the decoder's: layers whose rounding would change the examples' logits most
                stay unquantized. None: 0.3, and 0 with "float8", which needs no examples. `plain` is its old name.

        Raises InputError where there are no kernels for it, or where the model has an adapter or is quantized already.
        """
        quantize_with_examples(self, how, examples, groups, unquantized_share, plain)

    @changes_model
    def compile(self) -> None:
        """Have torch.compile fuse norms, rotations and activations (`m0.model.fused`). The first calls take seconds longer, the later
        ones less time; scores change by rounding. Looking inside and explaining work as before.

        Raises InputError where torch.compile does not work, for it needs a C++ compiler on a CPU and Triton on a GPU.
        """
        fuse(self.model)

    @changes_model
    def change_weights(self, change: Callable[[RerankerModel], Result]) -> Result:
        """Change the model while no other thread uses it, and return what `change` does.

            reranker.change_weights(lambda model: model.load_state_dict(state))

        It waits for calls under way. Raises InputError inside a call of this thread.
        """
        if not callable(change):
            raise InputError(f"change is {type(change).__name__}, but must be a function of the model.")
        return change(self.model)

    @uses_model
    def save_pretrained(self, directory: str | os.PathLike[str], dtype: str | torch.dtype | None = None) -> None:
        """Write a directory that `from_pretrained` and transformers read. An active adapter must be merged first.

        `dtype`: type of the weights in the file; None: as they are. Raises CheckpointError, AdapterError, InputError.
        """
        if is_quantized(self.model):
            raise CheckpointError("a quantized model cannot be saved; save it before, and quantize it when it is loaded.")
        if is_split(self.model):
            raise CheckpointError("a split model cannot be saved, since no process holds all of it; save it before.")
        if self.adapters.active is not None and not self.adapters.merged:
            raise AdapterError(
                f"the adapter {self.adapters.active!r} is active; merge it, switch it off, or save it with adapters.save."
            )
        stored = None if dtype is None else dtype_by_name(dtype)
        save_checkpoint(self.model, directory, self._tokenizer_file, stored, image_settings=self.image_settings)

    @uses_model
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides a score: config, every weight, the active adapter, tokenizer, picture settings.

        Raises InputError for a split model.
        """
        return fingerprint_of(self)

    # --- ranking ------------------------------------------------------------------------------------------------------

    def rank(
        self,
        query: Any,
        documents: Iterable[Any],
        top_n: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        cascade: Cascade | None = None,
        limits: Limits | None = None,
        run: RunOptions | None = None,
        passages: Passages | Literal["pages"] | None = None,
        **keywords: Unpack[Keywords],
    ) -> Ranking:
        """Rank documents by their relevance to a query.

        Args:
            query: text, a picture, or a mixture; see `m0.inputs.reading.read_parts`. A string is always text: give a picture as
                {"image": path or URL}, a `pathlib.Path`, bytes, a PIL image or an array.
            documents: any mixture of the same, in any iterable; also files with pages, such as {"pdf": path}, and a `Document` with an id.
            top_n: keep only that many; None: all.
            on_error: what happens to a document that cannot be used: "raise", or "skip" it and list it under `failed`.
            cascade: score only some documents in full, after a draft score of all (`m0.engine.cascade`); None: score all.
            limits, run: lengths (`Limits`), and how the call is run (`RunOptions`); `keywords`: their fields one by one.
            passages: how long documents are cut, and what their passages' scores make of them (`Passages`); None: a document with
                pages is scored by its best page, and others are not cut.

        Raises InputError (of a document with its number), one sentence.
        """
        given = to_list(documents)  # what gives them may wait for other calls, so this is not one yet
        with self.calls.shared():
            lengths, how = settle(limits, run, keywords)
            return rank(self, query, given, top_n, on_error, cascade, lengths, how, Passages.of(passages))

    def score(
        self,
        pairs: Iterable[Any],
        limits: Limits | None = None,
        run: RunOptions | None = None,
        passages: Passages | Literal["pages"] | None = None,
        **keywords: Unpack[Keywords],
    ) -> list[float]:
        """Relevance, between 0 and 1, of each (query, document) pair. Arguments and errors as for `rank`."""
        logits = torch.tensor(
            self.logits(pairs, limits, run, passages, **keywords), dtype=torch.promote_types(self.model.dtype, torch.float32)
        )
        return relevance(logits, self.model.config.logit_bias).tolist()

    def logits(
        self,
        pairs: Iterable[Any],
        limits: Limits | None = None,
        run: RunOptions | None = None,
        passages: Passages | Literal["pages"] | None = None,
        **keywords: Unpack[Keywords],
    ) -> list[float]:
        """The model's raw output for each (query, document) pair; relevance is sigmoid(logit - 2.65). Otherwise as `score`."""
        (lengths, how), given = settle(limits, run, keywords), to_pairs(pairs)
        with self.calls.shared():
            encoded = encode_pairs(self.prompt, given, lengths, self.image_settings, how=Passages.of(passages))
            return score_pairs(self, encoded, ScoringCall(how.tokens(self.model.device), how.progress)).tolist()

    @uses_model
    def logits_of(
        self,
        encodings: list[Encoding],
        pictures: VisualFeatures | None = None,
        run: RunOptions | None = None,
        **keywords: Unpack[Keywords],
    ) -> list[float]:
        """The model's raw output for prompts that `encode` has written; `pictures`: visual features of earlier calls."""
        _, how = settle(None, run, keywords)
        call = ScoringCall(how.tokens(self.model.device), how.progress, pictures)
        return score_prompts(self, encodings, call).tolist()

    def prepare(
        self,
        documents: Iterable[Any],
        limits: Limits | None = None,
        run: RunOptions | None = None,
        passages: Passages | Literal["pages"] | None = None,
        **keywords: Unpack[Keywords],
    ) -> int:
        """Compute the prefixes of documents ahead of time, so that scoring one costs only the query's tokens.

        They stay in `self.documents`, the prefix cache: in memory while there is room, and on disk where it has a folder. `rank`, `score`
        and `evaluate` use it by themselves, and cache by themselves what they see a second time. It is emptied when
        weights or the active adapter change (see docs/guides/speed.md for how that is noticed).

        Args:
            documents: as for `rank`. Other arguments as there: a document cut at another place is another one.

        Returns: how many were computed; the others were cached already. Raises InputError (of a document with its number).
        """
        given = to_list(documents)
        with self.calls.shared():
            return prepare(self, given, *settle(limits, run, keywords), Passages.of(passages))

    def encode(self, query: Any, document: Any, limits: Limits | None = None, **keywords: Unpack[Keywords]) -> Encoding:
        """The prompt of one pair: token ids, positions, pictures, and the origin of every token. Raises InputError."""
        lengths, _ = settle(limits, None, keywords)
        return self.prompt.encode(self.read(query, "query"), self.read(document), lengths)

    def read(self, value: Any, side: Literal["query", "document"] = "document") -> list[Part]:
        """Open a query or document once (pictures decoded and resized); what comes back may be given in its place. Raises InputError."""
        return read_parts_and_warn(value, side, self.image_settings)

    def compute_score(
        self,
        pairs: Any,
        batch_size: int = 8,
        max_length: int | None = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
        query_type: str = "text",
        doc_type: str = "text",
        normalize_scores: bool = True,
        show_progress: bool = False,
    ) -> list[float] | float:
        """The vendor's call, so that code written for it runs unchanged.

        Args:
            pairs: [query, document] pairs in a list or another iterable, or one such pair, whose query is then not a list.
            batch_size: pairs at a time (memory, not results, depends on it).
            max_length, max_query_length, max_doc_length: see `m0.inputs.prompt.Limits`; max_length None is its default.
            query_type, doc_type: "text" or "image"; with "image" a string is a path, URL, data URI or base64.
            normalize_scores: True: relevance between 0 and 1; False: the raw logits (some copies of the vendor's code ignore it).
            show_progress: as `RunOptions.progress`.

        Returns: scores in the order of `pairs`; a bare number for a single pair, as the vendor's does. Raises InputError.
        """
        limits = Limits(Limits.max_length if max_length is None else max_length, max_query_length, max_doc_length)
        given = pairs if isinstance(pairs, Mapping) else to_list(pairs, "pairs")
        with self.calls.shared():
            return compute_score(self, given, batch_size, limits, query_type, doc_type, normalize_scores, show_progress)
