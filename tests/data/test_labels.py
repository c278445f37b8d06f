"""Spelling of labels, and the rules that find them in names."""

from __future__ import annotations

import pytest

from raygan.data import labels
from raygan.data.labels import normalize
from raygan.errors import ConfigurationError


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("Cats", "cat"),
        ("puppies", "puppy"),
        ("foxes", "fox"),
        ("Maine Coon", "maine_coon"),
        ("bus", "bus"),
        ("grass", "grass"),
        ("iris", "iris"),
        (" dog ", "dog"),
    ],
)
def test_plural_and_case_variants_are_one_label(given, label):
    assert normalize(given) == label


@pytest.mark.parametrize(
    ("layout", "expected"), [("auto", ["a", "b"]), ("folders", ["a", "b"]), ("names", ["cat", "dog"])]
)
def test_the_layout_decides_between_folders_and_names(layout, expected):
    paths = [f"{folder}/{name}.{i}.jpg" for folder, name in (("a", "cat"), ("b", "dog")) for i in range(6)]
    _, label_of = labels.rule(paths, "photos", label=None, layout=layout, fallback=None)
    assert sorted({label_of(path) for path in paths}) == expected


def test_the_input_folder_names_the_class_only_as_a_last_resort():
    how, label_of = labels.rule(["1.jpg"], "photos", label=None, layout="auto", fallback="cats")
    assert (how, label_of("1.jpg")) == ("the input folder's name", "cats")
    with pytest.raises(ConfigurationError, match="--label"):
        labels.rule(["1.jpg"], "photos", label=None, layout="auto", fallback="photos")
