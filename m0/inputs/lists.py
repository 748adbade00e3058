"""What a user gives as many: documents or pairs in a list, a Series, an array, a generator, or anything else that has an order."""

from __future__ import annotations

from collections import UserString
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from os import PathLike
from typing import Any

import numpy as np

from m0.errors import InputError
from m0.inputs.texts import is_open_file

TextLike = str | bytes | bytearray | memoryview | UserString


def to_list(values: Any, name: str = "documents") -> list[Any]:
    """Everything that an iterable gives, in order and once: an iterator is used up, a Series is read by place and not by label.

    Args:
        values: a list, tuple, Series, array of text or objects, generator, `dict.values()`, dataset, ...
        name: what to call it in messages.

    Raises InputError for what is one thing and not many, or does not say what its items are: text, a file, a mapping, a table, an array of
    numbers.
    """
    kind = f"{name} is {type(values).__name__}"
    if isinstance(values, TextLike | PathLike) or is_open_file(values):
        raise InputError(f"{kind}, but must be a list or another iterable; a single one is given as a list of one.")
    if isinstance(values, Mapping):
        raise InputError(
            f"{kind}, but must be a list or another iterable, such as the mapping's values(); a single one is given as a list of one."
        )
    if hasattr(values, "columns") and not isinstance(values, Sequence):  # iterating over a table gives its columns' names
        columns = (
            'two columns of that table: zip(table["..."], table["..."])' if name == "pairs" else "one column of that table"
        )
        raise InputError(f"{kind}, but must be a list or another iterable, such as {columns}.")
    if isinstance(values, np.ndarray):
        return _list_of_array(values, name)
    if callable(as_python := getattr(values, "to_pylist", None)):  # Arrow's arrays give scalars of their own
        return list(as_python())
    if hasattr(type(values), "__iter__"):
        return list(values)
    if hasattr(type(values), "__getitem__") and hasattr(type(values), "__len__"):  # a dataset, which need not end by itself
        return [values[place] for place in range(len(values))]
    raise InputError(f"{kind}, but must be a list or another iterable.")


def _list_of_array(values: np.ndarray[Any, Any], name: str) -> list[Any]:
    if _holds_numbers(values):
        raise InputError(
            f"{name} is an array of {values.dtype} of shape {values.shape}, which may be one picture or many; give a list of arrays, "
            "one for each picture."
        )
    if not values.ndim or (values.ndim > 1 and name != "pairs"):
        raise InputError(f"{name} is an array of shape {values.shape}, but must have one dimension.")
    return list(values)


def _holds_numbers(values: np.ndarray[Any, Any]) -> bool:
    return values.dtype.kind in "biufc"


def is_collection(value: Any) -> bool:
    """Whether it holds several things: a pair among pairs, not the query of a single pair."""
    if isinstance(value, np.ndarray):
        return not _holds_numbers(value)
    return isinstance(value, Iterable) and not isinstance(value, TextLike | Mapping) and not is_open_file(value)


def to_pairs(pairs: Any) -> list[tuple[Any, Any]]:
    """(query, document) pairs from any iterable of iterables of two. Raises InputError."""
    if isinstance(pairs, Mapping):
        raise InputError(
            f"pairs is {type(pairs).__name__}, but must be a list of (query, document) pairs, such as its items()."
        )
    found = to_list(pairs, "pairs")
    if not found:
        raise InputError("the list of pairs is empty.")
    return [_pair(pair, number) for number, pair in enumerate(found)]


def _pair(pair: Any, number: int) -> tuple[Any, Any]:
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair[0], pair[1]
    refused = InputError(f"pair {number} is {type(pair).__name__}, but must be (query, document).")
    # A set has no order to tell query from document.
    if not isinstance(pair, Iterable) or isinstance(pair, TextLike | Mapping | AbstractSet):
        raise refused
    try:
        query, document = to_list(pair, f"pair {number}")
    except InputError:
        raise refused from None
    except ValueError:  # more or fewer than two
        raise refused from None
    return query, document
