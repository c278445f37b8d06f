"""What a training tells on its way survives a storage that fails for a while."""

from types import SimpleNamespace

from raygan.errors import RayganError
from raygan.runtime import storage
from raygan.training.events import Picture
from raygan.training.history import History
from raygan.training.train import _Follower


def refuse(*_):
    raise RayganError("cannot write there: slow down")


def test_records_that_could_not_be_written_are_written_with_the_next_ones(tmp_path, monkeypatch, capsys):
    history = History(str(tmp_path / "metrics.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", refuse)
        for images in (8, 16):
            history.add({"images": images})
            history.save()
    assert capsys.readouterr().err == "warning: cannot write there: slow down\n"
    history.save()
    assert [record["images"] for record in History(str(tmp_path / "metrics.jsonl")).records] == [8, 16]


class Events(list):
    """A queue whose events have come."""

    def get(self, timeout):
        return self.pop(0)

    def get_nowait_batch(self, count):
        return [self.pop(0) for _ in range(count)]

    def qsize(self):
        return len(self)


def test_a_picture_that_cannot_be_read_does_not_end_a_training(tmp_path, capsys):
    (tmp_path / "there.png").write_bytes(b"picture")
    logged = {}
    training = SimpleNamespace(
        settings=SimpleNamespace(batch_size=8),
        schedule=SimpleNamespace(total=2, minutes=1.0),
        trial=object(),
        run=SimpleNamespace(folder=str(tmp_path)),
        log=SimpleNamespace(log_bytes=lambda content, path: logged.update({path: content})),
        history=History(str(tmp_path / "metrics.jsonl")),
    )
    follower = _Follower(training)
    follower.follow(Events([Picture("gone.png"), Picture("there.png"), Picture("gone.png")]), wait_s=0)
    assert logged == {"there.png": b"picture"}
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: MLflow gets no gone.png: ")
