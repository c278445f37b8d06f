"""What the page says a network has decided: from what shards and generators recorded about themselves."""

from __future__ import annotations

import pytest

from raygan.evaluation.candidates import Candidate, Noise
from raygan.evaluation.decisions import decisions
from raygan.models.gan import NetworkSettings, build_generator
from raygan.sampling.generators import NamedGenerator

FEATURES = {"efficientnet_lite2": "efficientnet_lite2", "googlenet_mine": "/nets/mine"}


@pytest.mark.parametrize(
    ("about", "configuration", "expected"),
    [
        ({"quality_network": "efficientnet_lite0"}, {"outlier_network": "efficientnet_lite0"}, ([], [])),
        ({"quality_network": "efficientnet_lite2"}, {}, (["chose the checkpoint of cat"], [])),
        ({"quality_network": None}, {"outlier_network": "/nets/mine"}, ([], ["picked outliers among the photos"])),
        ({"quality_network": None}, {"outlier_network": "/nets/mine", "skip": ["outlier"]}, ([], [])),
    ],
)
def test_a_network_decided_what_shards_and_generators_recorded(about, configuration, expected):
    generator = build_generator(NetworkSettings(image_size=32, z_dim=4, width=2))
    trained = NamedGenerator("cat", generator, ("cat",), {"label": "cat", **about})
    untrained = NamedGenerator("untrained", generator, ("cat",), {})
    candidates = [Candidate(one.name, {"cat": one}) for one in (trained, untrained)]
    candidates.append(Candidate("noise", {"cat": Noise(32)}))
    found = decisions(FEATURES, configuration, candidates)
    assert tuple(found.values()) == expected


def test_an_old_generator_may_have_been_chosen_by_the_default_network():
    generator = build_generator(NetworkSettings(image_size=32, z_dim=4, width=2))
    old = Candidate("champion", {"cat": NamedGenerator("cat/3", generator, ("cat",), {"label": "cat"})})
    found = decisions({"efficientnet_lite0": "efficientnet_lite0", **FEATURES}, {}, [old])
    assert found["efficientnet_lite0"] == ["may have chosen the checkpoint of cat/3"]
    assert found["efficientnet_lite2"] == []
