"""Records on their way to MLflow: none lost, none sent twice, whatever the server does."""

import json
import threading
import time

from mlflow import MlflowClient

from raygan import tracking
from raygan.tracking.outbox import Sender, send_records
from raygan.tracking.spool import Spool
from tests.helpers import wait_until
from tests.tracking.records import steps


class Unreliable:
    """A client whose server stops answering for a while. What gets through reaches the real one."""

    def __init__(self, client):
        self.client, self.down, self.refused, self.threads = client, False, 0, set()

    def __getattr__(self, name):
        self.threads.add(threading.current_thread())
        if self.down:
            self.refused += 1
            raise ConnectionError("no answer")
        return getattr(self.client, name)


def test_a_server_that_stops_answering_blocks_nothing_and_loses_nothing(settings, tmp_path):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    server = Unreliable(run.client)
    spool = Spool(tmp_path, run.id)
    sender = Sender(server, spool, first_wait_s=0.05)
    spool.put_metrics({"loss": 1.0}, 1)
    wait_until(lambda: not spool.waiting(), "the first record is sent")
    server.down = True
    for step in range(2, 50):
        spool.put_metrics({"loss": float(step)}, step)
    spool.put_artifact(b"\x89PNG", "pictures/a.png")
    wait_until(lambda: server.refused > 2, "the sender tries again")
    assert len(spool.waiting()) == 49
    server.down = False
    assert sender.close(240) == 0
    assert steps(run.client, run.id, "loss") == list(range(1, 50))
    assert [a.path for a in run.client.list_artifacts(run.id, "pictures")] == ["pictures/a.png"]
    assert not spool.folder.exists()
    assert threading.main_thread() not in server.threads  # who records never waits for the server


def test_repeated_steps_are_logged_once_even_if_the_server_was_down(settings, tmp_path):
    """The records of a killed worker and of its successor are sent in one batch."""
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    spool = Spool(tmp_path, run.id)
    for step in (10, 20, 30, 20, 30, 40):
        spool.put_metrics({"loss": float(len(spool.waiting()))}, step)
    send_records(run.client, spool, {})
    history = run.client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 0.0), (20, 1.0), (30, 2.0), (40, 5.0)]


def test_more_metrics_than_mlflow_takes_in_one_call_are_sent(settings, tmp_path):
    """People are labels by the thousand, and each label has its variation."""
    values = {f"variation.person_{number:04}": float(number) for number in range(2_500)}
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        run.log_metrics({"before": 1.0}, step=0)
        run.log_metrics(values, step=0)
        run.log_metrics({"after": 2.0}, step=0)
    assert run.client.get_run(run.id).data.metrics == {"before": 1.0, **values, "after": 2.0}


def test_a_refused_record_blocks_nothing(settings, tmp_path, capsys):
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    spool = Spool(tmp_path, run.id)
    spool.put_tags({"no\nname?": "x" * 10})
    spool.put_metrics({"before": 1.0}, 1)
    spool.put_metrics({"kid (2)": 1.0}, 1)
    spool.put_metrics({"loss": 1.0}, 1)
    send_records(MlflowClient(tracking.tracking_uri(settings)), spool, {})
    assert steps(run.client, run.id, "before") == steps(run.client, run.id, "loss") == [1]
    assert not spool.waiting()
    assert capsys.readouterr().err.count("refuses") == 2


def test_damaged_records_block_nothing(settings, tmp_path, capsys):
    """A loss of power may leave files empty, and the next job sends what is left of a dead one."""
    with tracking.start_run(settings, "r", job="test", params={}) as run:
        pass
    spool = Spool(tmp_path, run.id)
    spool.put_tags({"first": "1"})
    spool.put_image(b"", "samples", 1)
    spool.put_metrics({"before": 1.0}, 1)
    spool.put_metrics({"lost": 1.0}, 1)
    spool.put_metrics({"loss": 1.0}, 1)
    for number in (0, 3):
        spool.waiting()[number].write_bytes(b"")
    send_records(run.client, spool, {})
    assert steps(run.client, run.id, "before") == steps(run.client, run.id, "loss") == [1]
    assert not spool.waiting_files()
    assert capsys.readouterr().err.count("damaged") == 3


def test_records_stay_in_order_when_the_clock_is_set_back(tmp_path, monkeypatch):
    spool = Spool(tmp_path, "run")
    for number, now in enumerate((2000, 1000, 3000)):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        spool.put_tags({"number": str(number)})
    kept = [json.loads(path.read_text())["tags"]["number"] for path in spool.waiting()]
    assert kept == ["0", "1", "2"]
