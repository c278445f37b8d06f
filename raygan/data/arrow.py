"""Arrow columns: as one array, and how often each value occurs."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, without a copy if it is one already: `combine_chunks` always copies."""
    if column.num_chunks == 1:
        return column.chunk(0)
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def counts(column: pa.ChunkedArray | pa.Array) -> dict[Any, int]:
    """How often each value occurs that isn't null."""
    found = column.drop_null().value_counts()
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))
