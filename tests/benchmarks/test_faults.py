"""Drills: what is made of their findings, and some of them, shortened, on Ray nodes of their own."""

import io
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from raygan.benchmarks.faults.harness import SHORT, Job, Length, Watched, kimg
from raygan.benchmarks.faults.outcome import Found, line, table
from raygan.benchmarks.faults.run import Stage, drill
from raygan.benchmarks.faults.scenarios import DRILLS, _gone_on, _hurt, _whole
from raygan.benchmarks.faults.serving import _ASKED, _Clients, _service
from raygan.benchmarks.http_client import Answer
from raygan.benchmarks.settings import DrillSettings
from raygan.errors import RayganError
from tests.helpers import REPOSITORY

#: What the others break is broken in tests of its own too; storage needs root.
DRILLED = tuple(DRILLS) if os.environ.get("RAYGAN_LONG") else ("prepare",)


def row(**changes):
    return {"about": "a worker is killed", **vars(Found()), **changes}


def test_the_table_says_what_was_measured():
    rows = {
        "worker": row(back_after=25.46, again=1600, checks={"weights as undisturbed": True, "one run": False}),
        "mlflow": row(again=0, checks={"says so once": True}, notes=["4,000 images trained"]),
        "storage": row(left_out="root only"),
        "prepare": row(again=256, unit="photos", back_after=0.5),
    }
    assert table(rows).splitlines() == [
        "| what | new work after | done again | what came out |",
        "| --- | --- | --- | --- |",
        "| a worker is killed | 25.5 s | 1,600 images | weights as undisturbed; **not** one run |",
        "| a worker is killed |  | nothing | says so once; 4,000 images trained |",
        "| a worker is killed |  |  | left out: root only |",
        "| a worker is killed | 0.5 s | 256 photos |  |",
    ]
    assert line("worker", rows["worker"]).split("  ")[-1] == "weights as undisturbed; **not** one run"


def test_every_drill_can_be_asked_for():
    assert DrillSettings(drills=list(DRILLS)).drills == list(DRILLS)
    assert set(DRILLED) <= set(DRILLS)


@pytest.mark.parametrize("length", [Length(), SHORT])
def test_trainings_are_disturbed_between_checkpoints_that_logs_fall_on(length):
    assert length.checkpoint % length.log == 0
    assert length.total % length.checkpoint == 0
    assert length.checkpoint < length.before < length.total / 2
    assert length.trial % 3 == 0
    assert (length.trial // 3) % length.log == 0


@pytest.mark.parametrize(
    ("said", "images"),
    [
        ("", 0),
        ("run a in /x\ntraining:   0%|          | 0.00/6.40k [00:00<?, ?img/s]", 0),
        ("training:   5%|5 | 320/6.40k [00:01<00:10, 99img/s]\rtraining:  80%|## | 5.12k/6.40k [00:09<00:01]\n", 5120),
        ("warning: 3|4/5\n", 0),
    ],
)
def test_how_far_a_training_is_is_read_from_its_progress_bar(said, images):
    assert Job.shown.fget(SimpleNamespace(said=said)) == images


class Run:
    """A training of which is known: images seen at each look, images saved, and MLflow's steps."""

    def __init__(self, *seen, saved=0, steps=()):
        self._seen, self._saved, self._steps = list(seen), saved, list(steps)

    def seen(self):
        return self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]

    def saved(self):
        return self._saved

    def steps(self, beginning):
        return {beginning: self._steps} if self._steps else {}


def waits(shown=0):
    """A job that goes on until what is waited for has happened."""

    def wait_for(happened, what):
        while not happened():
            pass

    return SimpleNamespace(shown=shown, wait_for=wait_for)


def test_what_was_trained_after_the_last_checkpoint_is_trained_again():
    done = []
    found = _hurt(waits(), Run(5000, 4800, 5000, 5400, saved=4800), lambda: done.append(1))
    assert (done, found.again, found.unit) == ([1], 200, "images")
    assert found.back_after >= 0
    # The progress bar is ahead of what is written down, which nobody updates when the disk is full.
    assert _hurt(waits(5300), Run(5000, 5200, 5400, saved=4800), lambda: None).again == 500
    found, again = _gone_on(Run(5000, 4000, 6000, saved=4800), waits(), waits)
    assert found.again == 200
    assert again.shown == 0


@pytest.mark.parametrize(
    ("steps", "seen", "most_extra", "whole"),
    [
        ([160, 320, 480], 480, 0, True),
        ([160, 320, 400], 400, 0, True),  # the end needn't fall on a log
        ([160, 320], 480, 0, False),
        ([160, 320], 400, 0, False),
        ([], 400, 0, False),
        ([160, 480], 480, 0, False),
        ([160, 320, 320, 480], 480, 0, False),
        ([160, 200, 320], 320, 0, False),
        ([160, 200, 320], 320, 1, True),
        ([160, 160, 320], 320, 1, False),
    ],
)
def test_gaps_doubles_and_a_lost_end_are_seen(steps, seen, most_extra, whole):
    assert _whole(SimpleNamespace(length=Length(log=10)), Run(seen, steps=steps), most_extra) is whole


