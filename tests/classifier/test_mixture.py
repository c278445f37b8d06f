"""Training images of a classifier: sizes of mixtures, balanced subsets, generated images."""

import numpy as np
import pytest

from raygan.classifier.mixture import balanced, choose_generators, mixture_sizes, training_images
from raygan.data.reader import load_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError


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


def test_subsets_are_balanced_and_nested():
    classes = np.array([0] * 20 + [1] * 5)
    small, large = (set(balanced(classes, count, 2, seed=1).tolist()) for count in (6, 14))
    assert np.bincount(classes[list(small)]).tolist() == [3, 3]
    assert np.bincount(classes[list(large)]).tolist() == [9, 5]  # the second label has no more
    assert small < large


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
