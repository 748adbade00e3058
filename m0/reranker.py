"""What a user calls: documents in, a ranking out.

reranker = Reranker.from_pretrained("m0-nano")
for result in reranker.rank("a red heart", ["ein rotes Herz", {"image": "heart.png"}]):
    print(result.score, result.document)
"""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from m0.attention import alike
from m0.batch import Batch, DocumentState, compute_states, tokens_at_a_time
from m0.calls import CallLock, changes_model, level_of_caller, uses_model
from m0.cascade import Cascade
from m0.checkpoint import TOKENIZER, load_checkpoint, load_image_settings, save_checkpoint
from m0.documents import CacheCall, DocumentCache
from m0.errors import AdapterError, CheckpointError, InputError, M0Error
from m0.explain import DEFAULT_METHOD, Difference, Evidence, Explanation, beside_ranking, explain, method_of, minimal_evidence
from m0.explain.html import page
from m0.fused import fuse, is_fused
from m0.head import relevance
from m0.hub import locate
from m0.images import ImageSettings, Picture
from m0.interp.cache import Recording
from m0.interp.edits import EditFunction, Editing
from m0.interp.positions import Selector
from m0.interp.session import OpenSessions, Session, call, look_at, wants_every_token
from m0.interp.taps import Tap, find_taps
from m0.listed import is_row, listed, listed_pairs
from m0.lora import Adapters
from m0.mapped import release
from m0.model import RerankerModel
from m0.parallel import agreed, is_split, shared_out
from m0.paths import exists, path_of
from m0.progress import Progress
from m0.prompt import Cut, CutPages, Encoding, Limits, Part, PromptEncoder, load_tokenizer, read_parts, whole_number
from m0.quantize import Quantization, check_quantization, is_quantized, quantize
from m0.texts import TEXT_SUFFIXES, is_open_file

KEPT_VISUAL_TOKENS = 16384
"""Visual tokens of pictures already looked at that are kept during a call, for pairs that show them again."""
STRETCH_BATCHES = 4
"""A long list is scored this many batches at a time, while the next documents are opened."""
READERS, READ_AHEAD = 2, 64
"""Threads that open pictures, and how many documents they are ahead."""
QUARTERS, SAMPLED = 4, 4
"""Numbers of each weight that are looked at to see whether it has changed: so many in so many places."""
MIN_KEPT_TOKENS = 64
"""Shorter documents are not kept without being told so."""
TURN_TOKENS = 512
"""Visual tokens to compute for which tower and decoder take turns in memory; reading weights again costs a tenth of a second."""
MAX_SIBLING_TOKENS = 1024
"""Query tokens that meet one copy of a document side by side; their mutual mask grows with the square."""
_WORDS = (
    "how to install the system",
    "Ein Apfel am Tag, sagt man, erspart den Arzt.",
    "人工智能",
    "def open(path): ...",
    "музыка",
)
EXAMPLES = [(query, document) for query in _WORDS for document in (" ".join(_WORDS), {"image": Image.linear_gradient("L")})]
"""What is shown to a model before it is quantized."""
EXAMPLE_TOKENS = 1024
"""Of it at a time, for gradients keep every layer's outputs."""
PLAIN = 0.3
"""Share of the weights that stays plain without a word."""
Result = TypeVar("Result")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking."""

    index: int
    """Its place in the list that was given."""
    score: float
    """Relevance between 0 and 1: sigmoid(logit - 2.65)."""
    logit: float
    """The model's raw output."""
    document: Any = field(repr=False)
    """As it was given."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of the prompt: "document", "query", "template", "total"."""
    cut: tuple[Cut | CutPages, ...] = ()
    """What was cut to keep within the limits, and pages of pictures' files that were not read; empty: nothing."""
    approximate: bool = False
    """Whether it has only a cascade's first look for a score; such documents stand behind those that were scored in full."""


@dataclass(frozen=True)
class FailedDocument:
    """A document that could not be ranked (`on_error="skip"`)."""

    index: int
    error: str
    document: Any = field(repr=False)


@dataclass(frozen=True)
class Ranking(Sequence[RankedDocument]):
    """Documents, best first; ties keep the order given. Behaves as a list of its results."""

    results: list[RankedDocument]
    failed: list[FailedDocument] = field(default_factory=list)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self.results[place]

    def __len__(self) -> int:
        return len(self.results)