def test_only_a_whole_checkpoint_counts_as_saved(tmp_path):
    watched = Watched(SimpleNamespace(storage=tmp_path), "a")
    assert (watched.seen(), watched.saved()) == (0, 0)
    (tmp_path / "runs/a/checkpoint_1").mkdir(parents=True)
    (tmp_path / "runs/a/checkpoint_2").mkdir(parents=True)
    (tmp_path / "runs/a/checkpoint_1/generator.json").write_text('{"about": {"kimg": 1.6}}')
    (tmp_path / "runs/a/checkpoint_2/generator.json").write_text('{"about": {"ki')
    (tmp_path / "runs/a/metrics.jsonl").write_text('{"images": 400}\n{"images": 2000}\n')
    assert (watched.seen(), watched.saved()) == (2000, 1600)


def test_the_users_records_and_token_are_left_alone(tmp_path, monkeypatch):
    users = {"RAY_ADDRESS": "10.0.0.1:1", "MLFLOW_TRACKING_URI": "http://10.0.0.1:2", "RAYGAN_TOKEN": "s3cret"}
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    seen = []

    def rehearse(stage, rehearsals):
        seen.extend(users.keys() & os.environ.keys())
        raise InterruptedError

    monkeypatch.setattr(Stage, "rehearse", rehearse)
    with pytest.raises(InterruptedError):
        drill(DrillSettings(), tmp_path)
    assert seen == []


def test_jobs_are_those_of_the_checkout(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append((command, options["cwd"])))
    stage = Stage(tmp_path, tmp_path / "checkout", SHORT)
    stage.train(SimpleNamespace(address="127.0.0.1:1"), "a", "--num-workers", "2")
    ((command, folder),) = started
    assert command[:2] == [sys.executable, str(tmp_path / "checkout/jobs/train.py")]
    assert folder == tmp_path / "checkout"
    assert command[command.index("--kimg") + 1] == kimg(SHORT.total) == "9.6"


def test_the_service_of_the_drill_is_the_projects_with_what_computes_on_both_nodes(tmp_path):
    from ray.serve.schema import ServeDeploySchema

    service = ServeDeploySchema.model_validate(_service(REPOSITORY, tmp_path, 8123))
    assert service.http_options.port == 8123
    twice = {each.name for each in service.applications[0].deployments if each.max_replicas_per_node == 1}
    assert twice == {"generator-cat", "Classifier"}


def npz(**arrays):
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()


IMAGES = np.zeros((1, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        (npz(images=IMAGES), True),
        (npz(images=IMAGES + 1), False),
        (npz(samples=IMAGES), False),
        (npz(images=IMAGES)[:-9], False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_wrong_one(monkeypatch, body, right):
    asked = hear(monkeypatch, lambda: Answer(200, {}, body, 0.0))
    with _Clients(0, dict.fromkeys(_ASKED, IMAGES)) as clients:
        assert asked.wait(10)
    assert (clients.tally.right > 0, not clients.tally.wrong) == (right, right)


def test_clients_that_fail_fail_their_drill(monkeypatch):
    asked = hear(monkeypatch, lambda: [][0])
    with pytest.raises(RayganError, match="the clients' work failed: list index"), _Clients(0, {}):
        assert asked.wait(10)


def hear(monkeypatch, answer):
    """Have clients hear this; an event that is set when they have asked."""
    asked = threading.Event()

    class Connection:
        def __init__(self, *_):
            pass

        async def ask(self, path):
            asked.set()
            return answer()

        def close(self):
            pass

    monkeypatch.setattr("raygan.benchmarks.faults.serving.Connection", Connection)
    monkeypatch.setattr("raygan.benchmarks.faults.serving._PAUSE_S", 0.01)
    return asked


@pytest.fixture(scope="module")
def drilled(tmp_path_factory):
    """The numbers of one run, in a process of its own: its nodes are no business of this one's cluster."""
    numbers = tmp_path_factory.mktemp("drills") / "numbers.json"
    command = [sys.executable, "jobs/drill.py", "--short", "--json-file", str(numbers), "--drills", *DRILLED]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert numbers.exists(), done.stderr
    return {"said": done.stdout, **json.loads(numbers.read_text())}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DRILLED)
def test_what_comes_out_is_right_whatever_fails(drilled, name):
    found = drilled["drills"][name]
    assert found["checks"]
    assert found["right"], found
    assert found["again"] is not None
    assert table(drilled["drills"]) in drilled["said"]
