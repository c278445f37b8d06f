"""The model of how training scales, against cases worked out by hand; data sets and records of any size."""

import numpy as np
import pytest

from raygan.benchmarks.comparing import compare
from raygan.benchmarks.reading import first_step, linked, speed
from raygan.benchmarks.scale_model import Cost, Link, line_through
from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.errors import RayganError

PERFECT_LINK = Link(bandwidth=float("inf"), latency=0.0)


def test_divisible_work_scales_perfectly():
    cost = Cost(fixed=0.0, slope=0.01, critic_bytes=10**6, generator_bytes=10**6, n_critic=5)
    assert [cost.efficiency(w, 64, PERFECT_LINK, weak=weak) for w in (1, 2, 64) for weak in (False, True)] == [1.0] * 6


def test_every_worker_does_the_fixed_work():
    cost = Cost(fixed=0.32, slope=0.01, critic_bytes=0, generator_bytes=0, n_critic=1)
    # Alone 0.32 + 32 * 0.01 = 0.64 s; over 4 workers 0.32 + 8 * 0.01 = 0.40 s.
    assert cost.efficiency(4, 32, PERFECT_LINK, weak=False) == pytest.approx(0.64 / (4 * 0.40))
    assert cost.efficiency(4, 32, PERFECT_LINK, weak=True) == 1.0


def test_both_networks_gradients_go_round_the_ring():
    cost = Cost(fixed=0.0, slope=0.01, critic_bytes=4_000_000, generator_bytes=10_000_000, n_critic=5)
    link = Link(bandwidth=1e8, latency=0.001)
    # 4 MB in each batch and 10 MB in every fifth: 6 MB in 1.2 sums; each of 3 workers sends 4 messages per sum.
    assert cost.seconds(3, 20, link) == pytest.approx(20 * 0.01 + 4 * 2_000_000 / 1e8 + 4 * 1.2 * 0.001)


def test_workers_are_added_down_to_an_efficiency_of_a_half():
    # Over w workers a batch takes 1 / w + 1 / 8 s: the efficiency 9 / (8 + w) is a half at 10 workers.
    cost = Cost(fixed=0.125, slope=1 / 64, critic_bytes=0, generator_bytes=0, n_critic=1)
    assert cost.most_workers(64, PERFECT_LINK, weak=False) == 8


def test_each_worker_has_at_least_one_image():
    cost = Cost(fixed=0.0, slope=0.01, critic_bytes=0, generator_bytes=0, n_critic=1)
    assert cost.most_workers(64, PERFECT_LINK, weak=False) == 64
    assert cost.most_workers(48, PERFECT_LINK, weak=False) == 32
    assert cost.most_workers(64, PERFECT_LINK, weak=True) == 4096


def test_fixed_seconds_are_never_negative():
    assert line_through({4: 0.7, 8: 0.9, 16: 1.3}) == pytest.approx((0.5, 0.05))
    assert line_through({4: 0.3, 8: 0.7, 16: 1.5})[0] == 0.0


def test_batch_norms_over_all_ranks_send_messages_in_every_pass():
    cost = Cost(fixed=0.0, slope=0.0, critic_bytes=0, generator_bytes=0, n_critic=1, norms=4)
    # Critic step, generator forwards and backwards: 12 sums of 2 messages, beside two sums of gradients with 4.
    assert cost.seconds(3, 20, Link(1e8, 0.001)) == pytest.approx((12 * 2 + 2 * 4) * 0.001)


def test_a_large_data_set_is_made_of_links(tmp_path, write_shards):
    data = DataSet.open(str(write_shards()))
    large = DataSet.open(linked(data, 1000, tmp_path / "large").address)
    photos, few = open_photos(large, "train", None), open_photos(data, "train", None)
    assert 1000 <= len(photos) < 1000 + max(few.rows)
    for number in (0, len(photos.rows) - 1):
        same = few.block(number % len(few.rows))
        assert all(np.array_equal(a, b) for a, b in zip(photos.block(number), same, strict=True))
    assert large.manifest.count("validation") == data.manifest.count("validation")


def test_synthetic_records_have_copies_and_near_duplicates():
    found = compare(3000)
    # A tenth are near-duplicates, and a tenth copies, some of them of each other.
    assert 0.8 <= found["kept"] / 3000 < 0.85


TRAINS = """
import pathlib, sys
print("warning\\n" * 100_000, file=sys.stderr)
run = pathlib.Path(sys.argv[sys.argv.index("--storage") + 1], "runs", "run")
if "fails" in str(run):
    sys.exit("error: no memory")
run.mkdir(parents=True)
(run / "metrics.jsonl").write_text('{"minutes": 0.5}')
"""


def test_a_training_that_says_much_does_not_wait_for_a_reader(tmp_path, write_shards, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text(TRAINS)
    monkeypatch.setattr("raygan.benchmarks.reading.checkout", lambda: tmp_path)
    data = DataSet.open(str(write_shards()))
    assert first_step(data, tmp_path / "storage", None)["first_step_seconds"] == 30
    with pytest.raises(RayganError, match=r"the training failed: (?s:.*)error: no memory$"):
        first_step(data, tmp_path / "fails", None)


def test_a_trainings_speed_counts_its_waits_but_not_the_first_epoch():
    moments = [(0.9, 1000, 9.0), (1.8, 2000, 9.5), (2.7, 3000, 10.0), (3.6, 4000, 11.5)]
    records = [{"epoch": epoch, "images": images, "minutes": minutes} for epoch, images, minutes in moments]
    assert speed(records) == pytest.approx(2000 / 120)