class Reranker:
    """A model with its tokenizer and picture settings. Made by `from_pretrained`.

    Any number of threads may use one; what changes the model waits for their calls (docs/threads.md). `copy.deepcopy` and `pickle`
    give another one that shares nothing with it.

    Attributes:
        model: the network, a plain `torch.nn.Module`.
        adapters: LoRA adapters by name (see `m0.lora`).
        image_settings: how pictures are resized; `max_pixels` and the bomb limit are here.
        name: where it was loaded from.
        documents: what is kept of documents that were met before (see `prepare`); replace it for other limits.
        calls: which calls may run beside each other (`m0.calls`).
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
        self._fingerprint: tuple[object, str] | None = None
        self._tokenizer_file: Path | None = None

    @property
    def sessions(self) -> Sequence[Session]:
        return self.open_sessions.here

    @property
    def image_settings(self) -> ImageSettings:
        return self._image_settings

    @image_settings.setter
    def image_settings(self, settings: ImageSettings) -> None:
        if not isinstance(settings, ImageSettings):
            raise InputError(f"image_settings is {type(settings).__name__}, but must be an ImageSettings.")
        with self.calls.exclusive():  # calls under way have read some of their pictures
            self._image_settings = settings

    @property
    def documents(self) -> DocumentCache:
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

        Raises M0Error: DownloadError, ConfigError, CheckpointError, AdapterError or InputError, one sentence each.
        """
        where = _device(device)
        directory = locate(name, revision)
        model = load_checkpoint(directory, _dtype(dtype, where, directory), where)
        settings = load_image_settings(directory, model.config)
        limits: dict[str, Any] = {"max_pixels": max_pixels, "min_pixels": min_pixels, "max_image_pixels": max_image_pixels}
        settings = replace(settings, **{key: value for key, value in limits.items() if value is not None})
        reranker = cls(model, load_tokenizer(directory / TOKENIZER), settings, str(name))
        reranker.prompt.check_tokenizer(directory / TOKENIZER)
        if (size := reranker.prompt.tokenizer.get_vocab_size()) > model.config.decoder.vocab_size:
            raise CheckpointError(
                f"{directory / TOKENIZER} has {size} tokens, but the model only {model.config.decoder.vocab_size}."
            )
        reranker._tokenizer_file = directory / TOKENIZER
        if adapter is not None:
            reranker.adapters.load(adapter)
        if quantization is not None:
            reranker.quantize(quantization)
        return reranker

    @changes_model
    @torch.inference_mode(False)  # gradients say which layers stay plain
    def quantize(
        self,
        how: Quantization = "int8",
        examples: Iterable[Any] | None = None,
        groups: int = 1,
        plain: float | None = None,
    ) -> None:
        """Put the linear layers into 8 bits (`m0.quantize`): half to two thirds of bfloat16's memory, and more speed with "int8" on
        x86 CPUs. Scores change; there is no way back.

        Args:
            how: "int8": weights and, token by token, inputs; "int8-weights": weights only; "float8": both, on GPUs that have it.
            examples: (query, document) pairs, in any iterable, like those to come, by which the layers' largest inputs are told; None:
                a few in several languages, with a picture. Where layers stay plain, all activations of some prompts are in memory at
                a time: at the released size some megabytes a token.
            groups: inputs of like size that have scales of their own, in 8 bits. More are closer and, with "int8", slower.
            plain: share of the weights, of the tower's and of the decoder's, that stay as they are: those layers whose rounding would
                change the examples' logits most, by their gradients. None: 0.3, and 0 with "float8", which is shown no examples.

        Raises InputError where there are no kernels for it, or where the model has an adapter or is quantized already.
        """
        whole_number(groups, "groups")
        if self.sessions:
            raise InputError("a model cannot be quantized inside record() or edit().")
        if self.open_sessions.elsewhere:
            raise InputError("a model cannot be quantized while another thread is inside record() or edit().")
        plain = (0.0 if how == "float8" else PLAIN) if plain is None else plain
        check_quantization(self.model, how, plain)
        batches = []
        if how != "float8":  # which needs no examples, and has no groups
            settings = self.image_settings
            if examples is None:  # which are no bombs, whatever is told of others
                settings = replace(settings, max_image_pixels=ImageSettings.max_image_pixels)
            encodings = self._encode_pairs(EXAMPLES if examples is None else examples, Limits(), settings=settings)
            batches = [
                Batch.of([encodings[i] for i in members], share=False, device=self.model.device)
                for members in _batches(encodings, EXAMPLE_TOKENS, (), share=False)
            ]
        quantize(self.model, how, batches, groups, plain)
        if is_fused(self.model):  # so that what is new is compiled, too
            fuse(self.model)

    @changes_model
    def compile(self) -> None:
        """Have torch.compile fuse norms, rotations and activations (`m0.fused`). The first calls take seconds longer, the later
        ones less time; scores change by rounding. Looking inside and explaining work as before. On a GPU equal pictures share a
        kernel that is prepared at the first of each size, and small batches, where Python is what takes the time, run as before.

        Raises InputError where torch.compile does not work, for it needs a C++ compiler on a CPU and Triton on a GPU.
        """
        fuse(self.model)

    @changes_model
    def change_weights(self, change: Callable[[RerankerModel], Result]) -> Result:
        """Change the model while no other thread uses it, and return what `change` does.

            reranker.change_weights(lambda model: model.load_state_dict(state))

        It waits for calls under way. Raises InputError inside a call of this thread.
        """
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
        stored = None if dtype is None else _known_dtype(dtype)
        save_checkpoint(
            self.model, path_of(directory, CheckpointError), self._tokenizer_file, stored, image_settings=self.image_settings
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Reranker:
        """Another reranker that shares nothing with this one. Documents in memory stay behind; a compiled model is copied uncompiled."""
        with self.calls.exclusive():
            return _of_state(copy.deepcopy(self._state(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """As `__deepcopy__`. What is pickled is made here, where no other thread changes it, so it is in memory once more."""
        with self.calls.exclusive():
            return _unpickled, (pickle.dumps(self._state(), protocol=pickle.HIGHEST_PROTOCOL),)

    def _state(self) -> dict[str, Any]:
        """What a copy takes over. Raises InputError where there can be none."""
        if self.open_sessions.everywhere:
            raise InputError("a Reranker cannot be copied or pickled while record() or edit() is open.")
        if is_split(self.model):
            raise InputError("a split model cannot be copied or pickled, since no process holds all of it.")
        return {name: value for name, value in self.__dict__.items() if name not in ("open_sessions", "_fingerprint")}

    def __copy__(self) -> Reranker:
        raise InputError(
            "a Reranker is copied whole, by copy.deepcopy: two that shared one model would change it for each other."
        )

    # --- ranking ------------------------------------------------------------------------------------------------------

    @uses_model
    def rank(
        self,
        query: Any,
        documents: Iterable[Any],
        top_n: int | None = None,
        batch_tokens: int | None = None,
        progress: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        max_length: int = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
        cascade: Cascade | None = None,
        shared: bool = False,
    ) -> Ranking:
        """Rank documents by their relevance to a query.

        Args:
            query: text, a picture, or a mixture; see `m0.prompt.read_parts`. A string is always text: give a picture as
                {"image": path or URL}, a `pathlib.Path`, an open file, bytes, a PIL image or an array.
            documents: any mixture of the same, in any iterable: a list, a Series, a generator, `dict.values()`.
            top_n: keep only that many; None: all.
            batch_tokens: tokens that go through the model at a time (memory, not results, depends on it); None: 2048 on a CPU,
                16384 on a GPU.
            progress: show a bar on stderr; where that is no terminal, a line every 30 seconds.
            on_error: what happens to a document that cannot be used: "raise", or "skip" it and list it under `failed`.
            max_length, max_query_length, max_doc_length: see `m0.prompt.Limits`.
            cascade: score only some documents in full, after a cheap look at all (`m0.cascade`); None: score all.
            shared: under torchrun, share the documents out over all processes (`m0.parallel.processes`), which must all make
                this same call; each gets the whole ranking.

        Raises InputError (of a document with its number), one sentence.
        """
        top_n = None if top_n is None else whole_number(top_n, "top_n")
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error is {on_error!r}, but must be 'raise' or 'skip'.")
        documents = listed(documents)
        if not documents:
            raise InputError("the list of documents is empty.")
        limits = Limits(max_length, max_query_length, max_doc_length)
        self.prompt.check(limits)
        if cascade is not None and not isinstance(cascade, Cascade):
            raise InputError(f"cascade is {type(cascade).__name__}, but must be a Cascade.")
        if cascade is not None and (cascade.depth or 0) > (layers := self.model.config.decoder.num_layers):
            raise InputError(f"the cascade's depth is {cascade.depth}, but the decoder has {layers} layers.")
        if shared and not dist.is_initialized():
            raise InputError("shared is set, but there are no processes to share with; see m0.parallel.processes.")
        if shared and is_split(self.model):
            raise InputError("shared is set, but the model is split over the same processes: all of them score every document.")
        query_parts = self._parts(query, "query")
        batch_tokens = tokens_at_a_time(batch_tokens, self.model.device)
        results: list[RankedDocument] = []
        failed: list[FailedDocument] = []
        waiting: dict[int, Encoding] = {}
        pictures = PictureFeatures(self.model, self.sessions)

        def finish() -> None:
            """Score what waits."""
            if not waiting:
                return
            looked = (
                self._first_look(query_parts, waiting, limits, cascade, batch_tokens, progress, pictures, shared)
                if cascade
                else {}
            )
            full = [index for index in waiting if index not in looked]
            some = [waiting[index] for index in full]
            found = self._logits(some, batch_tokens, progress, pictures=pictures, shared=shared)
            by_index = dict(zip(full, found.tolist(), strict=True)) | looked
            logits = torch.tensor([by_index[index] for index in waiting], dtype=found.dtype)
            scores = relevance(logits, self.model.config.logit_bias)
            for (index, encoding), logit, value in zip(waiting.items(), logits.tolist(), scores.tolist(), strict=True):
                about = encoding.counts, encoding.cut
                results.append(RankedDocument(index, value, logit, documents[index], *about, index in looked))
            waiting.clear()

        _warn_of_pictures(documents)
        bar = Progress(len(documents), "reading", progress)
        tokens = 0
        refused: InputError | None = None
        for index, parts in enumerate(self._read_ahead(documents)):
            try:
                if isinstance(parts, InputError):
                    raise parts
                waiting[index] = self.prompt.encode(query_parts, parts, limits)
                tokens += len(waiting[index])
            except InputError as error:
                failed.append(FailedDocument(index, str(error), documents[index]))
                if on_error == "raise":
                    refused = type(error)(f"document {index}: {error}")
                    break
            bar.advance()
            # While these are computed, the next are opened. Who watches sees all documents in one call.
            if tokens >= STRETCH_BATCHES * batch_tokens and cascade is None and not shared and not self.sessions:
                finish()
                tokens = 0
        bar.close()
        if shared:
            refused = _agree(documents, waiting, failed, refused)
        if refused is not None:
            raise refused
        finish()
        results.sort(key=lambda result: (result.approximate, -result.logit, result.index))
        return Ranking(results[:top_n], failed)

    @uses_model
    def score(
        self,
        pairs: Iterable[Any],
        batch_tokens: int | None = None,
        progress: bool = False,
        max_length: int = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
    ) -> list[float]:
        """Relevance, between 0 and 1, of each (query, document) pair, in any iterable. Arguments and errors as for `rank`."""
        limits = Limits(max_length, max_query_length, max_doc_length)
        logits = self._logits(self._encode_pairs(pairs, limits), tokens_at_a_time(batch_tokens, self.model.device), progress)
        return relevance(logits, self.model.config.logit_bias).tolist()

    @uses_model
    def prepare(
        self,
        documents: Iterable[Any],
        batch_tokens: int | None = None,
        progress: bool = False,
        max_length: int = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
    ) -> int:
        """Compute documents ahead of time, so that scoring one costs only the query's tokens.

        What is kept stays in `self.documents`: in memory while there is room, and on disk where it has a folder. `rank`, `score`
        and `evaluate` use it by themselves, and keep documents by themselves that they meet a second time. It is dropped when
        weights or the active adapter change (see docs/speed.md for how that is noticed).

        Args:
            documents: as for `rank`. Other arguments as there: a document cut at another place is another one.

        Returns: how many were computed; the others were kept already. Raises InputError (of a document with its number).
        """
        documents = listed(documents)
        limits = Limits(max_length, max_query_length, max_doc_length)
        batch_tokens = tokens_at_a_time(batch_tokens, self.model.device)
        if self.sessions:
            raise InputError(
                "documents cannot be prepared inside record() or edit(), which see every pair from its first token."
            )
        if not self.documents.max_bytes and self.documents.folder is None:
            raise InputError("there is no room to keep documents: max_bytes is 0 and there is no folder.")
        pictures = PictureFeatures(self.model, self.sessions)
        turn = self._turn(pictures, wanted=True)
        _warn_of_pictures(documents)
        before = self.documents.counts.computed
        bar = Progress(len(documents), "reading", progress)
        with torch.inference_mode():
            stretch: list[Encoding] = []
            for index, parts in enumerate(self._read_ahead(documents)):
                try:
                    if isinstance(parts, InputError):
                        raise parts
                    stretch.append(self.prompt.encode(["?"], parts, limits))
                except InputError as error:
                    raise type(error)(f"document {index}: {error}") from None
                if sum(map(len, stretch)) >= batch_tokens or index == len(documents) - 1:
                    self._take_states(stretch, batch_tokens, pictures, turn)
                    bar.advance(len(stretch))
                    stretch = []
        bar.close()
        return self.documents.counts.computed - before

    def encode(
        self, query: Any, document: Any, max_length: int = 10240, max_query_length: int = 512, max_doc_length: int | None = None
    ) -> Encoding:
        """The prompt of one pair: token ids, positions, pictures, and the origin of every token."""
        limits = Limits(max_length, max_query_length, max_doc_length)
        return self.prompt.encode(self._parts(query, "query"), self._parts(document, "document"), limits)

    @uses_model
    def logits(
        self,
        pairs: Iterable[Any],
        batch_tokens: int | None = None,
        progress: bool = False,
        max_length: int = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
    ) -> list[float]:
        """The model's raw output for each (query, document) pair; relevance is sigmoid(logit - 2.65). Otherwise as `score`."""
        limits = Limits(max_length, max_query_length, max_doc_length)
        return self.logits_of(self._encode_pairs(pairs, limits), batch_tokens, progress)

    @uses_model
    def logits_of(
        self,
        encodings: list[Encoding],
        batch_tokens: int | None = None,
        progress: bool = False,
        pictures: PictureFeatures | None = None,
    ) -> list[float]:
        """The model's raw output for prompts that `encode` has written; `pictures`: what earlier calls have looked at."""
        return self._logits(encodings, tokens_at_a_time(batch_tokens, self.model.device), progress, pictures=pictures).tolist()

    def read(self, value: Any, side: Literal["query", "document"] = "document") -> list[Part]:
        """Open a query or document once (pictures decoded and resized); what comes back may be given in its place."""
        return self._parts(value, side)

    @uses_model
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides a score: config, every weight, the active adapter, tokenizer, picture settings."""
        if is_split(self.model):
            raise InputError(
                "a split model has no fingerprint, since no process holds all of it; keep documents in memory only."
            )
        digest = sha256(repr((self.model.config, self.image_settings, *self._adapter_state())).encode())
        digest.update(self.prompt.tokenizer.to_str().encode())
        for name, value in self.model.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @uses_model
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
            max_length, max_query_length, max_doc_length: see `m0.prompt.Limits`; max_length None is its default.
            query_type, doc_type: "text" or "image"; with "image" a string is a path, URL, data URI or base64.
            normalize_scores: True: relevance between 0 and 1; False: the raw logits (copies of the vendor's code are about
                that take the argument and give relevances all the same).
            show_progress: as `progress` of `rank`.

        Returns: scores in the order of `pairs`; a bare number for a single pair, as the vendor's does.
        """
        for name, value in (("query_type", query_type), ("doc_type", doc_type)):
            if value not in ("text", "image"):
                raise InputError(f"{name} is {value!r}, but must be 'text' or 'image'.")
        batch_size = whole_number(batch_size, "batch_size")
        if not isinstance(pairs, Mapping):  # which is refused below
            pairs = listed(pairs, "pairs")
            pairs = [pairs] if len(pairs) == 2 and not is_row(pairs[0]) else pairs
        limits = Limits(Limits.max_length if max_length is None else max_length, max_query_length, max_doc_length)
        typed = [(_typed(query, query_type), _typed(document, doc_type)) for query, document in listed_pairs(pairs)]
        scores: list[float] = []
        batch_size = len(typed) if self.sessions else batch_size  # who watches sees all pairs in one call
        bar = Progress(len(typed), "scoring", show_progress)
        pictures = PictureFeatures(self.model, self.sessions)
        for start in range(0, len(typed), batch_size):
            encodings = self._encode_pairs(typed[start : start + batch_size], limits, start)
            logits = self._logits(encodings, tokens_at_a_time(None, self.model.device), False, pictures=pictures)
            scores += (relevance(logits, self.model.config.logit_bias) if normalize_scores else logits).tolist()
            bar.advance(len(encodings))
        bar.close()
        return scores[0] if len(scores) == 1 else scores

    # --- looking inside -----------------------------------------------------------------------------------------------

    def taps(self, names: str | Iterable[str] = "*") -> list[Tap]:
        """The activations that have a name, with their shapes; `names`: shell patterns. Raises InputError where one fits none."""
        return find_taps(self.model.config, names)

    def record(self, *names: str, at: Selector | None = None, every_token: bool = False) -> Recording:
        """Keep activations of everything that is scored inside the `with` block.

            with reranker.record("decoder.layers.*.attention.pattern") as cache:
                reranker.score([(query, document)])

        Inside an `edit` it keeps what the edit made of it; an `edit` inside it comes after. Only this thread's calls are kept; others
        may use the reranker meanwhile.

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

    # --- explaining ---------------------------------------------------------------------------------------------------

    @uses_model
    def explain(
        self,
        query: Any,
        document: Any,
        method: str = DEFAULT_METHOD,
        target: Literal["logit"] = "logit",
        max_length: int = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
        **options: Any,
    ) -> Explanation:
        """Why a document got its score: a signed relevance for every word and every cell of a picture.

        Args:
            query, document: as for `rank`.
            method: one of `m0.explain.METHODS`; `options` are that function's. docs/explaining.md compares them.
            target: what is explained: the raw logit.
            max_length, max_query_length, max_doc_length: as for `rank`; what is cut is not explained, and a note says so.

        Raises InputError.
        """
        encoding = self.encode(query, document, max_length, max_query_length, max_doc_length)
        return self.explain_prompt(encoding, method, target, **options)

    @uses_model
    def explain_prompt(
        self, encoding: Encoding, method: str = DEFAULT_METHOD, target: Literal["logit"] = "logit", **options: Any
    ) -> Explanation:
        """The same of a prompt that `encode` has written."""
        return explain(self, encoding, method, target, **options)

    @uses_model
    def explain_ranking(
        self,
        query: Any,
        documents: Iterable[Any],
        path: str | os.PathLike[str],
        top_n: int | None = 10,
        method: str = DEFAULT_METHOD,
        names: Iterable[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_length: int = 10240,
        max_query_length: int = 512,
        max_doc_length: int | None = None,
        **options: Any,
    ) -> Ranking:
        """Rank documents and write a page with the best `top_n` explained, best first.

        Args:
            path: the HTML file; it needs no network.
            top_n: how many; None: all.
            method: one of `m0.explain.METHODS`; `options` are that function's.
            names: what the documents are called on the page; None: their numbers.
            on_error: what happens to a document that cannot be used, or is too long for the method: "raise", or "skip" it and list it
                under `failed`.
            max_length, max_query_length, max_doc_length: as for `rank`.

        Returns: the ranking of what is on the page. Raises InputError (of a document with its number).
        """
        method_of(method, options)
        documents, path = listed(documents), path_of(path)
        names = None if names is None else listed(names, "names")
        if names is not None and len(names) != len(documents):
            raise InputError(f"there are {len(names)} names for {len(documents)} documents.")
        limits = (max_length, max_query_length, max_doc_length)
        ranking = self.rank(query, documents, top_n, None, False, on_error, *limits)
        explained, results, failed = [], [], list(ranking.failed)
        for result in ranking:
            try:
                found = self.explain(query, result.document, method, "logit", *limits, **options)
            except InputError as error:
                if on_error == "raise":
                    raise type(error)(f"document {result.index}: {error}") from None
                failed.append(FailedDocument(result.index, str(error), result.document))
                continue
            explained.append(beside_ranking(found, result.logit, result.score))
            results.append(result)
        page(explained, path, names=[str(r.index) if names is None else names[r.index] for r in results])
        return replace(ranking, results=results, failed=failed)

    @uses_model
    def explain_difference(
        self, query: Any, better: Any, worse: Any, method: str = DEFAULT_METHOD, **options: Any
    ) -> Difference:
        """Why one document stands above another: both explained, side by side."""
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
    ) -> Evidence:
        """The least of a document that keeps the score, and the least whose loss drops it; see `m0.explain.minimal_evidence`. Words are
        tried in the order of their relevance by `method`. Raises InputError."""
        encoding = self.encode(query, document)
        order = explain(self, encoding, method).tokens.tolist()
        return minimal_evidence(self, encoding, order, keep, threshold, unit)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _parts(self, value: Any, side: Literal["query", "document"]) -> list[Part]:
        if isinstance(value, str):
            _warn_if_picture(value, side)
        return read_parts(value, side, self.image_settings)

    def _read_ahead(self, documents: Sequence[Any], settings: ImageSettings | None = None) -> Iterator[list[Part] | InputError]:
        """Documents opened, or why one cannot be: pictures by other threads, some ahead of the one that is asked for. What Pillow
        has opened already is read here, for its pictures are not made for several threads. `settings` None: the reranker's."""
        used = settings or self.image_settings

        def read(document: Any) -> list[Part] | InputError:
            try:
                return read_parts(document, "document", used)
            except InputError as error:
                return error

        with ThreadPoolExecutor(READERS) as pool:
            ahead: deque[Future[list[Part] | InputError]] = deque()
            try:
                for document in documents:
                    if isinstance(document, str) or _holds_opened(document):
                        ahead.append(Future())
                        ahead[-1].set_result(read(document))
                    else:
                        ahead.append(pool.submit(read, document))
                    if len(ahead) > READ_AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _encode_pairs(
        self, pairs: Iterable[Any], limits: Limits, first: int = 0, settings: ImageSettings | None = None
    ) -> list[Encoding]:
        encodings = []
        checked = listed_pairs(pairs)
        documents = [document for _, document in checked]
        _warn_of_pictures(documents)
        for number, ((query, _), parts) in enumerate(zip(checked, self._read_ahead(documents, settings), strict=True), first):
            try:
                if isinstance(parts, InputError):
                    raise parts
                encoding = self.prompt.encode(self._parts(query, "query"), parts, limits)
            except InputError as error:
                raise type(error)(f"pair {number}: {error}") from None
            encodings.append(encoding)
        return encodings

    def _logits(
        self,
        encodings: list[Encoding],
        batch_tokens: int,
        progress: bool,
        cascade: Cascade | None = None,
        pictures: PictureFeatures | None = None,
        shared: bool = False,
    ) -> Tensor:
        """Raw logits. `cascade`: they are its first look. `pictures`: what was looked at before. `shared`: every process scores some
        of the documents."""
        if pictures is None or self.sessions:  # who watches sees every picture of a call
            pictures = PictureFeatures(self.model, self.sessions)

        def work(own: Iterable[int]) -> Tensor:
            # What is recorded may be used where gradients flow, so then it must not be inference's.
            with torch.no_grad() if self.sessions else torch.inference_mode():
                return self._scored([encodings[i] for i in own], batch_tokens, progress, cascade, pictures)

        if not shared:
            return work(range(len(encodings)))
        families = alike(encoding.document_key for encoding in encodings).values()
        groups = sorted(families, key=lambda members: -sum(len(encodings[i]) for i in members))
        found = shared_out(groups, lambda own: work(own).tolist())
        working = torch.promote_types(self.model.dtype, torch.float32)
        return torch.tensor([found[number] for number in range(len(encodings))], dtype=working)

    def _scored(
        self,
        encodings: list[Encoding],
        batch_tokens: int,
        progress: bool,
        cascade: Cascade | None,
        pictures: PictureFeatures,
    ) -> Tensor:
        """Raw logits in the order given, float32 (float64 for a float64 model), on the CPU. `cascade`: they are its first look."""
        # The same prompt twice is scored once: a row's place in a batch may change its last bit.
        numbers: dict[Any, int] = {}
        keys = [place if self.sessions else encoding.key for place, encoding in enumerate(encodings)]
        places = [numbers.setdefault(key, len(numbers)) for key in keys]
        different = list(dict(zip(places, encodings, strict=True)).values())
        working = torch.promote_types(self.model.dtype, torch.float32)
        order: list[int] = []
        found: list[Tensor] = []
        bar = Progress(sum(len(encoding) for encoding in different), "scoring", progress)
        # A first look is no reason to compute a document whole, nor to call it met.
        keeps = self.documents.max_bytes or self.documents.folder is not None
        turn = self._turn(pictures) if keeps and not self.sessions and not cascade else None
        known = self._known_documents(different, turn) if turn else set()
        with call(self, different):
            for members in _batches(different, batch_tokens, known, share=not self.sessions):
                some = [different[i] for i in members]
                kept = [encoding for encoding in some if encoding.document_key in known]
                states = self._take_states(kept, batch_tokens, pictures, turn) if turn else {}
                # Who watches wants every pair to have tokens of its own.
                batch = Batch.of(some, share=not self.sessions, device=self.model.device, states=states)
                features = pictures.take(batch.pictures)
                for session in self.sessions:
                    session.meet(members, batch.packing)
                order += members
                whole = wants_every_token(self.sessions)
                found.append(batch.score(self.model, features, cascade.depth if cascade else None, whole))
                bar.advance(sum(len(different[i]) for i in members))
        bar.close()
        logits = torch.empty(len(different), dtype=working)
        if found:
            logits[order] = torch.cat(found).to("cpu", working)
        if not torch.isfinite(logits).all():
            raise M0Error(
                f"the model gave a score that is not a number in {self.model.dtype}; its weights are damaged or overflow this type."
            )
        return logits[places]

    def _first_look(
        self,
        query: list[Part],
        encodings: dict[int, Encoding],
        limits: Limits,
        cascade: Cascade,
        batch_tokens: int,
        progress: bool,
        pictures: PictureFeatures,
        shared: bool,
    ) -> dict[int, float]:
        """Cheap logits of the documents that a cascade does not score in full."""
        cheap = encodings
        if cascade.max_pixels is not None:
            asked = cascade.smaller(query)
            shown = {index: cascade.smaller(encoding.parts["document"]) for index, encoding in encodings.items()}
            cheap = {index: self.prompt.encode(asked, parts, limits) for index, parts in shown.items()}
        logits = self._logits(list(cheap.values()), batch_tokens, progress, cascade, pictures, shared)
        order = sorted(zip(cheap, logits.tolist(), strict=True), key=lambda pair: -pair[1])
        return dict(order[cascade.keep :])

    # --- documents kept -----------------------------------------------------------------------------------------------

    def _known_documents(self, encodings: list[Encoding], turn: Turn) -> set[tuple[bytes, ...]]:
        """Keys of the documents that are kept or worth keeping: long enough, and met in an earlier call, kept on disk anyway, or
        asked for by many queries."""
        documents, shown = turn.documents, turn.shown
        lengths = {encoding.document_key: encoding.document_tokens for encoding in encodings}
        own: Counter[tuple[bytes, ...]] = Counter()
        for encoding in encodings:
            own[encoding.document_key] += len(encoding) - encoding.document_tokens
        met = {key for key in lengths if documents.meet(key, shown)}

        def worth(key: tuple[bytes, ...]) -> bool:
            # With more queries than meet one copy of it, each portion of them would compute it anew.
            return key in met or documents.folder is not None or own[key] > MAX_SIBLING_TOKENS

        return {
            key for key, length in lengths.items() if documents.has(key, shown) or (length >= MIN_KEPT_TOKENS and worth(key))
        }

    def _take_states(
        self, encodings: list[Encoding], batch_tokens: int, pictures: PictureFeatures, turn: Turn
    ) -> dict[tuple[bytes, ...], DocumentState]:
        """States of these prompts' documents, each computed where it is not kept."""
        by_key = {encoding.document_key: encoding for encoding in encodings}
        found = {}
        for key in by_key:
            # Queries of one document that do not fit into one batch follow one another, whether or not there is room to keep it.
            state = turn.documents.get(key, turn.shown)
            if (state := turn.latest.get(key) if state is None else state) is not None:
                found[key] = state
        left = [encoding for key, encoding in by_key.items() if key not in found]
        while left:
            count, size = 0, 0
            while count < len(left) and (not count or size + left[count].document_tokens <= batch_tokens):
                size += left[count].document_tokens
                count += 1
            some, left = left[:count], left[count:]
            features = pictures.take([p for e in some for p in e.pictures[: e.document_pictures]])
            states = compute_states(self.model, some, features)
            # What was computed while somebody changed the weights is nobody's.
            shown = turn.shown if self._weights_key() == turn.weights else replace(turn.shown, of=None)
            for encoding, state in zip(some, states, strict=True):
                found[encoding.document_key] = turn.documents.put(encoding.document_key, state, shown, turn.wanted)
        turn.latest.clear()
        turn.latest.update(found)
        return found

    def _turn(self, pictures: PictureFeatures, wanted: bool = False) -> Turn:
        """Begin a call that uses kept documents, or go on with the one that `pictures` are of, and forget those of other weights.
        `wanted`: a call that asks for them to be kept."""
        documents, weights = self.documents, self._weights_key()

        def fingerprint() -> str:
            """Reads every weight, so once for each state of them."""
            if self._fingerprint is None or self._fingerprint[0] != weights:
                self._fingerprint = (weights, self.fingerprint())
            return self._fingerprint[1]

        cache, number = pictures.asked
        shown = documents.belongs_to(weights, fingerprint, number if cache is documents else None)
        pictures.asked = documents, shown.number
        return Turn(documents, weights, shown, wanted)

    def _weights_key(self) -> object:
        """Another one after any weight, the active adapter or the picture settings have changed. PyTorch counts changes, but not
        those of fused optimizers or through `.data`, so a few numbers of each weight are looked at as well."""
        # Of a split model, the part that is here.
        parameters = [p.to_local() if hasattr(p, "to_local") else p for p in self.model.parameters()]
        versions = tuple((p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in parameters)
        with torch.no_grad():
            samples = [
                torch.cat([part for i in some for part in _sampled(parameters[i])]).tolist()
                for some in alike(p.dtype for p in parameters).values()
            ]
        return (*self._adapter_state(), self.image_settings, versions, samples)

    def _adapter_state(self) -> tuple[object, ...]:
        adapters = self.adapters
        return adapters.active, adapters.merged, repr(adapters.configs.get(adapters.active or ""))


def _of_state(state: dict[str, Any]) -> Reranker:
    reranker = Reranker.__new__(Reranker)
    reranker.__dict__.update(state)
    reranker.open_sessions, reranker._fingerprint = OpenSessions([]), None
    return reranker


def _unpickled(data: bytes) -> Reranker:
    return _of_state(pickle.loads(data))


@dataclass(frozen=True)
class Turn:
    """One call's use of kept documents."""

    documents: DocumentCache
    weights: object
    """As they were when it began, see `Reranker._weights_key`."""
    shown: CacheCall
    """To the cache, see `DocumentCache.belongs_to`."""
    wanted: bool = False
    """Whether it asks for documents to be kept, see `DocumentCache.put`."""
    latest: dict[tuple[bytes, ...], DocumentState] = field(default_factory=dict)
    """What the last batch used."""


class PictureFeatures:
    """Vision output of each different picture, computed when first asked for and kept while it is likely to be asked for again."""

    def __init__(self, model: RerankerModel, sessions: Sequence[Session]) -> None:
        self.model, self.sessions = model, sessions
        self.features: OrderedDict[bytes, Tensor] = OrderedDict()
        self.asked: tuple[DocumentCache | None, int | None] = (None, None)
        """The cache that the call they are of has asked for documents, and the call's number there."""

    def take(self, pictures: list[Picture]) -> Tensor | None:
        """Visual tokens of these pictures, end to end; None for none."""
        unseen = sum({p.digest: p.num_tokens for p in pictures if p.digest not in self.features}.values())
        long = unseen >= TURN_TOKENS and self.model.device.type == "cpu"
        if long:
            release(self.model.decoder.layers.parameters())
        result = look_at(self.model, self.sessions, pictures, self.features)
        if long:
            release(self.model.vision.parameters())
        for picture in pictures:
            self.features.move_to_end(picture.digest)
        while sum(map(len, self.features.values())) > KEPT_VISUAL_TOKENS and len(self.features) > 1:
            self.features.popitem(last=False)
        return result


def _sampled(weight: Tensor) -> tuple[Tensor, ...]:
    """A few numbers of each quarter, side by side, as a GPU gathers them in few steps."""
    flat = weight.flatten()
    if len(flat) <= QUARTERS * SAMPLED:
        return (flat,)
    return flat[: len(flat) // QUARTERS * QUARTERS].view(QUARTERS, -1)[:, :SAMPLED].unbind()


def _batches(
    encodings: list[Encoding], batch_tokens: int, known: Collection[tuple[bytes, ...]], share: bool = True
) -> Iterator[list[int]]:
    """Numbers of the encodings in batches of at most `batch_tokens` (or one prompt, or prompts of one document, that are longer).

    Prompts of one document stay together, as far as their own tokens keep within MAX_SIBLING_TOKENS; like lengths go together.
    The tokens of `known` documents, given by key, do not count. Without `share` every prompt is computed by itself.
    """
    batch: list[int] = []
    size = held = 0
    families = alike(encoding.document_key if share else number for number, encoding in enumerate(encodings))
    for members in sorted(families.values(), key=lambda members: len(encodings[members[0]])):
        first = encodings[members[0]]
        kept = first.document_key in known
        shared = first.counts["document"] if len(members) > 1 or kept else 0
        own = {number: len(encodings[number]) - shared for number in members}
        for portion, siblings in enumerate(_siblings(own)):
            tokens = sum(own[number] for number in siblings) + (0 if kept else shared)
            # Kept documents cost no tokens, but memory.
            holds = first.document_tokens if kept else 0
            # A second portion in the same batch would join the first.
            full = size + tokens > batch_tokens or (kept and held + holds > STRETCH_BATCHES * batch_tokens)
            if batch and (full or portion):
                yield batch
                batch, size, held = [], 0, 0
            batch += siblings
            size += tokens
            held += holds
    if batch:
        yield batch


def _siblings(own: Mapping[int, int]) -> Iterator[list[int]]:
    """Numbers of the prompts of one document, given with their own tokens, in portions that meet one copy of it."""
    portion: list[int] = []
    size = 0
    for number, tokens in own.items():
        if portion and size + tokens > MAX_SIBLING_TOKENS:
            yield portion
            portion, size = [], 0
        portion.append(number)
        size += tokens
    yield portion


def _warn_of_pictures(documents: Sequence[Any]) -> None:
    """Before other threads read them, where warnings are not to be trusted."""
    for document in documents:
        if isinstance(document, str):
            _warn_if_picture(document, "document")


def _typed(value: Any, kind: str) -> Any:
    return {"image": value} if kind == "image" and not isinstance(value, dict | list) else value


def _agree(
    documents: Sequence[Any], waiting: dict[int, Encoding], failed: list[FailedDocument], refused: InputError | None
) -> InputError | None:
    """Processes that share a ranking settle what they have read: what one of them cannot use, none does. Returns what all raise."""
    said = agreed((str(refused) if refused else "", {f.index: f.error for f in failed}))
    if refusals := [text for text, _ in said if text]:
        return InputError(refusals[0])
    lost = {index: error for _, errors in said for index, error in errors.items()}
    known = {f.index for f in failed}
    failed += [FailedDocument(i, error, documents[i]) for i, error in sorted(lost.items()) if i not in known]
    for index in lost:
        waiting.pop(index, None)
    keys = agreed(sha256(repr([encoding.key for encoding in waiting.values()]).encode()).hexdigest())
    if len(set(keys)) > 1:
        return InputError("the processes that share a ranking were given different documents or queries.")
    return None


def _holds_opened(document: Any) -> bool:
    """Whether there is a picture in it that Pillow has opened, or an open file."""
    if isinstance(document, Mapping):
        return any(_holds_opened(value) for value in document.values())
    if isinstance(document, list | tuple):
        return any(_holds_opened(value) for value in document)
    return isinstance(document, Image.Image) or is_open_file(document)


def _warn_if_picture(text: str, side: str) -> None:
    """A string is text. Say so where it looks as if a file was meant."""
    data, end = text.startswith("data:image/"), text[-10:].lower()
    if not data and (len(text) >= 1000 or "\n" in text):
        return
    if data or (end.endswith(PICTURE_SUFFIXES) and (text.startswith(("http://", "https://")) or _names_file(text))):
        how = 'to show the picture, pass {"image": ...} or a pathlib.Path'
    elif side == "document" and end.endswith(TEXT_SUFFIXES) and _names_file(text):
        how = "for what the file holds, pass a pathlib.Path"
    else:
        return
    shown = text if len(text) < 80 else f"{text[:60]}..."
    warnings.warn(f"the {side} {shown!r} is read as text; {how}.", stacklevel=level_of_caller())


def _names_file(text: str) -> bool:
    try:
        return exists(path_of(text))
    except InputError:
        return False


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {device!r}, but must be such as 'cpu' or 'cuda:0'.") from None
    if found.type == "meta":
        raise InputError("device is 'meta', which holds no weights to score with.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {str(device)!r}, but PyTorch finds no GPU here.")
    try:
        torch.empty(1, device=found)
    except Exception as error:  # each kind of device that is not there has an error of its own
        why = str(error).splitlines()[0].partition(". ")[0][:200].rstrip(".")
        raise InputError(f"device is {str(device)!r}, which PyTorch cannot use here: {why}.") from None
    return found


def _dtype(dtype: str | torch.dtype | None, device: torch.device, directory: Path) -> torch.dtype | None:
    if dtype is not None and dtype != "auto":
        return _known_dtype(dtype)
    if device.type == "cuda":
        return torch.bfloat16
    return None if _computes_bfloat16() and _stored_as_bfloat16(directory) else torch.float32


def _known_dtype(dtype: str | torch.dtype) -> torch.dtype:
    names = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if (found := names.get(str(dtype).removeprefix("torch."))) is None:
        raise InputError(f"dtype is {dtype!r}, but must be one of {list(names)}, or None.")
    return found


def _computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; where it does not, float32 is faster and more exact."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def _stored_as_bfloat16(directory: Path) -> bool:
    from m0.checkpoint import list_tensors

    return all(tensor.type == "BF16" for tensor in list_tensors(directory))
