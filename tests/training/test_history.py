"""A run's history survives a storage that fails for a while."""

from raygan.errors import RayganError
from raygan.runtime import storage
from raygan.training.history import History


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


def test_a_record_of_a_collapse_is_json_that_other_programs_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(str(path))
    history.add({"images": 8, "loss": float("nan")})
    history.save()
    assert path.read_text() == '{"images": 8, "loss": null}\n'
    assert History(str(path)).records == [{"images": 8}]


def test_damaged_records_are_left_out(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"images": 8, "loss": 1.0}\n{"images": 16, "lo\n[]\n{"images": 24}\n')
    assert [record["images"] for record in History(str(path)).records] == [8, 24]
    assert f"2 of 4 records in {path} are damaged" in capsys.readouterr().err
