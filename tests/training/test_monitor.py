"""A measurement has room beside the workers, wherever they are placed."""

import itertools

import pytest

from raygan.training.monitor import cores_beside


@pytest.mark.parametrize(
    ("nodes", "workers", "each", "cores"),
    [
        ([2], 1, 1, 1),  # a laptop: the worker leaves one of two cores
        ([2], 1, 2, 0),
        ([8], 2, 1, 4),  # at most half of the node
        ([4, 4], 2, 3, 1),  # one worker fits on each node
        ([4, 4], 4, 2, 0),
        ([0, 8], 1, 2, 4),  # a head node without cores
        ([], 1, 1, 0),
    ],
)
def test_cores_of_a_measurement(nodes, workers, each, cores):
    assert cores_beside(nodes, workers, each) == cores


@pytest.mark.parametrize("nodes", [[4, 4], [2, 6], [8, 1, 3]])
@pytest.mark.parametrize(("workers", "each"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_a_measurement_fits_beside_every_placement(nodes, workers, each):
    """Try all placements of the workers on the nodes."""
    cores = cores_beside(nodes, workers, each)
    for places in itertools.product(range(len(nodes)), repeat=workers):
        left = [size - each * places.count(number) for number, size in enumerate(nodes)]
        if min(left) >= 0:
            assert max(left) >= cores
