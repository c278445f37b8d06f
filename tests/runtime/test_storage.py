"""Addresses as text, and files by address; tests/test_object_store.py has the jobs on a bucket."""

import pyarrow.fs as pafs
import pytest

from raygan.addresses import password
from raygan.errors import RayganError
from raygan.runtime import storage

QUERY = "?region=us-east-1&endpoint_override=http://127.0.0.1:5000"


@pytest.mark.parametrize("query", ["", QUERY])
def test_what_is_in_a_folder_has_the_folders_query(query):
    folder = f"s3://bucket/some/folder{query}"
    assert storage.join(folder, "runs", "a.json") == f"s3://bucket/some/folder/runs/a.json{query}"
    assert storage.parent(folder) == storage.parent(f"s3://bucket/some/folder/{query}") == f"s3://bucket/some{query}"
    assert storage.name(folder) == storage.name(f"s3://bucket/some/folder/{query}") == "folder"


def test_local_paths_have_no_query():
    assert storage.join("/some/a?b=c", "d") == "/some/a?b=c/d"
    assert storage.parent("/some/a?b=c") == "/some"
    assert storage.name("/some/a?b=c") == "a?b=c"
    assert storage.resolve("/some/a?b=c%20") == (pafs.LocalFileSystem(), "/some/a?b=c%20")


def test_a_glob_is_no_query():
    assert storage.join("s3://bucket/a?.jpg", "b") == "s3://bucket/a?.jpg/b"


def test_a_bucket_is_opened_once():
    one, path = storage.resolve(f"s3://bucket/some%20where/a#1{QUERY}")
    assert path == "bucket/some where/a#1"
    other, path = storage.resolve(f"s3://bucket{QUERY}")
    assert path == "bucket"
    assert one is other


@pytest.mark.parametrize(
    ("address", "shown", "secret"),
    [
        ("s3://bucket/a?region=x", "s3://bucket/a?region=x", None),
        ("s3://key:hush@bucket/a", "s3://bucket/a", "hush"),
        ("s3://bucket/a?region=x&secret_key=hush&b=c", "s3://bucket/a?region=x&secret_key=...&b=c", "hush"),
        ("abfss://box@account.host/a", "abfss://box@account.host/a", None),
        ("https://me@host", "https://host", None),
        ("s3://key:a/b+c@bucket/a", "s3://bucket/a", "a/b+c"),
        ("mysql://me:hu#s?h@host/db", "mysql://host/db", "hu#s?h"),
        ("mysql://me:p@ss@host:3306/a@b", "mysql://host:3306/a@b", "p@ss"),
        ("mysql://me:1234@host/db", "mysql://host/db", "1234"),
        ("hdfs://host:8020/a@b", "hdfs://host:8020/a@b", None),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c", None),
        ("/a@b:c", "/a@b:c", None),
    ],
)
def test_secrets_are_found_and_left_out(address, shown, secret):
    assert storage.public(address) == shown
    assert password(address) == secret


def test_a_remote_folder_without_files_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(storage, "_opened", lambda root: (filesystem, ""))
    with pytest.raises(RayganError, match="mock://here/nowhere is no folder with files"):
        storage.local_folder("mock://here/nowhere")
    assert not (tmp_path / ".cache").exists()


def test_a_storage_that_does_not_answer_is_said_in_one_line(monkeypatch):
    address = "mock://here/folder"

    def broken(*_, **__):
        raise OSError("gone\nand more")

    class Broken:
        type_name = "mock"
        get_file_info = open_input_file = open_output_stream = create_dir = delete_dir = broken

    monkeypatch.setattr(storage, "_opened", lambda root: (Broken(), ""))
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
