"""Format results as JSON for programs."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any


def format_json(value: Any) -> str:
    """JSON that standard output can write: file names need not be text, and terminals need not know all letters."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_plain)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2, default=_plain)
    return text


def _plain(value: Any) -> Any:
    """Metadata may hold what JSON does not know: bytes as base64, other things, such as dates, as Python writes them."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
