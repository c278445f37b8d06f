"""The numbers of a verdict: their order from good to bad images, their names and their refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygan.data.synthetic import draw_face
from raygan.errors import RayganError
from raygan.evaluation.candidates import Noise, RealPhotos, untrained_generator
from raygan.evaluation.collect import ImageSet, joined
from raygan.evaluation.verdict import measure, mixed
from raygan.metrics.registry import METRICS, Metric
from raygan.models.features import load_features
from raygan.models.gan import NetworkSettings, build_generator
from raygan.registry import Registry
from raygan.sampling.generators import NamedGenerator


@pytest.fixture
def one_thread():
    """`measure` leaves its process with one thread; the other tests get theirs back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_features(features: torch.Tensor, network: str = "net") -> ImageSet:
    return ImageSet(torch.empty(len(features), 0), {network: features})


def test_worse_images_come_out_worse_on_every_metric(one_thread):
    """Drawn faces, blurred ones as a poor generator makes them, an untrained generator's images, and noise."""
    faces = torch.stack([torch.from_numpy(np.array(draw_face("cat", seed, 64))).permute(2, 0, 1) for seed in range(80)])
    compared, others = faces[:40], faces[40:]
    generator = build_generator(NetworkSettings(image_size=64, z_dim=8, width=4))
    like = NamedGenerator("any", generator, ("cat",), {})
    sets = {
        "real": RealPhotos({"cat": others}).sample("cat", 40, 0),
        "poor": torch.nn.functional.avg_pool2d(others.float(), 3, 1, 1).to(torch.uint8),
        "untrained": untrained_generator(like, ["cat"], seed=0).sample("cat", 40, 0),
        "noise": Noise(64).sample("cat", 40, 0),
    }
    features = load_features("efficientnet_lite0")(torch.cat([compared, *sets.values()]))
    # In a basis of their own span, 200 vectors need 200 coordinates and not 1280. That keeps all distances and angles,
    # and FID, which takes the eigenvalues of a matrix of that size, is computed a hundred times faster.
    reals, *rest = (features @ torch.linalg.qr(features.T).Q).split(40)
    found = {}
    for name, vectors in zip(sets, rest, strict=True):
        scores, nearest = measure(of_features(vectors), of_features(reals), "cat", ())
        assert nearest.shape == (40,)
        found[name] = {score.metric: score.value for score in scores}
    signs = {name: {"lower": 1, "higher": -1}[m.better] for name, m in METRICS.items() if m.compare and m.better}
    for metric, sign in {**signs, "train_distance": 1}.items():
        values = [sign * found[name][metric] for name in sets]
        assert values == sorted(values), (metric, values)
        assert values[0] < values[-1]


def test_over_all_labels_a_perfect_generator_of_each_is_perfect(one_thread):
    """Photos of four cats to a dog, and generators of each label that draw from the very distribution of its photos."""
    random = torch.Generator().manual_seed(0)

    def draw(label, count):
        return of_features(torch.randn(count, 8, generator=random) + {"cat": 2, "dog": -2}[label])

    reals = {"cat": draw("cat", 400), "dog": draw("dog", 100)}
    samples = {label: draw(label, 200) for label in reals}
    found = {}
    for name, images in (("in proportion", mixed(samples, reals)), ("in equal parts", joined(list(samples.values())))):
        scores, _ = measure(images, joined(list(reals.values())), "all", ())
        found[name] = next(score for score in scores if score.metric == "kid")
    assert found["in proportion"].name == "kid250_net"
    assert abs(found["in proportion"].value) < 3 * found["in proportion"].error
    assert found["in equal parts"].value > 3 * found["in equal parts"].error


def test_features_that_are_not_finite_are_refused(one_thread):
    broken = torch.randn(9, 8)
    broken[3] = float("nan")
    with pytest.raises(RayganError, match="1 of 9 generated images are not finite"):
        measure(of_features(broken), of_features(torch.randn(9, 8)), "cat", ())


def test_only_inceptions_scores_go_without_a_network(one_thread):
    sets = ImageSet(torch.empty(9, 0), {"inception_v3": torch.randn(9, 8), "net": torch.randn(9, 8)})
    scores, _ = measure(sets, sets, "cat", ())
    names = {score.name for score in scores}
    assert {"fid9", "kid9", "precision9", "fid9_net", "kid9_net", "precision9_net"} <= names
    assert {score.metric for score in scores if score.error is not None} == {"kid"}


BROKEN = Metric(lambda sets: 1 / 0, None, "never a number")


def test_a_metric_that_fails_is_named(one_thread, monkeypatch):
    broken = Registry("raygan.metrics", {"ratio": "tests.evaluation.test_verdict:BROKEN"})
    monkeypatch.setattr("raygan.evaluation.verdict.METRICS", broken)
    sets = of_features(torch.randn(9, 8))
    with pytest.raises(RayganError, match="'ratio' failed: division by zero"):
        measure(sets, sets, "cat", ())
