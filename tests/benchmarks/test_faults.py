"""The fault drills: what they make of their findings, and some of them, shortened, on their own Ray nodes."""

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from raygan.benchmarks.clients import Request
from raygan.benchmarks.faults.harness import SHORT, Length, Stage, images_in_progress_bar, kimg
from raygan.benchmarks.faults.known_answers import same
from raygan.benchmarks.faults.load import Report, check, growth
from raygan.benchmarks.faults.outcome import Outcome, line, table
from raygan.benchmarks.faults.run import drill
from raygan.benchmarks.faults.scenarios import DRILLS
from raygan.benchmarks.faults.serving import REQUESTS, Clients, service_config
from raygan.benchmarks.faults.training import break_training, has_each_once, resume
from raygan.benchmarks.faults.watched import WatchedRun
from raygan.benchmarks.settings import DrillSettings
from raygan.errors import RayganError
from tests.helpers import REPOSITORY, start_job, wait_until

#: Other tests break what the remaining drills break: of `prepare`, a process instead of a node. `storage` needs root.
DRILLED = tuple(DRILLS) if os.environ.get("RAYGAN_LONG") else ("reading",)


def test_a_process_that_warms_up_after_a_fault_is_no_leak_and_a_leak_is_one():
    def life(looks, per_look, ramp=8):
        return [300 * min(1, (look + 1) / ramp) + per_look * look for look in range(looks)]

    killed, restarted = life(20, 0), life(60, 0)
    assert growth([life(80, 0), killed, restarted]) == 0
    assert growth([life(80, 0), killed, life(60, 5)]) > 0.2
    assert growth([killed]) == 0


@pytest.mark.parametrize(
    ("changes", "grown", "says"),
    [
        ({"right": 9}, 0.04, None),
        ({"right": 9, "wrong": ["/v1/sample: 500"]}, 0.0, "1 answers were wrong, the first: /v1/sample: 500"),
        ({"turned_away": 9}, 0.0, "no answer was right: 9 were 503"),
        ({"right": 9, "back_after": {"Models": 31.0}}, 0.0, "more than 30 s"),
        ({"right": 9}, 0.06, "memory grew by 6%"),
    ],
)
def test_a_drill_of_the_service_fails_unless_it_was_right(changes, grown, says):
    with pytest.raises(RayganError, match=says) if says else contextlib.nullcontext():
        check(Report(**changes), grown)


def row(**changes):
    return {"about": "a worker is killed", **vars(Outcome()), **changes}


def test_the_table_shows_what_was_measured():
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


def test_every_drill_can_be_chosen():
    assert DrillSettings(drills=list(DRILLS)).drills == list(DRILLS)
    assert set(DRILLED) <= set(DRILLS)


@pytest.mark.parametrize("length", [Length(), SHORT])
def test_faults_come_between_checkpoints_which_coincide_with_logs(length):
    assert length.checkpoint % length.log == 0
    assert length.total % length.checkpoint == 0
    assert length.checkpoint < length.before < length.total / 2
    assert length.trial % 3 == 0
    assert (length.trial // 3) % length.log == 0


@pytest.mark.parametrize(
    ("output", "images"),
    [
        ("", 0),
        ("run a in /x\ntraining:   0%|          | 0.00/6.40k [00:00<?, ?img/s]", 0),
        ("training:   5%|5 | 320/6.40k [00:01<00:10, 99img/s]\rtraining:  80%|## | 5.12k/6.40k [00:09<00:01]\n", 5120),
        ("warning: 3|4/5\n", 0),
    ],
)
def test_the_images_seen_are_read_from_the_progress_bar(output, images):
    assert images_in_progress_bar(output) == images


class Run:
    """A training with known images seen at each look, images saved, and steps in MLflow."""

    def __init__(self, *seen, saved=0, steps=()):
        self._seen, self._saved, self._steps = list(seen), saved, list(steps)

    def seen(self):
        return self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]

    def saved(self):
        return self._saved

    def steps(self, beginning):
        return {beginning: self._steps} if self._steps else {}


def endless(images_shown=0):
    """A job that runs until whatever is waited for has happened."""

    def wait_for(happened, what):
        while not happened():
            pass

    return SimpleNamespace(images_shown=images_shown, wait_for=wait_for)


def test_work_after_the_last_checkpoint_is_done_again():
    done = []
    found = break_training(endless(), Run(5000, 4800, 5000, 5400, saved=4800), lambda: done.append(1))
    assert (done, found.again, found.unit) == ([1], 200, "images")
    assert found.back_after >= 0
    # The progress bar is ahead of the metrics on disk, which stand still when the disk is full.
    assert break_training(endless(5300), Run(5000, 5200, 5400, saved=4800), lambda: None).again == 500
    found, again = resume(Run(5000, 4000, 6000, saved=4800), endless(), endless)
    assert found.again == 200
    assert again.images_shown == 0


