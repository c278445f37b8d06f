"""Search spaces: what they mean, and which are refused."""

import pytest

from raygan.errors import ConfigurationError
from raygan.settings import validate
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings
from raygan.tuning.space import BASELINE, Axis, baseline_point, parse_space, settings_of


def base(**changes):
    return validate(TrainSettings, {"data": "x", **changes})


def test_the_default_space_brackets_the_baseline():
    axes = parse_space(validate(TuneSettings, {"data": "x"}).space, base())
    assert {axis.name for axis in axes} == {"generator_lr", "critic_lr", "z_dim"}
    for axis in axes:
        value = BASELINE[axis.name]
        assert value in axis.choices or axis.low < value < axis.high
    assert baseline_point(axes) == {"generator_lr": 0.00035, "critic_lr": 0.0001, "z_dim": 200}


def test_every_name_in_the_help_is_a_setting_of_trainings():
    assert set(BASELINE) <= set(TrainSettings.model_fields)
    assert all(name in TuneSettings.model_fields["space"].description for name in BASELINE)


def test_ranges_choices_and_policies():
    axes = parse_space(["critic-lr = 1e-5..1e-3", "z_dim=8,16", "augment=none,color+translation"], base())
    assert axes == [
        Axis("critic_lr", low=1e-5, high=1e-3),
        Axis("z_dim", choices=(8, 16)),
        Axis("augment", choices=("none", "color+translation")),
    ]
    settings = settings_of(base(), {"z_dim": 16, "augment": "color+translation"})
    assert (settings.z_dim, settings.augment) == (16, ["color", "translation"])
    assert settings_of(settings, {"augment": "none"}).augment == []


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ([], "nothing"),
        (["generator_lr"], "NAME=LOW..HIGH"),
        (["generator_lr="], "NAME=LOW..HIGH"),
        (["penalty_weight=,"], "NAME=LOW..HIGH"),
        (["generator_lr=1e-3..1e-5"], "not a range"),
        (["generator_lr=0..1e-5"], "above 0"),
        (["critic_lr=1e-4..5"], "critic_lr can't be 5.0"),
        (["z_dim=100..200"], "list of values"),
        (["z_dim=0,8"], "z_dim can't be 0"),
        (["z_dim=many"], "can't be 'many'"),
        (["epochs=1,2"], "can't be searched"),
        (["z_dim=8", "z-dim=9"], "twice"),
        (["augment=blur"], "augment can't be blur"),
        (["batch_size=1"], "batch_size can't be 1"),
    ],
)
def test_impossible_spaces_are_refused(space, says):
    with pytest.raises(ConfigurationError, match=says) as raised:
        parse_space(space, base())
    assert str(raised.value).startswith("--space")


def test_a_baseline_that_cannot_be_trained_is_refused():
    adaptive = base(objective="dcgan", augment=["color"], augment_target=0.6)
    with pytest.raises(ConfigurationError, match="augment can't be none, as in the baseline, which is the first trial"):
        parse_space(["augment=color,color+translation"], adaptive)
