"""Columns as arrays, without copies where none is needed: shards are read at the speed of memory."""

import pyarrow as pa
import pytest

from raygan.data.arrow import whole


def test_a_column_of_one_chunk_is_not_copied():
    column = pa.chunked_array([["a", "b", "c"]])
    assert whole(column).buffers()[2].address == column.chunk(0).buffers()[2].address


@pytest.mark.parametrize("chunks", [[], [["a"]], [["a", None], ["b"]], [[], ["c"]]])
def test_a_column_is_whole(chunks):
    column = pa.chunked_array(chunks, pa.string())
    assert whole(column).to_pylist() == column.to_pylist()
    assert whole(column.slice(1)).to_pylist() == column.to_pylist()[1:]
