"""The load that replicas report, and the number of replicas that follows."""

from types import SimpleNamespace

import pytest

from raygan.serve.scaling import REQUESTS, UnderWay, by_requests


def test_a_replica_reports_the_average_since_it_was_last_asked(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("raygan.serve.scaling.time", clock)
    load = UnderWay()
    averages = []
    for change, seconds in ((0, 1), (3, 0.5), (-3, 0.5), (2, 1), (5, 1), (-7, 1)):
        load.add(change)
        clock.now += seconds
        if clock.now.is_integer():
            averages.append(load.average())
    assert averages == [0, 1.5, 2, 7, 0]
    load.add(2)
    assert load.average() == 2  # asked twice in no time


@pytest.mark.parametrize(
    ("reported", "replicas"), [(None, 3), ({"a": 0.0, "b": 0.0}, 0), ({"a": 0.01}, 0.0025), ({"a": 6, "b": 6}, 3)]
)
def test_replicas_are_as_many_as_the_requests_need(reported, replicas):
    config = SimpleNamespace(get_target_ongoing_requests=lambda: 4)
    metrics = {} if reported is None else {REQUESTS: reported}
    context = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3, config=config)
    assert by_requests(context)[0] == pytest.approx(replicas)
