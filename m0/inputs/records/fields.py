"""Which fields of a record hold its text, its picture and its id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from m0.errors import InputError

MAX_NAMED_FIELDS = 8
"""How many names of fields a message gives."""


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold its text, its picture and its id. None: as `document_of` knows the record's shape.

    A name with dots leads into objects and lists within the record: "meta.title", "images.0". A field whose own name has dots is found,
    too. Once the text or the picture is named, nothing else of a record is its content.

    Raises InputError for a name that is empty or no text, and for one field that is to be two things.
    """

    text: str | None = None
    image: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            name = getattr(self, field.name)
            if name is not None and (not isinstance(name, str) or not name):
                raise InputError(f"the {field.name} field is {name!r}, but must be the name of a field.")
        if self.text is not None and self.text == self.image:
            raise InputError(f"the field {self.text!r} cannot be both the text and the picture.")

    def named(self) -> list[str]:
        """Those that are named."""
        return [name for name in (self.text, self.image, self.id) if name is not None]


BY_SHAPE = Fields()
"""Nothing is named: a record's shape says it all."""


def is_absent(value: Any) -> bool:
    """Whether a field holds nothing: null, NaN (as pandas writes null), blank text, an empty object or list, or an object of nulls."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):
        return all(inner is None for inner in value.values())
    return isinstance(value, list | tuple | bytes) and not value


def find(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, by its own name or by a dotted path; None where there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for step in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list | tuple) and step.isascii() and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def without(record: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A record less some of its fields, which may be dotted paths. The record itself stays as it is."""
    rest = dict(record)
    for name in names:
        if name in rest:
            del rest[name]
            continue
        step, dot, inner = name.partition(".")
        if dot and isinstance(held := rest.get(step), Mapping):
            rest[step] = without(held, [inner])
            if not rest[step]:
                del rest[step]
    return rest


def list_names(names: Iterable[Any]) -> str:
    """Names of fields for a message: the first ones, and how many more."""
    found = [str(name) if len(str(name)) <= 40 else f"{str(name)[:37]}..." for name in names]
    more = len(found) - MAX_NAMED_FIELDS
    return ", ".join(found) if more <= 0 else f"{', '.join(found[:MAX_NAMED_FIELDS])} and {more} more"


def kind_of(value: Any) -> str:
    """What kind of value it is, in JSON's words, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}" if len(str(value)) <= 40 else "a number"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else "text" if isinstance(value, str) else type(value).__name__
