"""Records in Parquet: a row each, some rows at a time, whatever the size of the file's row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m0.errors import InputError, MissingExtraError
from m0.inputs.records.fields import Fields
from m0.inputs.records.json_text import NOT_READ, MakeDocument
from m0.inputs.records.record import Record
from m0.inputs.records.tables import check_columns

BATCH_BYTES, MAX_BATCH_ROWS = 8 * 2**20, 1024
"""Rows that are read at once: few where they hold pictures."""
BUFFER_BYTES = 2**20


def read_parquet(path: Path, make: MakeDocument, fields: Fields) -> Iterator[Record]:
    """One record a row, of all columns. Raises InputError, one sentence, where the file is damaged, is of another kind or lacks a column;
    MissingExtraError without pyarrow."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'm0-reranker[records]'.") from None
    try:
        # Without the buffer a whole column of a row group, which may be the whole file, would be held.
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {_one_line(error)}.") from None
    with file:
        columns = file.schema_arrow
        structs = [column for column in columns if arrow.types.is_struct(column.type)]
        known = any({field.name for field in column.type} == {"bytes", "path"} for column in structs)
        check_columns(columns.names, fields, str(path), known=known)
        number = 0
        try:
            for batch in _batches(file):
                for row in _rows(batch):
                    number += 1
                    try:
                        yield Record(number, "row", make(row))
                    except InputError as error:
                        yield Record(number, "row", error)
        except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
            yield Record(number + 1, "row", InputError(f"the file is damaged: {_one_line(error)}{NOT_READ}"))


def _batches(file: Any) -> Iterator[Any]:
    """Some rows at a time, none of two row groups, so that a damaged one takes no row of another with it."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        row_bytes = group.total_byte_size / max(group.num_rows, 1)
        rows = max(1, min(MAX_BATCH_ROWS, int(BATCH_BYTES / max(row_bytes, 1.0))))
        yield from file.iter_batches(rows, row_groups=[number], use_threads=False)


def _rows(batch: Any) -> list[dict[str, Any]]:
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):
        columns = [_values(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    """Times that are finer than Python's microseconds, or further away than its years, as text."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return list(column.cast("string").to_pylist())


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
