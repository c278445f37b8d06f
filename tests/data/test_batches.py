"""The stream of batches: each photo once per epoch, the same for any number of ranks."""

import itertools

import numpy as np
import pytest
import torch

from raygan.data.batches import BatchStream, EpochOrder
from raygan.data.photos import SHARDS_MIXED, InMemory, Photos
from raygan.models.distributed import Share

ROWS = [5, 0, 7, 3]

#: Shards of different sizes, in groups of three: batches lie across groups.
MANY = [5, 0, 7, 3, 4, 6, 1, 8, 2, 5]


class Counting(InMemory):
    """Blocks that remember which of them were asked for."""

    asked: list[list[int]]

    def fetch(self, numbers):
        self.asked.append(list(numbers))
        return super().fetch(numbers)


def photos(rows=ROWS, mixed=SHARDS_MIXED):
    """Pixels and classes that identify their photo: 16 * shard + row."""
    values = [(16 * shard + np.arange(count)).astype(np.uint8) for shard, count in enumerate(rows)]
    blocks = [(np.broadcast_to(v[:, None, None, None], (len(v), 2, 2, 3)), v.astype(np.int64)) for v in values]
    source = Counting(tuple(blocks))
    object.__setattr__(source, "asked", [])
    return Photos(tuple(rows), source, mixed)


def stream(batch_size=4, seed=1, share=None, of=None):
    return BatchStream(of or photos(), batch_size, seed, share or Share())


def order(rows, seed, epoch, mixed=SHARDS_MIXED):
    """Shards and rows of a whole epoch."""
    return EpochOrder(np.array(rows), seed, epoch, mixed).slice(0, sum(rows))[1]


def order_of_one_group(rows, seed, epoch):
    """The order of the first versions, whose trainings are resumed: shards, then photos, by one generator."""
    random = np.random.default_rng([seed, epoch])
    shards = random.permutation(len(rows))
    return random.permutation(
        np.concatenate([[(shard, row) for row in range(rows[shard])] for shard in shards if rows[shard]])
    )


def test_an_epoch_is_a_permutation_and_epochs_differ():
    orders = [order(ROWS, 1, epoch) for epoch in range(3)]
    every = sorted((shard, row) for shard, count in enumerate(ROWS) for row in range(count))
    for each in orders:
        assert sorted(map(tuple, each.tolist())) == every
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], order(ROWS, 2, 0))


@pytest.mark.parametrize("epoch", [0, 3])
def test_data_of_one_group_has_the_order_it_always_had(epoch):
    assert np.array_equal(order(MANY, 5, epoch), order_of_one_group(MANY, 5, epoch))


def test_photos_are_mixed_within_a_group_of_shards_only():
    """The group bounds memory: photos of at most SHARDS_MIXED shards may mix."""
    whole = EpochOrder(np.array([2] * (3 * SHARDS_MIXED)), 0, 0, SHARDS_MIXED)
    for group in range(3):
        numbers, part = whole.slice(group * 2 * SHARDS_MIXED, (group + 1) * 2 * SHARDS_MIXED)
        assert numbers == [group]
        assert len(np.unique(part[:, 0])) == SHARDS_MIXED


def test_a_group_is_ordered_without_the_groups_before_it():
    """Resuming in the middle of an epoch of millions is a seek."""
    one, other = (EpochOrder(np.array(MANY), 3, 1, 3) for _ in range(2))
    for start in range(0, 40, 5):
        one.slice(start, start + 5)
    assert np.array_equal(one.slice(30, 40)[1], other.slice(30, 40)[1])


@pytest.mark.parametrize("rows", [ROWS, MANY])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_together_see_the_batch_of_a_single_process(world, rows):
    given = photos(rows, mixed=3)
    whole, ranks = stream(of=given), [stream(of=given, share=Share(rank, world)) for rank in range(world)]
    for batch in range(3 * whole.batches_per_epoch):
        parts = [one.fetch(batch) for one in ranks]
        for part, wanted in zip(zip(*parts, strict=True), whole.fetch(batch), strict=True):
            assert torch.equal(torch.cat(part), wanted)


def test_a_resized_training_goes_on_in_the_same_order():
    given = photos(MANY, mixed=3)
    whole = [stream(of=given).fetch(batch)[1] for batch in range(12)]
    for world, batches in ((3, range(5)), (1, range(5, 8)), (2, range(8, 12))):
        ranks = [stream(of=given, share=Share(rank, world)) for rank in range(world)]
        for batch in batches:
            assert torch.equal(torch.cat([one.fetch(batch)[1] for one in ranks]), whole[batch])


def test_a_rank_reads_only_some_shards_of_a_group():
    """What travels between nodes falls with their number."""
    asked = []
    for rank in range(4):
        given = photos([8] * 32, mixed=16)
        one = stream(32, of=given, share=Share(rank, 4))
        for batch in range(one.batches_per_epoch):
            one.fetch(batch)
        asked.append(len(list(itertools.chain(*given.source.asked[:2]))))
    assert max(asked) < 20  # of 32
    assert sum(asked) < 2 * 32


def test_what_is_read_at_a_time_is_two_groups():
    given = photos(MANY, mixed=3)
    one = stream(of=given)
    for batch in range(one.batches_per_epoch):
        one.fetch(batch)
    assert all(len(numbers) <= 3 for numbers in given.source.asked)


def test_classes_stay_with_their_photos():
    pixels, classes = stream().fetch(1)
    assert torch.equal(pixels[:, 0, 0, 0].long(), classes)


def test_a_stream_started_late_continues_like_the_whole_one():
    whole, late = stream().starting_at(0), stream().starting_at(5)
    batches = [next(whole) for _ in range(10)]
    for batch in batches[5:]:
        assert torch.equal(next(late)[1], batch[1])


@pytest.mark.parametrize("rows", [ROWS, MANY])
def test_no_photo_occurs_twice_in_an_epoch(rows):
    one = stream(of=photos(rows, mixed=3))
    seen = torch.cat([one.fetch(k)[1] for k in range(one.batches_per_epoch)]).tolist()
    assert len(set(seen)) == 4 * (sum(rows) // 4)
