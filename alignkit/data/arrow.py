"""Rows of columnar stores: Parquet, Arrow's files, tables of `datasets`.

A columnar store has one type for all rows, so a structure gets the fields that any row's structure has, with null where
a row had none. Such nulls are left out here, and rows are what they are in JSON Lines; a column of its own may be null.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
Read = Callable[[Any], Any]

BATCH = 1024
"""Rows that are made of a table at once."""
FILE_MAGIC = b"ARROW1"
"""What Arrow's file format begins with; what `save_to_disk` writes is the stream format, which has no such mark."""


@dataclass
class NullFields:
    """Which fields of structures had a value in some row; a structure is named by its path, as `tools[].function`."""

    fields: dict[str, set[str]] = field(default_factory=dict)
    valued: dict[str, set[str]] = field(default_factory=dict)

    def without_value(self) -> list[str]:
        """Return the paths of the fields that were null in every row."""
        return sorted(f"{path}.{name}" for path in self.fields for name in self.fields[path] - self.valued[path])


def rows_of_batches(batches: Iterable["pyarrow.RecordBatch"], nulls: NullFields | None = None) -> Iterator[Row]:
    """Yield the rows of record batches, without the nulls that fill up their structures; note those in `nulls`."""
    for batch in batches:
        readers = {column.name: _reader(column.type, column.name, nulls) for column in batch.schema}
        nested = {name: read for name, read in readers.items() if read}
        for start in range(0, batch.num_rows, BATCH):
            for row in batch.slice(start, BATCH).to_pylist():
                yield {**row, **{name: read(row[name]) for name, read in nested.items()}} if nested else row


def parquet_rows(path: Path, packed: BinaryIO | None, nulls: NullFields | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet file; `packed` gives its content where the file itself is compressed."""
    from pyarrow import parquet

    table = parquet.ParquetFile(_in_memory(packed) if packed else str(path))
    return rows_of_batches(table.iter_batches(batch_size=BATCH), nulls)


def arrow_rows(path: Path, packed: BinaryIO | None, nulls: NullFields | None = None) -> Iterator[Row]:
    """Yield the rows of an Arrow file, in the file or the stream format."""
    from pyarrow import OSFile, ipc

    source = _in_memory(packed) if packed else OSFile(str(path))
    magic = source.read(len(FILE_MAGIC))
    source.seek(0)
    if magic == FILE_MAGIC:
        file = ipc.open_file(source)
        batches = (file.get_batch(place) for place in range(file.num_record_batches))
        yield from rows_of_batches(batches, nulls)
    else:
        yield from rows_of_batches(ipc.open_stream(source), nulls)


def _in_memory(packed: BinaryIO) -> Any:
    from pyarrow import BufferReader

    return BufferReader(packed.read())


def _reader(kind: "pyarrow.DataType", path: str, nulls: NullFields | None) -> Read | None:
    """Return what reads a value of a type; None where the value is read as it is."""
    import pyarrow

    types = pyarrow.types
    if isinstance(kind, pyarrow.JsonType):
        return _json
    if types.is_struct(kind):
        inner = {one.name: _reader(one.type, f"{path}.{one.name}", nulls) for one in kind}
        return _structures(inner, path, nulls)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        read = _reader(kind.value_type, f"{path}[]", nulls)
        return _lists(read) if read else None
    if types.is_map(kind):
        return _maps(_reader(kind.item_type, f"{path}[]", nulls))
    return None


def _json(value: Any) -> Any:
    """Read a value that is stored as JSON: a null in it is its own."""
    return json.loads(value) if isinstance(value, str) else value


def _structures(inner: dict[str, Read | None], path: str, nulls: NullFields | None) -> Read:
    valued = None
    if nulls is not None:
        nulls.fields.setdefault(path, set()).update(inner)
        valued = nulls.valued.setdefault(path, set())

    def read(value: Any) -> Any:
        if value is None:
            return None
        kept = {name: of(one) if (of := inner[name]) else one for name, one in value.items() if one is not None}
        if valued is not None:
            valued.update(kept)
        return kept

    return read


def _lists(of: Read) -> Read:
    return lambda value: value if value is None else [of(one) for one in value]


def _maps(of: Read | None) -> Read:
    """Read a map as a dictionary. Nothing fills it up: its nulls are its own."""
    return lambda value: value if value is None else {name: of(one) if of else one for name, one in value}
