"""Which photos are held out."""

import numpy as np
import pytest

from raygan.data.split import held_out


def test_the_split_follows_content_and_never_divides_a_group():
    random = np.random.default_rng(3)
    hashes = [random.bytes(32).hex() for _ in range(4000)]
    pairs = np.array([(i, i + 1) for i in range(0, 400, 3)])
    held = held_out(hashes, pairs, 0.1)
    assert held.mean() == pytest.approx(0.1, abs=0.02)
    assert all(held[one] == held[other] for one, other in pairs)
    alone = held_out(hashes[1000:], np.empty((0, 2), int), 0.1)
    assert np.array_equal(alone, held[1000:])
    assert np.array_equal(alone, [int(value[:8], 16) < 0.1 * 2**32 for value in hashes[1000:]])
