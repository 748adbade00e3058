"""Where a model lies: shipped with the package, in a directory, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from m0.checkpoints.files import CONFIG, INDEX, WEIGHTS
from m0.checkpoints.image_settings import PREPROCESSOR_FILE, PROCESSOR_FILE
from m0.errors import DownloadError
from m0.paths import path_of

SHIPPED_MODEL = "m0-nano"
DOWNLOAD_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    CONFIG,
    "tokenizer*.json",
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    "*.md",
]
"""What a download takes: weights, sizes, tokenizer, picture settings, model card. Never code, never pickles."""
PRECEDENCE = ((WEIGHTS, INDEX), (PROCESSOR_FILE, PREPROCESSOR_FILE))
"""Pairs of files: where a directory has both, the first is read and the second is not."""


def locate(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The directory of a model.

    Args:
        name: "m0-nano" (shipped), a directory, or a hub id such as "jinaai/jina-reranker-m0". A hub id is looked for under
            ./weights/OWNER/NAME first, where `m0 fetch` puts it, and downloaded to the hub's cache otherwise.
        revision: branch, tag or commit of a hub id.

    Raises DownloadError where it is none of these, or cannot be fetched.
    """
    try:
        text = os.fsdecode(name)
        path = path_of(text, DownloadError)
        is_directory, exists = path.is_dir(), path.exists()
    except TypeError:
        raise DownloadError(f"a model is named by text or a path, not by {type(name).__name__}.") from None
    except DownloadError:
        raise
    except (OSError, ValueError) as error:
        raise DownloadError(f"the model {_shorten(str(name))} cannot be looked for: {error}.") from None
    if text == SHIPPED_MODEL or (text and is_directory):
        if revision is not None:
            raise DownloadError(f"{text} is on this machine; revision {revision!r} goes with a hub id only.")
        return _shipped_directory() if text == SHIPPED_MODEL else path
    if exists and text:
        raise DownloadError(f"{text} is a file; give the directory that holds {CONFIG} and the weights.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.startswith((".", "/", "~")):
        raise DownloadError(
            f"{_shorten(text)!r} is neither {SHIPPED_MODEL!r}, nor a directory, nor a hub id such as 'jinaai/jina-reranker-m0'."
        )
    fetched = default_target(text, revision)
    if (fetched / CONFIG).exists():
        return fetched
    return _download(text, revision, None)


def fetch(name: str, revision: str | None = None, target: Path | None = None) -> Path:
    """Download a hub model into a directory (default: weights/OWNER/NAME), showing progress; an interrupted download goes on.

    Raises DownloadError.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DownloadError(f"{name!r} is not a hub id such as 'jinaai/jina-reranker-m0'.")
    return _download(name, revision, path_of(target, DownloadError) if target else default_target(name, revision))


def default_target(name: str, revision: str | None = None) -> Path:
    """Where `m0 fetch` puts a hub model: its owner and its revision, if one is asked for, keep it apart from others."""
    owner, _, model = name.partition("/")
    return Path("weights") / owner / (model if revision is None else f"{model}@{revision.replace('/', '_')}")


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]}..."


def _shipped_directory() -> Path:
    package = Path(__file__).resolve().parent.parent
    # Inside an installed wheel, or beside the package in a checkout.
    for folder in (package / "weights" / SHIPPED_MODEL, package.parent / "weights" / SHIPPED_MODEL):
        if (folder / CONFIG).exists():
            return folder
    raise DownloadError(f"{SHIPPED_MODEL} is not part of this installation of m0.")


def _download(name: str, revision: str | None, target: Path | None) -> Path:
    # The hub client comes with tokenizers; imported here because it is slow to import and rarely needed.
    from huggingface_hub import HfApi, snapshot_download

    try:
        path = Path(snapshot_download(name, revision=revision, local_dir=target, allow_patterns=DOWNLOAD_PATTERNS))
        conflicting = [pair for pair in PRECEDENCE if target is not None and all((path / file).exists() for file in pair)]
        files = HfApi().model_info(name, revision=revision).siblings or () if conflicting else ()
    except Exception as error:  # the client has a family of errors of its own, and its transport another
        raise DownloadError(f"{name} cannot be fetched: {_failure_reason(error, name, revision)}.") from None
    hub_files = {file.rfilename for file in files}
    for winner, loser in conflicting:  # an earlier download leaves what the model has no more
        if winner not in hub_files:
            raise DownloadError(f"{path / winner} is not part of {name}, but would be read in place of its {loser}; remove it.")
    return path


def _failure_reason(error: Exception, name: str, revision: str | None) -> str:
    kind = type(error).__name__
    reasons = {
        "RepositoryNotFoundError": "the hub has no such model, or it is private",
        "GatedRepoError": "it is gated; accept its terms on the hub and log in",
        "RevisionNotFoundError": f"it has no revision {revision!r}",
        "LocalEntryNotFoundError": "the hub did not answer, and it is not in the local cache",
        "OfflineModeIsEnabled": "the hub client is set to offline mode",
        "HFValidationError": "that is not a valid hub id",
    }
    text = " ".join(str(error).split())
    return reasons.get(kind) or f"{text[:200].rstrip('.')} ({kind})"
