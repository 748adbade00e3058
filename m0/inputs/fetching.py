"""What an http or https address answers: redirects followed, proxies used, answers read, all within a policy's limits."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import sys
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message

from m0.errors import M0Error
from m0.inputs.connections import ELSEWHERE, Budget, CutShort, Rules, Stream, TimeIsUp, Told, TooLarge, dial
from m0.inputs.hosts import SAFE, Target, shown

PIECE = 2**18
REDIRECTS = (301, 302, 303, 307, 308)


def fetch(url: str, rules: Rules, accept: str, error: type[M0Error]) -> tuple[bytes, str]:
    """The body of an answer, unpacked if it is gzip, and its type such as "text/html; charset=utf-8".

    Args:
        url: begins with http:// or https://.
        rules: which hosts and addresses may be asked, and the limits.
        accept: what kinds are asked for, as the header Accept has them.
        error: the class of what is raised, one sentence, without the user's name and password of `url`.
    """
    name = shown(url)
    budget = Budget(time.monotonic() + rules.seconds, 2 * rules.max_bytes + 2**20)
    try:
        return _follow(url, rules, budget, accept)
    except Told as told:
        raise error(f"{name} {told}") from None
    except TimeIsUp:
        raise error(f"{name} took longer than {rules.seconds:g} second{'' if rules.seconds == 1 else 's'}.") from None
    except TooLarge:
        size = f"{rules.max_bytes} bytes" if rules.max_bytes % 2**20 else f"{rules.max_bytes // 2**20} MiB"
        raise error(f"{name} is larger than {size}.") from None
    except (OSError, ValueError, EOFError) as problem:  # timeouts are OSErrors
        raise error(f"{name} did not answer: {_plain(problem)}.") from None
    except CutShort as problem:
        raise error(f"{name}: the answer was cut short{problem}.") from None
    except http.client.IncompleteRead:  # of an answer in chunks
        raise error(f"{name}: the answer was cut short.") from None
    except Exception as problem:  # http.client raises its own family on malformed answers
        raise error(f"{name} did not answer as a web server should: {_plain(problem)}.") from None


def _follow(url: str, rules: Rules, budget: Budget, accept: str) -> tuple[bytes, str]:
    target = first = Target.of(url)
    for hop in range(rules.redirects + 1):
        if not rules.allows_host(target.host, target.port):
            raise Told(ELSEWHERE if hop else "is not fetched: the policy does not allow its host.")
        # Another host must not learn what was meant for the first.
        credentials = first.credentials if target.origin == first.origin else None
        with _asked(target, credentials, rules, budget, accept, hop > 0) as response:
            if 200 <= response.status < 300:
                return _body(response, rules.max_bytes), _kind(response.headers)
            place = response.headers.get("Location")
            if response.status not in REDIRECTS or not place:
                raise Told(f"answered {response.status} {_plain(response.reason)}".rstrip() + ".")
        target = _redirected(target, place)
    raise Told(f"is redirected more than {rules.redirects} time{'' if rules.redirects == 1 else 's'}.")


def _redirected(target: Target, place: str) -> Target:
    try:
        # http.client reads heads as Latin-1, whatever was meant.
        meant = urllib.parse.quote(place.strip(), safe=SAFE, encoding="iso-8859-1")
        joined = urllib.parse.urljoin(target.url, meant)
        if urllib.parse.urlsplit(joined).scheme not in ("http", "https"):
            raise Told("is redirected to an address that is neither http nor https.")
        return Target.of(joined)
    except ValueError:
        raise Told("is redirected to what is not an address.") from None


@contextmanager
def _asked(
    target: Target, credentials: str | None, rules: Rules, budget: Budget, accept: str, redirected: bool
) -> Iterator[http.client.HTTPResponse]:
    """The answer of a host, its body not read yet."""
    # Which addresses a proxy connects to, nobody here can see.
    proxy = None if rules.checks_addresses else _proxy(target)
    sock = dial(proxy or target, rules, budget, redirected)
    headers = {"Host": target.netloc, "User-Agent": "m0", "Accept": accept, "Connection": "close"}
    if credentials is not None:
        headers["Authorization"] = _basic(credentials)
    path = target.path
    try:
        if proxy and target.scheme == "https":
            _open_tunnel(sock, target, proxy, budget)
        elif proxy:
            path = target.url
            if proxy.credentials is not None:
                headers["Proxy-Authorization"] = _basic(proxy.credentials)
        if target.scheme == "https":
            import ssl  # here, as some builds of Python lack it

            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            with budget.step(sock):
                sock = context.wrap_socket(sock, server_hostname=target.host)
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = Stream(sock, budget)
        connection.request("GET", path, headers=headers)
        yield connection.getresponse()
    finally:
        sock.close()


# --- proxies ------------------------------------------------------------------------------------------------------------


def _proxy(target: Target) -> Target | None:
    """The one that the environment names for an address, as urllib understands it."""
    named = urllib.request.getproxies().get(target.scheme)
    if not named or urllib.request.proxy_bypass(target.netloc):
        return None
    scheme, mark, _ = named.partition("://")
    if mark and scheme.lower() != "http":
        raise ValueError("the proxy that the environment names is not an http:// one")
    try:
        return Target.of(named if mark else f"http://{named}")
    except ValueError:
        raise ValueError("the proxy that the environment names has no address that could be used") from None


def _open_tunnel(sock: socket.socket, target: Target, proxy: Target, budget: Budget) -> None:
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"Host: {host}:{target.port}"]
    if proxy.credentials is not None:
        lines.append(f"Proxy-Authorization: {_basic(proxy.credentials)}")
    stream = Stream(sock, budget)
    stream.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    response = http.client.HTTPResponse(stream, method="CONNECT")  # type: ignore[arg-type]
    response.begin()
    if response.status != 200:
        raise OSError(f"Tunnel connection failed: {response.status} {_plain(response.reason)}")


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode("utf-8", "surrogateescape")).decode("ascii")


# --- answers ------------------------------------------------------------------------------------------------------------


def _body(response: http.client.HTTPResponse, most: int) -> bytes:
    stated = _stated_length(response.headers)
    if stated > most:
        raise TooLarge
    pieces: list[bytes] = []
    size = 0
    while piece := response.read(min(PIECE, most + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise TooLarge
    data = b"".join(pieces)
    if len(data) < stated:  # which read() with a size takes for the end
        raise CutShort(f" after {len(data)} of {stated} bytes")
    packed = (response.headers.get("Content-Encoding") or "").strip().lower() in ("gzip", "x-gzip")
    return _unpacked(data, most) if packed and data[:2] == b"\x1f\x8b" else data


def _unpacked(data: bytes, most: int) -> bytes:
    """Some servers pack their answers though nobody asked for it."""
    unpack = zlib.decompressobj(wbits=31)
    try:
        content = unpack.decompress(data, min(most + 1, sys.maxsize))
    except zlib.error:
        raise ValueError("its gzip is damaged") from None
    if len(content) > most:
        raise TooLarge
    if not unpack.eof:
        raise CutShort
    return content


def _stated_length(headers: Message) -> int:
    """Bytes that an answer is to have by its head; 0 where that does not say, or says it of a form that is not the one sent."""
    length = (headers.get("Content-Length") or "").strip()
    other = headers.get("Transfer-Encoding") or (headers.get("Content-Encoding") or "identity").strip().lower() != "identity"
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) and not other else 0


def _kind(headers: Message) -> str:
    charset = headers.get_content_charset()
    return headers.get_content_type() + (f"; charset={charset}" if charset else "")


def _plain(text: object) -> str:
    """What a server or the system says, for a sentence: one short line without what a terminal would obey."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split()).rstrip(".")
    if isinstance(text, Exception) and not words:
        return type(text).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."
