"""Files of records: each record a document with its id and metadata."""

from m0.inputs.records.fields import Fields
from m0.inputs.records.json_text import read_json_lines
from m0.inputs.records.reading import LINE_SUFFIXES, RECORD_SUFFIXES, iterate_records, read_records
from m0.inputs.records.record import Record, UnusableRecords
from m0.inputs.records.shapes import document_of

__all__ = [
    "LINE_SUFFIXES",
    "RECORD_SUFFIXES",
    "Fields",
    "Record",
    "UnusableRecords",
    "document_of",
    "iterate_records",
    "read_json_lines",
    "read_records",
]
