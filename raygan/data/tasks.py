"""What `prepare` has Ray's workers do: examine a part of the listing, write shards, score outliers.

A module of its own because a worker imports what its task's module imports: `raygan.data.prepare` with MLflow would
cost every worker a second or more before its first photo.

An answer is a table with a row for each thing done and a column `error`, empty or one line. A failure that was
to be expected (`RayganError`) is an answer too, since Ray would wrap an exception in tracebacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan.data import chunks
from raygan.data.chunks import PixelSettings
from raygan.data.shards import Encoding, write_shard
from raygan.data.sources import Source
from raygan.errors import RayganError
from raygan.runtime import storage


def examine(task: pa.Table, *, folder: str, sources: Sequence[Source], settings: PixelSettings) -> pa.Table:
    """Make one chunk in the folder. task: a part of the listing, and its chunk's name in the column `chunk`.

    The answer's columns: images, and the bytes of their files.
    """

    def work() -> list[dict[str, Any]]:
        table = chunks.build_chunk(task.drop_columns(["chunk"]), sources, settings)
        chunks.write_chunk(storage.join(folder, task["chunk"][0].as_py()), table)
        return [{"images": table.num_rows, "bytes": pc.sum(table["bytes"]).as_py()}]

    return _answer(work)


def write(task: pa.Table, *, output: str, encoding: Encoding) -> pa.Table:
    """Write shards. task: a row for each: its file and split, the chunks' addresses and the rows to take of each.

    The answer's columns: file, images, rows (JSON: images by label), and digest (SHA-256 of the file in hex).
    """
    return _answer(lambda: [_written(shard, output, encoding) for shard in task.to_pylist()])


def outlier_scores(places: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Outlier scores float32 (n,) of photos by their chunks' addresses and rows there (`raygan.data.outliers`)."""
    from raygan.data import outliers

    return outliers.scores(np.concatenate([chunks.read_features(address, rows) for address, rows in places]))


def _written(shard: dict[str, Any], output: str, encoding: Encoding) -> dict[str, Any]:
    """Gather a shard's photos from the chunks, one chunk in memory at a time, and write it."""
    found = [
        chunks.read_photos(address, np.array(rows))
        for address, rows in zip(shard["addresses"], shard["rows"], strict=True)
    ]
    about = pa.concat_tables([table for _, table in found])
    pixels = np.concatenate([pixels for pixels, _ in found])
    digest = write_shard(output, shard["file"], pixels, about, shard["split"], encoding)
    labels, counts = np.unique(about["label"].to_numpy(zero_copy_only=False), return_counts=True)
    return {
        "file": shard["file"],
        "images": about.num_rows,
        "rows": json.dumps(dict(zip(labels.tolist(), counts.tolist(), strict=True))),
        "digest": digest,
    }


def _answer(work: Callable[[], list[dict[str, Any]]]) -> pa.Table:
    try:
        return pa.Table.from_pylist([{**row, "error": ""} for row in work()])
    except RayganError as error:
        return pa.table({"error": [str(error)]})
