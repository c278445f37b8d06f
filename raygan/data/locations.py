"""Where photos are: the chunks of a work folder, found by their photos' keys."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan.data import chunks
from raygan.runtime import storage

#: Chunks whose keys are read at a time.
_READ_AT_ONCE = 16


class Locations:
    """The chunk and the row of each photo of a listing.

    Attributes:
        folder: address of the work folder.
        keys: uint64 (n,), see `raygan.data.chunks`.
        names: of the chunks with any of the photos.
        chunk: int32 (n,), each photo's place among the names; -1 if no chunk has it.
        row: int32 (n,), its row there.
    """

    def __init__(self, folder: str, keys: np.ndarray, sources: pa.ChunkedArray):
        """Know no chunk yet.

        Args:
            folder: address of the work folder.
            keys: of the listing's photos.
            sources: the listing's column, since chunks of earlier runs number the inputs otherwise.
        """
        self.folder, self.keys, self._sources = folder, keys, sources
        self.names: list[str] = []
        self.chunk, self.row = np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)

    def find(self, names: Sequence[str]) -> None:
        """Find the photos in existing chunks, and only there."""
        self.names.clear()
        self.chunk[:] = -1
        order = np.argsort(self.keys)
        keys = self.keys[order]
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            found = pool.map(lambda name: chunks.read_keys(storage.join(self.folder, name)), names)
            for name, theirs in zip(names, found, strict=True):
                places = np.minimum(np.searchsorted(keys, theirs), len(keys) - 1)
                rows = np.flatnonzero(keys[places] == theirs)
                self.locate(order[places[rows]], name, rows)

    def locate(self, photos: np.ndarray, name: str, rows: np.ndarray | None = None) -> None:
        """Note that photos are in a chunk: in its rows of the same order, or in the given ones."""
        if len(photos):
            self.chunk[photos], self.row[photos] = len(self.names), np.arange(len(photos)) if rows is None else rows
            self.names.append(name)

    def records(self) -> pa.Table:
        """The records of all photos, in the listing's order."""
        tables = [chunks.read_records([storage.join(self.folder, name)]) for name in self.names]
        starts = np.cumsum([0, *(table.num_rows for table in tables)])
        rows = starts[self.chunk] + self.row
        found = pa.concat_tables(tables) if tables else chunks.RECORD.empty_table()
        in_order = len(rows) == found.num_rows and (rows == np.arange(len(rows))).all()
        records = found if in_order else found.take(pa.array(rows))
        return records.set_column(records.schema.get_field_index("source"), "source", self._sources)

    def pixels(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        """Pixels (S, S, 3), by index, of those of the given photos that were decoded; holds one chunk at a time."""
        found: dict[int, np.ndarray] = {}
        for address, rows, numbers in self.places(indices):
            decoded = pc.not_equal(chunks.read_records([address])["hash"], "").to_numpy()[rows]
            found.update(zip(numbers[decoded].tolist(), chunks.read_pixels(address, rows[decoded]), strict=True))
        return found

    def places(self, indices: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Where the given photos are: for each chunk with any, its address, their rows in it, and their indices."""
        ordered = indices[np.argsort(self.chunk[indices], kind="stable")]
        edges = np.flatnonzero(np.diff(self.chunk[ordered])) + 1
        parts = np.split(ordered, edges) if len(ordered) else []
        return [(storage.join(self.folder, self.names[self.chunk[part[0]]]), self.row[part], part) for part in parts]
