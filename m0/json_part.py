"""A model's JSON files, read key by key: what is absent takes a default, and an error names the key and the part it is in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m0.errors import M0Error


def read_object(path: Path, error: type[M0Error]) -> dict[str, Any]:
    """The JSON object in a file. Raises `error`, one sentence that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows begins files with a byte order mark
    except FileNotFoundError:
        raise error(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{path} is not a readable JSON file: {' '.join(str(reason).split())}.") from None
    if not isinstance(values, dict):
        raise error(f"{path} holds a JSON {type(values).__name__}, not an object.")
    return values


@dataclass(frozen=True)
class JsonPart:
    """One JSON object of a file."""

    values: Mapping[str, Any]
    error: type[M0Error]
    """What is raised where a value cannot be used."""
    name: str = ""
    """What stands before a key in a message, such as "vision_config."."""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is in the file, and the default where the key is absent. A null is a value."""
        return self.values[key] if key in self.values else self.defaults.get(key, default)

    def integer(self, key: str, lowest: int = 1, highest: int = 2**31) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{self.name}{key} is {format_value(value)}, but must be a whole number.")
        if value < lowest:
            raise self.error(f"{self.name}{key} is {value}, but must be {f'at least {lowest}' if lowest < 1 else 'above 0'}.")
        if value > highest:
            raise self.error(f"{self.name}{key} is {format_value(value)}, but may be {highest} at most.")
        return value

    def number(self, key: str, positive: bool = False) -> float:
        value = self.get(key)
        # The comparison is false for NaN, too.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise self.error(f"{self.name}{key} is {format_value(value)}, but must be a number.")
        if positive and value <= 0:
            raise self.error(f"{self.name}{key} is {value}, but must be above 0.")
        return float(value)

    def inner(self, key: str, defaults: Mapping[str, Any] | None = None) -> JsonPart:
        """The object under a key; an empty one where the key is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(f"{self.name}{key} is {format_value(value)}, but must be a JSON object.")
        return JsonPart(value or {}, self.error, f"{self.name}{key}.", defaults or {})


def format_value(value: Any) -> str:
    """A value of the file as a message shows it: short, and null, true and false as JSON says them."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else f"{text[:60]}..."
