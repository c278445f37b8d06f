"""Generators by name, and their images."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raygan import tracking
from raygan.errors import ConfigurationError, RayganError
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.runtime.settings import StorageSettings
from raygan.sampling.generators import NamedGenerator, check_drawn, find_generators
from raygan.sampling.sample import sample
from raygan.sampling.settings import SampleSettings

NETWORK = NetworkSettings(image_size=32, z_dim=4, width=2)


def test_an_image_depends_only_on_seed_and_number():
    torch.manual_seed(0)
    one = NamedGenerator("g", build_generator(NETWORK).eval(), ("cat",), {})
    whole = one.sample("cat", 150, seed=3)
    assert torch.equal(one.sample("cat", 22, seed=3, first=128), whole[128:])
    assert not torch.equal(one.sample("cat", 10, seed=4), whole[:10])


def register(storage, label, *, labels=()):
    """Register a generator as the champion of its label, or of all its labels."""
    torch.manual_seed(0)
    settings = StorageSettings(storage=str(storage), tracking_uri=None)
    with tempfile.TemporaryDirectory() as scratch, tracking.start_run(settings, label, job="train", params={}) as run:
        folder = Path(scratch, "generator")
        save_generator(folder, build_generator(replace(NETWORK, labels=labels)), {"label": label})
        tracking.register_generator(run, folder, label, labels=list(labels or (label,)), promote=True)
    return settings


def test_a_champion_of_several_labels_is_found_once_and_draws_those_without_another_champion(new_storage):
    settings = register(new_storage, "all", labels=("cat", "dog"))
    (both,) = find_generators(settings, [], ["cat", "dog"])
    assert both.labels == ("cat", "dog")
    register(new_storage, "cat")
    found = {one.labels: one.name for one in find_generators(settings, [], ["cat", "dog"])}
    assert found == {("dog",): "raygan-generator-all/1", ("cat",): "raygan-generator-cat/1"}


def test_a_label_that_nobody_draws_is_refused_with_those_that_are_drawn(new_storage):
    register(new_storage, "great_pyrenees")
    wanted = SampleSettings(storage=str(new_storage), label="Great Pyrenees", output="out")
    with pytest.raises(ConfigurationError, match=r", but of great_pyrenees: train .*did you mean great_pyrenees\?$"):
        sample(wanted)
    with pytest.raises(RayganError, match=r"`python jobs/train.py --label 'a; b'`"):
        check_drawn([], ["a; b"])


def test_no_two_generators_have_the_same_name(new_storage, tmp_path):
    settings = StorageSettings(storage=str(new_storage), tracking_uri=None)
    folders = [str(tmp_path / run / "last") for run in ("a", "b")]
    for folder in folders:
        save_generator(Path(folder), build_generator(NETWORK), {"label": "cat"})
    assert [one.name for one in find_generators(settings, folders[:1], [])] == ["last"]
    assert [one.name for one in find_generators(settings, folders, [])] == folders
    with pytest.raises(ConfigurationError, match="is given twice"):
        find_generators(settings, [folders[0], folders[0]], [])
