"""The Ray tasks of `prepare`: examine a slice of the listing, write shards, score outliers.

They have a module of their own because a worker imports everything that its task's module imports: MLflow, by way of
`raygan.data.prepare`, would cost every worker a second or more before its first photo.

An answer is a table with a row per item done, and a column `error`, which is empty or one line. An expected failure
(`RayganError`) is an answer too, because Ray would wrap an exception in tracebacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan.data import chunks
from raygan.data.arrow import counts
from raygan.data.chunks import PixelSettings
from raygan.data.shards import Encoding, write_shard
from raygan.data.sources import Source
from raygan.errors import RayganError
from raygan.runtime import storage


def examine(task: pa.Table, *, folder: str, sources: Sequence[Source], settings: PixelSettings) -> pa.Table:
    """Make one chunk.

    Args:
        task: photos of the listing, with their keys in the column `key`, and the chunk's name in the column `chunk`.
        folder: address of the work folder.
        sources: the inputs.
        settings: what the chunk's content depends on.

    Returns:
        Columns `images` and `bytes` (of their files).
    """

    def work() -> list[dict[str, Any]]:
        table = chunks.build_chunk(task.drop_columns(["chunk", "key"]), sources, settings)
        chunks.write_chunk(storage.join(folder, task["chunk"][0].as_py()), table, task["key"])
        return [{"images": table.num_rows, "bytes": pc.sum(table["bytes"]).as_py()}]

    return _answer(work)


def write(task: pa.Table, *, output: str, encoding: Encoding) -> pa.Table:
    """Write shards.

    Args:
        task: a row per shard: its file and split, the chunks' addresses, the rows to take from each, and the places
            of these in the shard.
        output: address of the data set.
        encoding: of the images in the shards.

    Returns:
        Columns `file`, `images`, `rows` (JSON: images by label) and `digest` (SHA-256 of the file in hex).
    """
    return _answer(lambda: [_written(shard, output, encoding) for shard in task.to_pylist()])


#: Where photos are: chunks' addresses, rows in each, and the photos' numbers among all that are meant.
Places = Sequence[tuple[str, np.ndarray, np.ndarray]]


def features(places: Places) -> np.ndarray:
    """Feature vectors, float16 (n, DIM), of photos, in the order of their numbers."""
    order = np.argsort(np.concatenate([numbers for *_, numbers in places]))
    return np.concatenate([chunks.read_features(address, rows) for address, rows, _ in places])[order]


def outlier_scores(places: Places, others: np.ndarray | None, own: np.ndarray | None) -> np.ndarray:
    """Outlier scores, float32 (n,), of photos; `others` and `own` are those of `outliers.scores`."""
    from raygan.data import outliers

    return outliers.scores(features(places), others, own)


def _written(shard: dict[str, Any], output: str, encoding: Encoding) -> dict[str, Any]:
    """Gather a shard's photos from the chunks, with one chunk in memory at a time, and write it."""
    found = [
        chunks.read_photos(address, np.array(rows))
        for address, rows in zip(shard["addresses"], shard["rows"], strict=True)
    ]
    order = np.argsort(np.concatenate(shard["places"]))
    about = pa.concat_tables([table for _, table in found]).take(pa.array(order))
    pixels = np.concatenate([pixels for pixels, _ in found])[order]
    digest = write_shard(output, shard["file"], pixels, about, shard["split"], encoding)
    return {
        "file": shard["file"],
        "images": about.num_rows,
        "rows": json.dumps(counts(about["label"]), sort_keys=True),
        "digest": digest,
    }


def _answer(work: Callable[[], list[dict[str, Any]]]) -> pa.Table:
    try:
        return pa.Table.from_pylist([{**row, "error": ""} for row in work()])
    except RayganError as error:
        return pa.table({"error": [str(error)]})
