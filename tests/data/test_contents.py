"""The bytes of a slice of the listing."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygan.data.contents import contents
from raygan.data.filters import Rules
from raygan.data.listing import find_photos
from raygan.data.settings import Limits
from raygan.data.sources import open_source
from tests.data.messy import encoded, picture


def test_rows_with_gaps_between_them_are_the_listed_ones(tmp_path):
    """A job that resumes after one with another --chunk-images examines such slices."""
    photos = [encoded(picture(number), "PNG") for number in range(12)]
    pq.write_table(pa.table({"image": photos}), tmp_path / "photos.parquet", row_group_size=5)
    (tmp_path / "alone.png").write_bytes(photos[0])
    source = open_source(str(tmp_path), "image", "")
    numbers = [0, 1, 4, 5, 6, 9, 11]
    rows = [{"source": 0, "path": b"alone.png", "row": -1, "size": 1}]
    rows += [{"source": 0, "path": b"photos.parquet", "row": number, "size": 0} for number in numbers]
    found = list(contents(rows, [source], Rules((), Limits())))
    assert found == [photos[0], *(photos[number] for number in numbers)]


def test_a_column_of_labels_in_bytes_is_not_read_as_photos(tmp_path):
    """As some databases write text."""
    photos = [encoded(picture(number), "PNG") for number in range(4)]
    pq.write_table(pa.table({"kind": [b"cat", b"dog"] * 2, "content": photos}), tmp_path / "photos.parquet")
    listing = find_photos([str(tmp_path)], label_column="kind")
    assert listing.photos["label"].to_pylist() == ["cat", "dog"] * 2
    assert list(contents(listing.photos.to_pylist(), listing.sources, Rules((), Limits()))) == photos


def test_rows_that_are_gone_since_they_were_listed_are_unreadable(tmp_path):
    photos = [encoded(picture(number), "PNG") for number in range(4)]
    pq.write_table(pa.table({"image": photos[:2]}), tmp_path / "photos.parquet")
    source = open_source(str(tmp_path), "", "")
    rows = [{"source": 0, "path": b"photos.parquet", "row": number, "size": 0} for number in range(4)]
    *there, third, fourth = contents(rows, [source], Rules((), Limits()))
    assert there == photos[:2]
    assert third.reason == fourth.reason == "unreadable"
    assert third.detail == fourth.detail == "gone since it was listed"


@pytest.mark.parametrize("error", [OSError("AWS Error NETWORK_CONNECTION"), OSError(5, "AWS Error NETWORK_CONNECTION")])
def test_the_reason_of_what_can_not_be_read_is_the_systems_or_the_stores(tmp_path, monkeypatch, error):
    """Arrow's errors may have no number of the system's."""
    (tmp_path / "a.png").write_bytes(b"")
    source = open_source(str(tmp_path), "", "")

    def read(*_):
        raise error

    monkeypatch.setattr(type(source), "read", read)
    row = {"source": 0, "path": b"a.png", "row": -1, "size": 1}
    (found,) = contents([row], [source], Rules((), Limits()))
    assert found.detail == "cannot be read: AWS Error NETWORK_CONNECTION"
