"""Files on Google's storage, which an emulator plays."""

from __future__ import annotations

import pytest

from raygan.data.listing import find_photos
from raygan.errors import RayganError
from raygan.runtime import storage
from tests.helpers import google_storage


@pytest.fixture(scope="module")
def folder():
    """The address of an empty folder in a bucket."""
    with google_storage() as bucket:
        yield storage.join(bucket, "folder")


def test_files_are_written_read_and_listed(folder):
    runs = storage.join(folder, "runs")
    storage.check_writable(runs)
    assert storage.read_json(storage.join(runs, "a", "none.json")) is None
    storage.write_json(storage.join(runs, "a", "run.json"), {"state": "running"})
    storage.write_bytes(storage.join(runs, "a", "ü #1?.bin"), b"x" * 100_000)
    assert storage.read_json(storage.join(runs, "a", "run.json")) == {"state": "running"}
    assert storage.read_bytes(storage.join(runs, "a", "ü #1?.bin")) == b"x" * 100_000
    assert sorted(storage.entries(storage.join(runs, "a"))) == ["run.json", "ü #1?.bin"]


def test_folders_that_nobody_made_are_listed_and_deleted(folder):
    trials = storage.join(folder, "trials")
    for name in ("a.1", "a.2", "b"):
        storage.write_bytes(storage.join(trials, name, "checkpoint", "weights"), b"1")
    storage.write_bytes(storage.join(trials, "notes"), b"1")
    assert [storage.name(found) for found in storage.list_folders(trials, "a.*")] == ["a.1", "a.2"]
    assert [storage.name(found) for found in storage.list_files(trials, "*")] == ["notes"]
    storage.delete_folders(trials, "a.*/check*")
    assert [storage.name(found) for found in storage.list_folders(trials, "*")] == ["b"]
    storage.delete(trials)
    storage.delete(trials)
    assert not storage.list_folders(folder, "trials")


def test_photos_are_found(folder):
    photos = storage.join(folder, "photos")
    for path in ("cat/1.jpg", "dog/1.jpg"):
        storage.write_bytes(storage.join(photos, *path.split("/")), b"\xff\xd8\xff")
    (source,) = (listing := find_photos([photos])).sources
    assert listing.photos["label"].to_pylist() == ["cat", "dog"]
    assert source.read(b"cat/1.jpg") == b"\xff\xd8\xff"


def test_storage_that_does_not_answer_is_reported_within_seconds():
    """Nobody listens on port 1, and Google's client would try for a minute."""
    address = "gs://anonymous@bucket/shards?scheme=http&endpoint_override=127.0.0.1:1"
    with pytest.raises(
        RayganError, match=r"cannot open gs://bucket/shards.*: .*connect.*: check the network"
    ) as raised:
        storage.read_json(address)
    assert "\n" not in str(raised.value)
