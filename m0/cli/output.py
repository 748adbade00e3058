"""Format results as JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any


def format_json(value: Any) -> str:
    """JSON that standard output can write: file names need not be text, and terminals need not know all letters."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text
