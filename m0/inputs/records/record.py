"""One record of a file: where it stands, and the document that it is or why it is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from m0.errors import InputError
from m0.inputs.document import Document


class Record(NamedTuple):
    """One record of a file."""

    number: int
    """From 1: of its first line in JSON lines, CSV and TSV, of its row in parquet, and of the record in a JSON array."""
    unit: str
    """What `number` counts: "line", "row" or "record"."""
    document: Document | InputError
    """Or why it is none."""


@dataclass
class UnusableRecords:
    """The records of a file that are no documents: the first one, and how many there are. As text one sentence."""

    file: str
    total: int = 0
    """All records, the good ones too. Where a file cannot be read to its end, as far as it could."""
    count: int = 0
    first: Record | None = None

    def add(self, record: Record) -> None:
        """Count a record, whether it is a document or not."""
        self.total += 1
        if isinstance(record.document, InputError):
            self.count += 1
            self.first = self.first or record

    def __str__(self) -> str:
        if self.first is None:
            return f"{self.file}: all of its {self.total:,} records can be used."
        many = f"{self.count:,} of its {self.total:,} records cannot be used"
        if self.count == self.total:
            many = f"none of its {self.total:,} records can be used" if self.total > 1 else "it is the only record"
        return f"{self.file}, {self.first.unit} {self.first.number}: {str(self.first.document).rstrip('.')}; {many}."