@pytest.mark.parametrize(
    ("steps", "seen", "most_extra", "whole"),
    [
        ([160, 320, 480], 480, 0, True),
        ([160, 320, 400], 400, 0, True),  # the end needn't coincide with a log
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
def test_gaps_doubles_and_a_lost_end_are_noticed(steps, seen, most_extra, whole):
    assert has_each_once(SimpleNamespace(length=Length(log=10)), Run(seen, steps=steps), most_extra) is whole


def test_only_a_whole_checkpoint_counts(tmp_path):
    watched = WatchedRun(SimpleNamespace(storage=tmp_path), "a")
    assert (watched.seen(), watched.saved()) == (0, 0)
    (tmp_path / "runs/a/checkpoint_1").mkdir(parents=True)
    (tmp_path / "runs/a/checkpoint_2").mkdir(parents=True)
    (tmp_path / "runs/a/checkpoint_1/generator.json").write_text('{"about": {"kimg": 1.6}}')
    (tmp_path / "runs/a/checkpoint_2/generator.json").write_text('{"about": {"ki')
    (tmp_path / "runs/a/metrics.jsonl").write_text('{"images": 400}\n{"images": 2000}\n')
    assert (watched.seen(), watched.saved()) == (2000, 1600)


def test_drills_leave_the_users_records_and_token_alone(monkeypatch):
    users = {"RAY_ADDRESS": "10.0.0.1:1", "MLFLOW_TRACKING_URI": "http://10.0.0.1:2", "RAYGAN_TOKEN": "s3cret"}
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    seen = []

    def look(stage, baselines):
        seen.extend(users.keys() & os.environ.keys())
        raise InterruptedError

    monkeypatch.setattr(Stage, "make_baselines", look)
    with pytest.raises(InterruptedError):
        drill(DrillSettings())
    assert seen == []


def test_jobs_come_from_the_checkout(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append((command, options["cwd"])))
    stage = Stage(tmp_path, tmp_path / "checkout", SHORT)
    stage.train(SimpleNamespace(address="127.0.0.1:1"), "a", "--num-workers", "2")
    ((command, folder),) = started
    assert command[:2] == [sys.executable, str(tmp_path / "checkout/jobs/train.py")]
    assert folder == tmp_path / "checkout"
    assert command[command.index("--kimg") + 1] == kimg(SHORT.total) == "9.6"


def test_the_drilled_service_is_the_shipped_one_with_replicas_on_both_nodes(tmp_path):
    from ray.serve.schema import ServeDeploySchema

    service = ServeDeploySchema.model_validate(service_config(REPOSITORY, tmp_path, 8123))
    assert service.http_options.port == 8123
    twice = {each.name for each in service.applications[0].deployments if each.max_replicas_per_node == 1}
    assert twice == {"Models", "Gateway"}


def npz(**arrays):
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()


IMAGES, SHARES = np.zeros((1, 4, 4, 3), np.uint8), np.array([[0.2, 0.8]], np.float32)
KNOWN = npz(images=IMAGES, probabilities=SHARES)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        (KNOWN, True),
        (npz(images=IMAGES, probabilities=SHARES + 0.001), True),
        (npz(images=IMAGES, probabilities=SHARES + 0.1), False),
        (npz(images=IMAGES + 1, probabilities=SHARES), False),
        (npz(samples=IMAGES, probabilities=SHARES), False),
        (KNOWN[:-9], False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_an_unreadable_answer_is_a_wrong_one(body, right):
    with a_server(body) as (port, asked), Clients(port, dict.fromkeys(REQUESTS, KNOWN)) as clients:
        wait_until(lambda: clients.tally.right or clients.tally.wrong, "an answer")
    assert asked.is_set()
    assert (clients.tally.right > 0, not clients.tally.wrong) == (right, right)


@pytest.mark.parametrize("path", ["classify", "sample?format=json", "sample?format=zip", "sample?format=npz", "models"])
def test_an_unreadable_answer_of_any_kind_is_not_the_same(path):
    assert not same(Request(f"/v1/{path}"), b"<html>", KNOWN)


def test_clients_that_fail_fail_their_drill():
    known = {}  # no request has an answer to compare with
    with (
        a_server(KNOWN) as (port, asked),
        pytest.raises(RayganError, match="the clients' work failed: Request"),
        Clients(port, known),
    ):
        assert asked.wait(240)


@contextlib.contextmanager
def a_server(body):
    """A server that answers every GET with this body: its port, and an event set after the first request."""
    asked = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            asked.set()

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            """A client that has seen enough hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def drilled(tmp_path_factory):
    """The numbers of one run, in its own process: its nodes must not meet this process's cluster."""
    numbers = tmp_path_factory.mktemp("drills") / "numbers.json"
    arguments = ["--short", "--json-file", str(numbers), "--drills", *DRILLED]
    process = start_job("drill", arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert numbers.exists(), stderr
    return {"stdout": stdout, **json.loads(numbers.read_text())}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DRILLED)
def test_jobs_survive_faults(drilled, name):
    found = drilled["drills"][name]
    assert found["checks"]
    assert found["right"], found
    assert (found["again"] is None) == (name == "serve")  # nothing is done again for clients
    assert table(drilled["drills"]) in drilled["stdout"]
