"""Where a judge has room: on every placement of the workers."""

import itertools

import pytest

from raygan.training.monitor import cores_beside


@pytest.mark.parametrize(
    ("nodes", "workers", "each", "cores"),
    [
        ([2], 1, 1, 1),  # a laptop whose worker leaves one of two cores
        ([2], 1, 2, 0),
        ([8], 2, 1, 4),  # half of the node at most
        ([4, 4], 2, 3, 1),  # one worker fits each node
        ([4, 4], 4, 2, 0),
        ([0, 8], 1, 2, 4),  # a head without cores
        ([], 1, 1, 0),
    ],
)
def test_cores_of_a_judge(nodes, workers, each, cores):
    assert cores_beside(nodes, workers, each) == cores


@pytest.mark.parametrize("nodes", [[4, 4], [2, 6], [8, 1, 3]])
@pytest.mark.parametrize(("workers", "each"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_it_fits_beside_every_placement(nodes, workers, each):
    """All ways to put the workers on the nodes, tried one by one."""
    cores = cores_beside(nodes, workers, each)
    for places in itertools.product(range(len(nodes)), repeat=workers):
        left = [size - each * places.count(number) for number, size in enumerate(nodes)]
        if min(left) >= 0:
            assert max(left) >= cores
