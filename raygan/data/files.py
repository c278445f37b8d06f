"""Files of an input as columns of Arrow: there may be millions, and an object for each would fill the memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

#: Columns of files, as `File` has them.
FILES = pa.schema([("path", pa.binary()), ("size", pa.int64()), ("changed", pa.int64()), ("regular", pa.bool_())])

#: Files that are Python objects at a time.
_AT_ONCE = 1 << 12


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source.

    Attributes:
        path: relative to the root, surrogate-escaped where it isn't UTF-8.
        size: in bytes.
        changed: modification time, in ns; of a file in an archive, see `archives.Member`; 0 if unknown.
        regular: it can be read; false for devices, links that lead nowhere new, and the like.
    """

    path: str
    size: int
    changed: int
    regular: bool


class Paths(Sequence[str]):
    """Paths of files in an Arrow column: decoded when they are asked for.

    Args:
        column: the paths' bytes.
    """

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("iterate over the paths")
        return os.fsdecode(self._column[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self._column), _AT_ONCE):
            yield from map(os.fsdecode, self._column.slice(start, _AT_ONCE).to_pylist())


def table_of(found: Iterable[File]) -> pa.Table:
    """Files as a table of `FILES`: each is an object for a moment only."""
    remaining = iter(found)
    parts = []
    while part := list(itertools.islice(remaining, _AT_ONCE)):
        columns = {"path": [os.fsencode(file.path) for file in part]}
        columns |= {name: [getattr(file, name) for file in part] for name in FILES.names[1:]}
        parts.append(pa.table(columns, schema=FILES))
    return pa.concat_tables(parts).combine_chunks() if parts else FILES.empty_table()
