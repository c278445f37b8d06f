"""The study's table: means over seeds, and what helps or hurts."""

import pytest

from raygan.classifier.usefulness.report import format_table
from raygan.classifier.usefulness.statistics import summarize
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
    text = format_table(rows, photos=155)
    # Student's t with 2 degrees of freedom is 4.303 at 97.5 %: 10 +- 4.303 * 1 / sqrt(3), and so on.
    assert "100 generated beside 100 real: +10.0% (95 % interval +7.5% to +12.5%), helps" in text
    assert "400 generated beside 400 real: +1.0% (95 % interval -5.6% to +7.6%), no clear change" in text
    assert "1,600 generated beside 400 real: -5.0% (95 % interval -7.5% to -2.5%), hurts" in text
    assert "generated only (CAS)" in text
    assert "on 155 validation photos" in text


def test_diverged_trainings_are_counted_and_left_out_of_means():
    results = {Trial(100, 0, 1.0, 0): result(0.8), Trial(100, 0, 1.0, 1): {"diverged": True}}
    (row,) = summarize(results, images=100)
    assert (row.trainings, row.diverged, row.accuracy) == (1, 1, 0.8)
    assert "80.0%, 1 diverged" in format_table([row], photos=10)


def test_one_training_of_each_kind_gives_no_verdict():
    results = {Trial(100, 0, 1.0, 0): result(0.8), Trial(100, 100, 0.5, 0): result(0.9)}
    text = format_table(summarize(results, images=100), photos=10)
    assert "+10.0%, from one training each" in text
    assert "80.0% ±" not in text
