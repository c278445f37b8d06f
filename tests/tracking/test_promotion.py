"""The serving alias: each move leaves its reason, and can be taken back."""

import pytest

from raygan import tracking
from raygan.errors import ConfigurationError
from raygan.runtime.settings import PromoteSettings
from raygan.tracking.promotion import Decision, carry_out, promote

NAME = "raygan-generator-cat"


@pytest.fixture
def client(settings):
    """A registry with three versions of a generator and no champion."""
    found = tracking.connect(settings)
    found.create_registered_model(NAME)
    for _ in range(3):
        found.create_model_version(NAME, "file:///nowhere")
    return found


def version(number):
    return tracking.RegisteredModel(NAME, str(number), None)


def champion(client):
    return int(tracking.find_model(client, NAME).version)


def tags(client, number):
    return client.get_model_version(NAME, str(number)).tags


def test_an_alias_moves_or_stays_for_a_reason(client, capsys):
    carry_out(client, version(1), Decision(True, "there was none before"))
    carry_out(client, version(2), Decision(False, "its KID is worse"))
    assert champion(client) == 1
    assert tags(client, 1)["raygan.promoted"].endswith(": there was none before")
    assert tags(client, 2)["raygan.not_promoted"].endswith(": its KID is worse")
    carry_out(client, version(3), Decision(True, "its KID is better"))
    assert champion(client) == 3
    assert tags(client, 3)["raygan.replaced"] == "1"
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}/1 is the champion now: there was none before",
        f"{NAME}/2 is not promoted: its KID is worse; `python jobs/promote.py --model {NAME}/2` promotes it anyway",
        f"{NAME}/3 is the champion now, after version 1: its KID is better",
    ]


def test_a_version_that_was_compared_with_an_earlier_champion_is_not_promoted(client):
    """Two trainings end together: what the second beat is no longer served."""
    first, second = (Decision(True, "its KID is better", beaten="") for _ in range(2))
    assert carry_out(client, version(1), first) == first
    done = carry_out(client, version(2), second)
    assert (done.promote, champion(client)) == (False, 1)
    assert done.reason == "version 1 became the champion in the meantime, and the two were not compared"
    assert tags(client, 2)["raygan.not_promoted"].endswith(done.reason)
    assert carry_out(client, version(3), Decision(True, "its KID is better", beaten="1")).promote
    assert carry_out(client, version(2), Decision(True, "by the setting promote always")).promote
    assert champion(client) == 2


def test_people_promote_and_roll_back(client, settings):
    def person(**values):
        promote(PromoteSettings(**settings.model_dump(), **values))

    for number in (1, 3, 2):
        person(model=f"{NAME}/{number}")
        assert champion(client) == number
    person(model=NAME, rollback=True)
    assert champion(client) == 3
    won, returned = tags(client, 3)["raygan.promoted"].splitlines()
    assert won.endswith(", after version 1: by hand")
    assert returned.endswith(", after version 2: rolled back by hand")
    with pytest.raises(ConfigurationError, match=rf"--rollback: give --model {NAME}, without a version"):
        person(model=f"{NAME}/2", rollback=True)
    person(model=f"models:/{NAME}", rollback=True)
    assert champion(client) == 1
    with pytest.raises(ConfigurationError, match=f"--rollback: no version before {NAME}/1 is recorded"):
        person(model=NAME, rollback=True)
    for model in (NAME, f"{NAME}/9", "nobody/1"):
        with pytest.raises(ConfigurationError, match=f"--model: '{model}' is not a registered version"):
            person(model=model)
    with pytest.raises(ConfigurationError, match="--model: 'nobody' is not a registered model"):
        person(model="nobody", rollback=True)
    assert champion(client) == 1
    for _ in range(6):  # more than a registry keeps of this length
        carry_out(client, version(2), Decision(True, "its KID is better; " * 60))
        carry_out(client, version(1), Decision(True, "it is better again"))
    kept = tags(client, 2)["raygan.promoted"].splitlines()
    assert len(kept) == 4
    assert len("\n".join(kept)) <= 5000
