"""Connections with limits: a total time, which DNS, TLS and every byte share, and a number of bytes.

A host's name is looked up once, and one of the addresses that the lookup gave and that the rules allow is connected to: nobody can
answer the check with one address and the connection with another (DNS rebinding).
"""

from __future__ import annotations

import io
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from m0.inputs.hosts import Target, parse_address

STALL_SECONDS = 20.0
"""How long a server may say nothing."""
NO_ADDRESS = "cannot be fetched: its host has no address, or none that is public."
ELSEWHERE = "is redirected to a host that the policy does not allow."


class Rules(Protocol):
    """What `fetch` asks a policy."""

    @property
    def redirects(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def checks_addresses(self) -> bool: ...
    def allows_host(self, host: str, port: int) -> bool: ...
    def allows_address(self, host: str, port: int, address: str) -> bool: ...


class Told(Exception):
    """The end of a sentence that begins with the address."""


class TimeIsUp(Exception):
    """The total time is over."""


class TooLarge(Exception):
    """There are more bytes than may be."""


class CutShort(Exception):
    """There are fewer bytes than the answer's head says, or than its packing needs."""


@dataclass
class Budget:
    """What is left of one fetch, over all its redirects."""

    until: float
    bytes: int
    """From the network, heads and chunks' sizes among them, so that they cannot go on without end."""

    @contextmanager
    def step(self, sock: socket.socket) -> Iterator[None]:
        """What a connection does inside takes no more time than is left, nor more than a server may say nothing."""
        left = self.left()
        sock.settimeout(min(STALL_SECONDS, left))
        try:
            yield
        except TimeoutError:
            if left <= STALL_SECONDS:
                raise TimeIsUp from None
            raise

    def left(self) -> float:
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise TimeIsUp
        return seconds

    def count(self, received: int) -> None:
        self.bytes -= received
        if self.bytes < 0:
            raise TooLarge


def dial(target: Target, rules: Rules, budget: Budget, redirected: bool) -> socket.socket:
    """Connected to one of a host's addresses that are allowed."""
    host, port = target.host, target.port
    problem: OSError | None = None
    try:
        found = _look_up(host, port, budget)
    except OSError as error:
        if not rules.checks_addresses:
            raise
        found, problem = [], error
    if rules.checks_addresses:
        found = [place for place in found if rules.allows_address(host, port, str(place[4][0]))]
        if not found:  # the same words for an unknown name as for one of the network inside, which could be found out else
            raise Told(ELSEWHERE if redirected else NO_ADDRESS)
    for family, kind, protocol, _, place in found:
        with ExitStack() as opened:
            try:
                sock = opened.enter_context(socket.socket(family, kind, protocol))
                with budget.step(sock):
                    sock.connect(place)
            except OSError as error:
                problem = error
            else:
                opened.pop_all()
                return sock
    raise problem or OSError("its host has no address")


def _look_up(host: str, port: int, budget: Budget) -> list[Any]:
    """What socket.getaddrinfo gives. It knows no limit of time, so that a name is looked up beside, and left alone when time is up."""
    if parse_address(host) is not None:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=budget.left())
    except queue.Empty:
        raise TimeIsUp from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class Stream:
    """A socket as http.client uses one. Every step has its limit of time, and what comes in is counted."""

    def __init__(self, sock: socket.socket, budget: Budget) -> None:
        self.sock, self.budget = sock, budget

    def sendall(self, data: bytes) -> None:
        with self.budget.step(self.sock):
            self.sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self.sock, self.budget))

    def close(self) -> None:
        """Whoever has connected closes."""


class _Incoming(io.RawIOBase):
    def __init__(self, sock: socket.socket, budget: Budget) -> None:
        self.sock, self.budget = sock, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self.budget.step(self.sock):
            received = self.sock.recv_into(buffer)
        self.budget.count(received)
        return received
