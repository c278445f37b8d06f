"""Measurements: their room beside the workers, their photos, and their failures."""

import itertools
import threading
import time

import pytest
import ray
import torch

from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.errors import RayganError
from raygan.models.gan import NetworkSettings, build_generator
from raygan.models.registry import DEFAULT_FEATURES
from raygan.settings import validate
from raygan.training import fresh
from raygan.training.events import Picture, Unmeasured
from raygan.training.monitor import (
    TRAIN_PHOTOS,
    Monitor,
    Reference,
    cores_beside,
    held_back,
    start_measuring,
    train_photos,
)
from raygan.training.settings import TrainSettings
from raygan.training.trainer import in_first_worker, monitor_patience_s
from tests.helpers import CORES, taken_cores, wait_for_cores, wait_until


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


def test_the_patience_is_for_the_images_that_are_measured():
    def patience(**changes):
        settings = validate(TrainSettings, {"data": "x", "quality_samples": 500, **changes})
        return monitor_patience_s(settings, 20_000, 1000)

    assert patience() == 300 + 0.5 * (500 + 10_000 + 1000)
    assert patience(minutes=20) == 300 + 0.5 * (500 + 5000 + 1000)


def test_the_first_of_several_workers_gives_up_before_the_others_take_it_for_dead():
    monitor = monitor_of(None, patience_s=6050.0)
    assert in_first_worker(monitor, 1).patience_s == 6050
    assert in_first_worker(monitor, 2).patience_s < 600
    assert in_first_worker(monitor_of(None, patience_s=2.0), 2).patience_s == 2


def opened(gate):
    wait_until(gate.exists, "the gate")
    return "reference"


class Events(list):
    """Stands in for the queue to the driver."""

    put = list.append


def monitor_of(reference, kind=Monitor, **changes):
    values = {"photos": None, "network": "net", "samples": 16, "label": None, "folder": "run", "patience_s": 600.0}
    return kind(reference, **{**values, "events": Events(), **changes})


@pytest.mark.usefixtures("ray_cluster")
def test_a_monitor_is_ready_once_its_reference_is_there_or_has_failed(tmp_path):
    late = monitor_of(ray.remote(opened).options(num_cpus=0).remote(tmp_path / "gate"), patience_s=0.1)
    assert not late.ready
    assert late.try_to_measure(None, 320) is None
    assert late.events == [Unmeasured(320, "measuring took more than 0 s")]
    (tmp_path / "gate").touch()
    wait_until(lambda: late.ready, "the reference")
    failing = monitor_of(ray.remote(opened).options(num_cpus=0, max_retries=0).remote(None))
    wait_until(lambda: failing.ready, "the failure")


class Broken(Monitor):
    """A monitor whose network fails."""

    def measure(self, generator, images):
        raise OSError("first line\nno space left on device")


class Hanging(Monitor):
    """A monitor whose network never answers."""

    def measure(self, generator, images):
        threading.Event().wait()


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Broken, "measuring failed: no space left on device"), (Hanging, "measuring took more than 2 s")],
)
def test_a_measurement_that_fails_or_hangs_is_told_and_ends_nothing(kind, says):
    monitor = monitor_of(None, kind, patience_s=2.0)
    assert monitor.try_to_measure(None, 320) is None
    assert monitor.events == [Unmeasured(320, says)]


class Endless:
    """Photos in a storage that never answers."""

    def __len__(self):
        return 8

    def spread(self, count):
        time.sleep(10_000)

    parts = iter


@pytest.mark.usefixtures("ray_cluster")
def test_a_fresh_measurement_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(fresh, "patience_s", lambda images: 2.0)
    with pytest.raises(RayganError, match="measuring fresh samples took more than 0 minutes"):
        fresh.measure_fresh([], Endless(), [DEFAULT_FEATURES], samples=16)
    wait_for_cores()


@pytest.mark.usefixtures("ray_cluster")
def test_the_reference_doesnt_wait_for_cores_of_other_jobs(train_settings):
    settings = train_settings(num_workers=1)
    data = DataSet.open(settings.data)
    train, validation = (open_photos(data, split, None) for split in ("train", "validation"))
    with taken_cores(CORES):
        reference, cores = start_measuring(settings, train, validation)
        assert cores == 1.5  # once they are free
        assert len(ray.get(reference, timeout=100).train) == len(train)


@pytest.mark.usefixtures("ray_cluster")
def test_the_names_of_metrics_tell_samples_and_network(write_shards, tmp_path):
    data = DataSet.open(str(write_shards()))
    photos, features = open_photos(data, "train", "cat"), torch.randn(16, 1280)
    reference = ray.put(Reference(features[:8], torch.zeros(8, dtype=torch.int64), features[8:], photos.spread(8)))
    monitor = monitor_of(reference, photos=photos, network=DEFAULT_FEATURES, label="cat", folder=str(tmp_path))
    metrics, kid = monitor.measure(build_generator(NetworkSettings(image_size=32, z_dim=8, width=4)).eval(), 320)
    names = ("kid16", "train_distance16", "animal_mass16")
    assert set(metrics) == {f"{name}_efficientnet_lite0" for name in names} | {"kid16_efficientnet_lite0_error"}
    assert kid == metrics["kid16_efficientnet_lite0"]
    assert monitor.events == [Picture("pictures/nearest-000000320-images.png")]
