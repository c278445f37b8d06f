"""Measurements: their room beside the workers, their photos, and their failures."""

import itertools

import pytest
import ray
import torch

from raygan.training.events import Unmeasured
from raygan.training.monitor import TRAIN_PHOTOS, Monitor, cores_beside, held_back, train_photos
from tests.helpers import wait_until


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


@pytest.mark.parametrize(
    ("classes", "held"),
    [
        ([0, 1] * 4, [2, 2]),  # in turn, as shards may have them: half of each class, not all of one
        ([0] * 7 + [1] * 4, [3, 2]),
        ([0] * 8, [4, 0]),
        ([0, 1, 0, 1, 0, 1, 0], [0, 0]),  # too few for two halves: all of them choose
    ],
)
def test_half_of_the_validation_photos_of_each_class_choose_nothing(classes, held):
    classes = torch.tensor(classes)
    found = held_back(classes)
    assert [int(found[classes == number].sum()) for number in (0, 1)] == held


def test_a_short_run_is_compared_with_fewer_training_photos():
    assert [train_photos(minutes) for minutes in (1, 4, 20, 10_000, None)] == [500, 1000, 5000, *[TRAIN_PHOTOS] * 2]


def opened(gate):
    wait_until(gate.exists, "the gate")
    return "reference"


def monitor_of(reference, events=None):
    return Monitor(reference, None, "net", samples=16, label=None, events=events, folder="run")


@pytest.mark.usefixtures("ray_cluster")
def test_a_monitor_is_ready_once_its_reference_is_there_or_has_failed(tmp_path):
    late = monitor_of(ray.remote(opened).options(num_cpus=0).remote(tmp_path / "gate"))
    assert not late.ready
    (tmp_path / "gate").touch()
    wait_until(lambda: late.ready, "the reference")
    failing = monitor_of(ray.remote(opened).options(num_cpus=0, max_retries=0).remote(None))
    wait_until(lambda: failing.ready, "the failure")


class Events(list):
    """Stands in for the queue to the driver."""

    put = list.append


class Broken(Monitor):
    """A monitor whose network fails."""

    def measure(self, generator, images):
        raise OSError("first line\nno space left on device")


def test_a_measurement_that_fails_is_told_and_ends_nothing():
    events = Events()
    monitor = Broken(None, None, "net", samples=16, label=None, events=events, folder="run")
    assert monitor.try_to_measure(None, 320) is None
    assert events == [Unmeasured(320, "no space left on device")]
