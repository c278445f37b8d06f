"""The split: which photos are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def held_out(hashes: Sequence[str] | pa.Array, pairs: np.ndarray, validation: float) -> np.ndarray:
    """Whether each photo is held out, from its content hash: adding or renaming files moves no other photo.

    Args:
        hashes: of the kept photos, in hex, at least 8 digits each.
        pairs: near-duplicates that are both kept (none if that filter is on). Connected photos go where the smallest
            of their hashes goes.
        validation: share of photos to hold out, 0 to 1.

    Returns:
        bool (n,).
    """
    count = len(hashes)
    digits = pc.utf8_slice_codeunits(pa.array(hashes, pa.string()), 0, 8).cast(pa.binary(8))
    text = bytes(memoryview(digits.buffers()[1])[: 8 * count]) if count else b""
    values = np.frombuffer(bytes.fromhex(text.decode("ascii")), ">u4")
    if len(pairs):
        links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
        _, group = connected_components(links, directed=False)
        smallest = np.full(group.max() + 1, 2**32, np.int64)
        np.minimum.at(smallest, group, values)
        values = smallest[group]
    held: np.ndarray = values < validation * 2**32
    return held
