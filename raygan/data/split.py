"""The split: which photos are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raygan.data.shards import Split


def split(hashes: Sequence[str], pairs: np.ndarray, validation: float) -> list[Split]:
    """Each photo's split, from its content hash: adding or renaming files moves no other photo.

    Args:
        hashes: of the kept photos, in hex.
        pairs: near-duplicates that are both kept (none if that filter is on). Connected photos go where the smallest
            of their hashes goes.
        validation: share of photos to hold out, 0 to 1.
    """
    count = len(hashes)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(links, directed=False)
    leader: dict[int, str] = {}
    for index, value in enumerate(hashes):
        number = int(group[index])
        leader[number] = min(value, leader.get(number, value))
    threshold = validation * 2**32
    return ["validation" if int(leader[int(g)][:8], 16) < threshold else "train" for g in group]
