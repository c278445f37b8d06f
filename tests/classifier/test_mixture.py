"""Training images of a classifier: sizes of mixtures, balanced subsets, generated images."""

import numpy as np
import pytest

from raygan.classifier.mixture import (
    balanced_numbers,
    choose_generators,
    drawn_photos,
    mixture_sizes,
    training_images,
)
from raygan.data.photos import InMemory, Photos
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.runtime.settings import StorageSettings
from raygan.sampling.generators import find_generators


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ((None, 1.0, 100, None), (100, 0)),
        ((30, 1.0, 100, None), (30, 0)),
        ((None, 0.0, 100, None), (0, 100)),
        ((None, 0.5, 100, None), (100, 100)),
        ((20, 0.2, 100, None), (20, 80)),
        ((None, 0.25, 100, 30), (10, 30)),
        ((10, 0.25, 100, 30), (10, 30)),
    ],
)
def test_sizes_of_mixtures(asked, sizes):
    assert mixture_sizes(*asked) == sizes


class Watched(InMemory):
    """Blocks that know which of them were read."""

    def read(self, number):
        READ.add(number)
        return super().read(number)


READ: set[int] = set()


def test_subsets_are_balanced_and_nested_and_read_no_other_shards():
    classes = np.random.default_rng(3).permutation([0] * 300 + [1] * 5 + [2] * 60)
    parts = np.array_split(classes, 40)
    counts = np.array([np.bincount(part, minlength=3) for part in parts])
    pixels = np.zeros((16, 4, 4, 3), np.uint8)
    photos = Photos(tuple(map(len, parts)), Watched(tuple((pixels[: len(part)], part) for part in parts)))
    READ.clear()
    small = balanced_numbers(photos, counts, 6, seed=1)
    assert set(READ) == set(photos.places(small)[:, 0].tolist())
    large = balanced_numbers(photos, counts, 45, seed=1)
    assert np.bincount(classes[small]).tolist() == [2, 2, 2]
    assert np.bincount(classes[large]).tolist() == [20, 5, 20]  # the second label has no more
    assert len(set(large.tolist())) == 45
    assert set(small.tolist()) < set(large.tolist())
    with pytest.raises(ConfigurationError, match="366 real photos are asked for"):
        balanced_numbers(photos, counts, 366, seed=1)


def test_a_training_draws_the_images_that_tasks_draw(write_generator):
    pair = find_generators(StorageSettings(), [write_generator(label) for label in ("cat", "dog")], [])
    drawn = drawn_photos(pair, ["cat", "dog"], 301, seed=4)
    assert drawn.rows == (150, 151)
    pixels, classes = drawn.block(1)
    assert classes.tolist() == [1] * 151
    expected = pair[1].sample("dog", 151, 4, 1 << 31)
    assert np.array_equal(pixels, expected.numpy())


@pytest.mark.usefixtures("ray_cluster")
def test_generated_images_replace_real_photos(classify_settings, write_generator):
    folders = [write_generator(label) for label in ("cat", "dog")]
    settings = classify_settings(real_fraction=0.25, real_images=8, model=folders)
    data = DataSet.open(settings.data)
    images, origin = training_images(settings, data, choose_generators(settings, data))
    assert origin == {"real": 8, "generated": 24, "generators": "cat-generator, dog-generator"}
    blocks = [images.block(number) for number in range(len(images.rows))]
    classes = np.concatenate([classes for _, classes in blocks])
    assert np.bincount(classes).tolist() == [16, 16]
    assert sum(len(pixels) for pixels, _ in blocks) == len(images) == 32
    real = np.concatenate([load_photos(data, "train", None).block(n)[0] for n in range(2)])
    known = {picture.tobytes() for picture in real}
    assert sum(picture.tobytes() in known for pixels, _ in blocks for picture in pixels) == 8


def test_generators_of_other_labels_or_sizes_are_refused(classify_settings, write_generator):
    strange = classify_settings(real_fraction=0.5, model=[write_generator("fox")])
    with pytest.raises(RayganError, match=r"draws fox, but .* has only cat, dog"):
        choose_generators(strange, DataSet.open(strange.data))
    large = classify_settings(
        data=strange.data, real_fraction=0.5, model=[write_generator(label, size=64) for label in ("cat", "dog")]
    )
    with pytest.raises(ConfigurationError, match="draws 64 px images"):
        choose_generators(large, DataSet.open(large.data))
