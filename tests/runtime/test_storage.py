"""Files at local paths and URIs. Jobs on a bucket are tested in tests/test_object_store.py."""

import errno
import os

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from ray.train import Checkpoint

from raygan.errors import RayganError
from raygan.runtime import storage


def test_a_local_path_is_taken_as_it_is():
    assert storage.resolve("/some/a?b=c%20") == (pafs.LocalFileSystem(), "/some/a?b=c%20")


def test_a_bucket_is_opened_once():
    query = "?region=us-east-1&endpoint_override=http://127.0.0.1:5000"
    one, path = storage.resolve(f"s3://bucket/some%20where/a#1{query}")
    assert path == "bucket/some where/a#1"
    other, path = storage.resolve(f"s3://bucket{query}")
    assert path == "bucket"
    assert one is other


@pytest.mark.parametrize("address", ["s3://[a]/x", "s3://a[b/x", "nothing://a/b"])
def test_an_address_that_names_no_place_is_refused(address):
    with pytest.raises(RayganError, match=r"^cannot open .*://.*: .+"):
        storage.resolve(address)


def test_a_remote_folder_without_files_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(storage, "open_root", lambda root: (filesystem, ""))
    with pytest.raises(RayganError, match="mock://here/nowhere is not a folder with files"):
        storage.local_folder("mock://here/nowhere")
    assert not (tmp_path / ".cache").exists()


def test_a_file_that_another_job_deletes_first_is_deleted(tmp_path, monkeypatch):
    """Two jobs that begin at once both probe whether the same folder can be written."""
    kept = tmp_path / "kept"

    class Raced:
        """A filesystem in which a file vanishes after it was looked at."""

        type_name = "local"

        def get_file_info(self, path):
            kept.write_text("x")
            info = pafs.LocalFileSystem().get_file_info(path)
            kept.unlink()
            return info

        def __getattr__(self, name):
            return getattr(pafs.LocalFileSystem(), name)

    monkeypatch.setattr(storage, "resolve", lambda address: (Raced(), address))
    storage.delete(str(kept))
    assert storage.read_text(str(kept)) is None
    storage.check_writable(str(tmp_path))


def test_a_checkpoint_that_cannot_be_downloaded_is_reported(tmp_path):
    """Hours of work end with it: the result, a search's winner, a report card."""
    bucket = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    with (
        pytest.raises(RayganError, match="cannot read the checkpoint run/checkpoint_1"),
        storage.files_of(Checkpoint("run/checkpoint_1", filesystem=bucket)),
    ):
        pass


@pytest.mark.parametrize("error", [OSError, pa.ArrowException])  # Azure's without credentials is no OSError
def test_a_storage_that_does_not_answer_is_reported_in_one_line(monkeypatch, error):
    address = "mock://here/folder"

    def broken(*_, **__):
        raise error("gone\nand more")

    class Broken:
        type_name = "mock"
        get_file_info = open_input_file = open_output_stream = create_dir = delete_dir = delete_file = broken

    monkeypatch.setattr(storage, "open_root", lambda root: (Broken(), ""))
    for call in (
        lambda: storage.read_bytes(address),
        lambda: storage.read_json(address),
        lambda: storage.write_bytes(address, b""),
        lambda: storage.list_files(address, "*"),
        lambda: storage.delete_folders(address, "*"),
        lambda: storage.delete(address),
        lambda: storage.local_folder(address),
    ):
        with pytest.raises(RayganError, match=r"mock://here/folder: gone$"):
            call()


def test_what_can_not_be_written_whole_leaves_no_part(tmp_path, monkeypatch):
    class Full(pafs.LocalFileSystem):
        def move(self, source, target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "resolve", lambda address: (Full(), str(tmp_path / "file")))
    with pytest.raises(RayganError, match="its disk is full"):
        storage.write_bytes("file", b"x")
    assert not list(tmp_path.iterdir())


def test_two_writers_of_a_file_do_not_meet(tmp_path, monkeypatch):
    """Two jobs that fetch the same classifier, or measure the same photos."""

    class Slow(pafs.LocalFileSystem):
        def move(self, source, target):
            with monkeypatch.context() as patch:
                patch.setattr(storage, "resolve", lambda address: (pafs.LocalFileSystem(), address))
                storage.write_bytes(target, b"of the other")
            super().move(source, target)

    monkeypatch.setattr(storage, "resolve", lambda address: (Slow(), address))
    storage.write_bytes(str(tmp_path / "file"), b"of one")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"of one"}


def test_a_full_disk_is_said_in_words(monkeypatch):
    class Full:
        type_name = "s3"

        def open_output_stream(self, path):
            raise OSError(f"Error writing bytes to file. Detail: [errno 28] {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(storage, "open_root", lambda root: (Full(), ""))
    with pytest.raises(RayganError, match=r"cannot write mock://here/file: its disk is full: make room$"):
        storage.write_bytes("mock://here/file", b"x")
