"""The study's table: means over seeds, and what helps or hurts."""

import numpy as np
import pytest

from raygan.classifier.usefulness.report import format_table
from raygan.classifier.usefulness.statistics import gain_by_photo, half_interval, summarize
from raygan.classifier.usefulness.trial import Trial


def result(accuracy):
    return {"accuracy": accuracy, "balanced_accuracy": accuracy, "auroc": 0.9, "ece": 0.1}


def test_the_table_says_what_helps_and_what_hurts():
    results = {}
    # Gains of 9, 10 and 11 points, of -1, 0 and 4, and of -4, -5 and -6.
    for seed, (few, some, many) in enumerate([(0.09, -0.01, -0.04), (0.10, 0.0, -0.05), (0.11, 0.04, -0.06)]):
        common = 0.02 * seed  # what all trainings of a seed share doesn't count
        results[Trial(100, 0, 1.0, seed)] = result(0.80 + common)
        results[Trial(100, 100, 0.5, seed)] = result(0.80 + common + few)
        results[Trial(400, 0, 1.0, seed)] = result(0.90 + common)
        results[Trial(400, 400, 0.5, seed)] = result(0.90 + common + some)
        results[Trial(400, 1600, 0.2, seed)] = result(0.90 + common + many)
        results[Trial(0, 1000, 0.0, seed)] = result(0.60)
    rows = summarize(results, images=2000)
    assert rows[0].accuracy == pytest.approx(0.82)
    assert rows[0].deviation == pytest.approx(0.02)
    assert [row.passes for row in rows] == [20, 10, 5, 2.5, 1, 2]
    text = format_table(rows, photos="155 to 455")
    # Student's t with 2 degrees of freedom is 4.303 at 97.5 %. Without photos' errors, the bootstrap's error is
    # nearly the exact one: 4.303 * 1 / sqrt(3) points, and so on.
    intervals = [row.interval for row in rows if row.interval]
    assert intervals == pytest.approx([0.0248, 0.0657, 0.0248], rel=0.06)
    lines = {line.partition(":")[0]: line for line in text.splitlines() if " beside " in line}
    assert lines["100 generated beside 100 real"].endswith("), helps")
    assert lines["400 generated beside 400 real"].startswith("400 generated beside 400 real: +1.0% (95 % interval -")
    assert lines["400 generated beside 400 real"].endswith(")")  # no verdict
    assert lines["1,600 generated beside 400 real"].endswith("), hurts")
    assert "generated only (CAS)" in text
    assert "on 155 to 455 photos that neither classifier nor generator saw" in text


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Gains with an effect of each photo, which all seeds share, and one of each seed, in 200 simulated studies."""
    random = np.random.default_rng(0)
    held, of_seeds_alone = 0, 0
    for _ in range(200):
        of_photos, of_seeds = random.normal(0, 0.5, 60), random.normal(0, 0.02, 4)
        gains = [0.05 + of_photos + seed for seed in of_seeds]
        miss = abs(np.mean(gains) - 0.05)
        held += miss < half_interval(gains, replicates=200)
        of_seeds_alone += miss < half_interval([each.mean(keepdims=True) for each in gains], replicates=200)
    assert held >= 186  # 95 % of 200, less twice its standard error
    assert of_seeds_alone < 150  # what ignores the photos' own error is far too narrow


def test_a_photo_counts_where_both_trainings_are_validated_on_it():
    gains = gain_by_photo({"right": "1100-", "accuracy": 0.5}, {"right": "1010-", "accuracy": 0.5})
    np.testing.assert_array_equal(gains, [0, 1, -1, 0, np.nan])
    # Each seed has other photos; one photo that all training left out weighs nothing.
    first, second = np.array([1.0, 0.0, np.nan, np.nan]), np.array([np.nan, 0.0, 1.0, np.nan])
    assert 0 < half_interval([first, second]) < np.inf


def test_diverged_trainings_are_counted_and_left_out_of_means():
    results = {Trial(100, 0, 1.0, 0): result(0.8), Trial(100, 0, 1.0, 1): {"diverged": True}}
    (row,) = summarize(results, images=100)
    assert (row.trainings, row.diverged, row.accuracy) == (1, 1, 0.8)
    assert "80.0%, 1 diverged" in format_table([row], photos="10")


def test_one_training_of_each_kind_gives_no_verdict():
    results = {Trial(100, 0, 1.0, 0): result(0.8), Trial(100, 100, 0.5, 0): result(0.9)}
    text = format_table(summarize(results, images=100), photos="10")
    assert "+10.0%, from one training each" in text
    assert "80.0% ±" not in text
