"""How the processes of one command speak as one: each sentence once, and no exit status that torchrun would take for a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

WAIT_SECONDS = 2.0
"""How long the other processes wait for the first one's sentence."""


@contextlib.contextmanager
def only_first_on_stderr(first: bool) -> Iterator[None]:
    """All processes read the same files and would print the same messages: only the first one's reach stderr."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(sys.stderr if first else nowhere):
        yield


def exit_status(status: int) -> int:
    """0 for 1, some documents could not be used, where torchrun has started this process: it would stop all the others and report
    a crash. What it was stands on stderr."""
    return 0 if status == 1 and dist.is_initialized() else status


def is_said_by_first(sentence: str) -> bool:
    """Whether the first process ends with the same sentence, so that this one can be silent. Every process that ends with an error
    must call this; the first leaves its sentence in torchrun's store, the others wait a moment for it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    key = f"m0/last words/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    stopped: list[int] = []
    with contextlib.suppress(RuntimeError, ValueError, KeyError):  # no store there: rather twice than never
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=5))
        if os.environ["RANK"] == "0":
            store.set(key, sentence)
            return False
        # torchrun stops the others when one has ended; who has something else to say then says it.
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            if store.check([key]):
                return store.get(key).decode() == sentence
            if stopped:
                break
            time.sleep(0.02)
    return False
