"""What a search space says, and what it can't say."""

import pytest

from raygan.errors import ConfigurationError
from raygan.settings import validate
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings
from raygan.tuning.space import SOURCE, Axis, parse_space, settings_of, source_point
from raygan.tuning.tune import trial_base


def base(**changes):
    return validate(TrainSettings, {"data": "x", **changes})


def test_the_default_space_brackets_the_source():
    axes = parse_space(validate(TuneSettings, {"data": "x"}).space, base())
    assert {axis.name for axis in axes} == {"generator_lr", "critic_lr", "z_dim"}
    for axis in axes:
        value = SOURCE[axis.name]
        assert value in axis.choices or axis.low < value < axis.high
    assert source_point(axes) == {"generator_lr": 0.00035, "critic_lr": 0.0001, "z_dim": 200}


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
        (["generator_lr=1e-3..1e-5"], "no range"),
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
def test_spaces_that_make_no_sense_are_refused_before_work(space, says):
    with pytest.raises(ConfigurationError, match=says) as raised:
        parse_space(space, base())
    assert str(raised.value).startswith("--space")


@pytest.mark.parametrize(
    ("changes", "says"), [({"minutes": 3}, "--minutes"), ({"quality_every": 0}, "--quality-every")]
)
def test_a_search_needs_a_metric_and_one_clock(changes, says):
    with pytest.raises(ConfigurationError, match=says):
        trial_base(validate(TuneSettings, {"data": "x", **changes}))


def test_trials_are_judged_on_their_own_cadence():
    trial = trial_base(validate(TuneSettings, {"data": "x", "trial_kimg": 30, "judgements": 6, "epochs": 7}))
    assert (trial.kimg, trial.quality_every, trial.promote) == (30, 5, False)
