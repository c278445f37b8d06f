"""Spelling of labels, and labels that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygan.data.labels import check_guess, check_labels, normalize
from raygan.errors import ConfigurationError


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("Cats", "cat"),
        ("puppies", "puppy"),
        ("foxes", "fox"),
        ("Maine Coon", "maine_coon"),
        ("black-cats", "black_cat"),
        (" dog ", "dog"),
        ("bus", "bus"),
        ("grass", "grass"),
        ("iris", "iris"),
        ("great_pyrenees", "great_pyrenees"),
        ("species", "species"),
        ("Tom_Hanks", "tom_hanks"),
        ("Cat, tabby", "cat,_tabby"),
        ("...", ""),
        ("-1", "-1"),
        (" -0.5 ", "-0_5"),
        ("- cat -", "cat"),
    ],
)
def test_plural_and_case_variants_are_one_label_and_other_words_stay(given, label):
    assert normalize(given) == label


@given(st.text())
def test_the_spelling_of_a_spelled_label_is_itself(text):
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("label", "says"),
    [("x" * 201, "201 characters"), ("a\0b", "U\\+0000"), ("line\nbreak", "U\\+000A"), ("all", "all labels together")],
)
def test_labels_that_can_not_be_used_are_refused(label, says):
    with pytest.raises(ConfigurationError, match=says):
        check_labels(["cat", label])


@pytest.mark.parametrize("label", ["x" * 200, "dog:_big", 'say_"meow"', "🐱", "قط", "a/b", "naïve's"])
def test_labels_of_any_text_are_taken(label):
    check_labels([label])


def test_a_guess_that_gives_a_class_to_each_photo_is_refused_with_two_flags():
    with pytest.raises(ConfigurationError, match=r"4 labels for 5 photos .*--label or --layout"):
        check_guess("names", {"a": 2, "b": 1, "c": 1, "d": 1}, ["--label", "--layout"])
    check_guess("names", {"a": 2, "b": 2, "c": 1}, ["--label", "--layout"])
    check_guess("names", {"a": 1}, ["--label", "--layout"])
