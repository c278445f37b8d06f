"""The stream of batches: each photo once per epoch, the same for any number of ranks."""

import numpy as np
import pytest
import torch

from raygan.data.batches import SHARDS_MIXED, BatchStream, epoch_order
from raygan.models.distributed import Share

ROWS = [5, 0, 7, 3]


def read(shard):
    """Pixels and classes that identify their photo: 16 * shard + row."""
    values = 16 * shard + np.arange(ROWS[shard], dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (ROWS[shard], 3, 2, 2)), values.astype(np.int64)


def stream(batch_size=4, seed=1, share=None):
    return BatchStream(ROWS, read, batch_size, seed, share or Share())


def test_an_epoch_is_a_permutation_and_epochs_differ():
    orders = [epoch_order(ROWS, 1, epoch) for epoch in range(3)]
    every = sorted((shard, row) for shard, count in enumerate(ROWS) for row in range(count))
    for order in orders:
        assert sorted(map(tuple, order.tolist())) == every
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], epoch_order(ROWS, 2, 0))


def test_photos_are_mixed_within_a_group_of_shards_only():
    """The group bounds memory: photos of at most SHARDS_MIXED shards may mix."""
    order = epoch_order([2] * (3 * SHARDS_MIXED), 0, 0)
    for group in range(3):
        part = order[group * 2 * SHARDS_MIXED : (group + 1) * 2 * SHARDS_MIXED]
        assert len(np.unique(part[:, 0])) == SHARDS_MIXED


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_the_batch_of_a_single_process(world):
    for batch in range(9):
        parts = [stream(share=Share(rank, world)).fetch(batch) for rank in range(world)]
        for part, whole in zip(zip(*parts, strict=True), stream().fetch(batch), strict=True):
            assert torch.equal(torch.cat(part), whole)


def test_classes_stay_with_their_photos():
    pixels, classes = stream().fetch(1)
    assert torch.equal(pixels[:, 0, 0, 0].long(), classes)


def test_a_stream_started_late_continues_like_the_whole_one():
    whole, late = stream().starting_at(0), stream().starting_at(5)
    batches = [next(whole) for _ in range(10)]
    for batch in batches[5:]:
        assert torch.equal(next(late)[1], batch[1])


def test_no_photo_occurs_twice_in_an_epoch():
    one = stream()
    assert one.batches_per_epoch == 3
    seen = torch.cat([one.fetch(k)[1] for k in range(3)]).tolist()
    assert len(set(seen)) == 12
