"""Which photos are held out."""

import numpy as np
import pytest

from raygan.data.split import split


def test_the_split_follows_content_and_never_divides_a_group():
    random = np.random.default_rng(3)
    hashes = [random.bytes(32).hex() for _ in range(4000)]
    pairs = np.array([(i, i + 1) for i in range(0, 400, 3)])
    splits = split(hashes, pairs, 0.1)
    assert splits.count("validation") / len(splits) == pytest.approx(0.1, abs=0.02)
    assert all(splits[one] == splits[other] for one, other in pairs)
    alone = split(hashes[1000:], np.empty((0, 2), int), 0.1)
    assert alone == splits[1000:]
