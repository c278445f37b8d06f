"""The filters by name: each can be skipped, and each rejects by its own limit."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFilter

from raygan.data.filters import Comparison, Rules, load
from raygan.data.registry import FILTERS
from raygan.data.settings import Limits, PrepareSettings
from raygan.errors import ConfigurationError
from raygan.settings import validate
from tests.data import messy

#: For each filter of single photos, a photo that it alone rejects, and a limit that lets the photo pass.
REJECTED = {
    "too_large": (messy.picture(1, 400), {"max_megapixels": 0.2}),
    "too_small": (messy.picture(2, 24), {"min_side": 24}),
    "bad_aspect": (messy.picture(3, 400).crop((0, 0, 400, 100)), {"max_aspect": 4}),
    "flat": (messy.picture(4).point(lambda level: 100 + level // 8), {"min_contrast": 0}),
    "blurry": (messy.picture(5).filter(ImageFilter.GaussianBlur(14)), {"min_sharpness": 0}),
}
LIMITS = {"max_megapixels": 0.1, "min_side": 32}


def reason(picture: Image.Image, skip: list[str], **limits: float) -> str | None:
    rules = Rules.choose(Limits(**{**LIMITS, **limits}), skip)
    return messy.examine(messy.encoded(picture, "PNG"), 32, rules).reason


def test_there_is_a_photo_for_each_filter():
    assert {name for name in FILTERS.names() if not isinstance(load(name), Comparison)} == set(REJECTED)


@pytest.mark.parametrize("name", REJECTED)
def test_a_filter_rejects_unless_skipped_or_its_limit_allows_the_photo(name):
    picture, limits = REJECTED[name]
    assert reason(picture, []) == name
    assert reason(picture, [name]) is None
    assert reason(picture, [], **limits) is None


def test_a_large_file_is_rejected_by_its_size_before_it_is_read():
    rules = Rules.choose(Limits(max_megabytes=1), [])
    found = rules.objection(lambda each: each.of_file(1_500_000, rules.limits))
    assert found == {"reason": "too_large", "score": 1.5, "detail": "megabytes"}
    assert not rules.objection(lambda each: each.of_file(1_000_000, rules.limits))


@pytest.mark.parametrize(
    ("given", "side"),
    [
        ({}, 32),
        ({"image_size": 128}, 64),
        ({"image_size": 128.0}, 64),  # from a YAML file
        ({"image_size": " 256"}, 128),
        ({"image_size": 32}, 32),
        ({"min_side": 20}, 20),
    ],
)
def test_by_default_no_photo_is_enlarged_more_than_twice(given, side):
    settings = validate(PrepareSettings, {"input": ["photos"], "output": "shards", **given})
    rules = Rules.choose(settings, [])
    for width, expected in ((side, None), (side - 1, "too_small")):
        photo = messy.encoded(messy.picture(7, width), "PNG")
        assert messy.examine(photo, settings.image_size, rules).reason == expected


def test_a_face_is_as_large_as_what_is_cut_out_not_as_the_photo():
    rules = Rules.choose(Limits(min_side=32), [])
    photo = messy.encoded(messy.picture(8, 400), "PNG")
    for side, expected in ((16, "too_small"), (32, None)):
        cut = messy.examine(photo, 64, rules, cut_face=lambda image, side=side: image.crop((9, 9, 9 + side, 9 + side)))
        assert (cut.reason, cut.width) == (expected, side)


def test_the_first_filter_to_object_gives_the_reason():
    strip = messy.picture(6, 400).crop((0, 0, 400, 20))
    assert reason(strip, []) == "too_small"
    assert reason(strip, ["too_small"]) == "bad_aspect"


def test_rules_do_not_depend_on_comparisons():
    """The names of chunks depend on the rules, and skipping a comparison must not invalidate the chunks."""
    values = {"input": ["photos"], "output": "shards"}
    one, other = (
        PrepareSettings(**values, skip=skip, hash_distance=bits) for skip, bits in (([], 6), (["outlier"], 3))
    )
    assert repr(Rules.choose(one, one.skip)) == repr(Rules.choose(other, other.skip))
    assert repr(Rules.choose(one, ["flat"])) != repr(Rules.choose(one, []))


def test_every_filter_can_be_skipped_and_no_other():
    values = {"input": ["photos"], "output": "shards"}
    assert PrepareSettings(**values, skip=FILTERS.names()).skip == FILTERS.names()
    with pytest.raises(ConfigurationError, match=r"--skip: must be one of .*; did you mean blurry\?"):
        validate(PrepareSettings, {**values, "skip": ["blury"]})
