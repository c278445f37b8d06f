"""A new classifier takes the champion's place if it is right about more of the same photos."""

import numpy as np
import pytest
import torch

from raygan import tracking
from raygan.classifier.promotion import decide
from raygan.classifier.settings import ClassifySettings
from raygan.data.photos import InMemory, Photos
from raygan.models.googlenet import build_googlenet, load_classifier, save_classifier
from raygan.runtime.settings import StorageSettings

LABELS = ("cat", "dog")


def held_out(classifier):
    """Photos of which a classifier is always right."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return Photos((20,), InMemory(((pixels, classifier.probabilities(images).argmax(1).numpy()),)))


@pytest.fixture
def storage(new_storage):
    return StorageSettings(storage=str(new_storage), tracking_uri=None)


def test_the_classifier_that_is_right_more_often_is_the_champion(storage, tmp_path):
    net = build_googlenet(2, auxiliary=False)

    def classifier(swapped=False, labels=LABELS):
        """A network, or the one that always says the opposite."""
        folder = tmp_path / f"{swapped}-{len(labels)}-{labels[0]}"
        save_classifier(folder, net, labels=labels, image_size=32, about={})
        found = load_classifier(folder)
        if swapped:
            with torch.no_grad():
                found.net.fc.weight.neg_()
                found.net.fc.bias.neg_()
            save_classifier(folder, found.net, labels=labels, image_size=32, about={})
        return found, folder

    right, _ = classifier()
    wrong, folder = classifier(swapped=True)
    photos = held_out(right)
    with tracking.start_run(storage, "r", job="test", params={}) as run:

        def decision(one, **changes):
            return decide(ClassifySettings(data="x", **{**storage.model_dump(), **changes}), one, photos, run)

        assert decision(right).promote
        tracking.register_classifier(run, folder, LABELS, promote=True)
        better = decision(right)
        assert better.promote
        assert "its accuracy of 100.00% against 0.00% of version 1 on 20 photos is better" in better.reason
        same = decision(wrong)
        assert (same.promote, "is not better by more" in same.reason) == (False, True)
        generated = decision(right, real_fraction=0.5)
        assert (generated.promote, generated.reason) == (False, "it learned from generated images")
        assert decision(right, real_fraction=0.5, promote=True).promote
        assert "tells apart lion, dog at 32 px" in decision(classifier(labels=("lion", "dog"))[0]).reason
