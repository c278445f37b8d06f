"""The comparison step of `prepare` on synthetic records: seconds and memory, which must grow linearly with the photos.

A tenth of the photos are copies of others, a tenth near-duplicates; paths, labels and sizes are as in large folders.
Outliers are not scored: their cost is linear by construction (`raygan.data.outliers`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan.benchmarks.processes import in_process
from raygan.data import chunks
from raygan.data.duplicates import Verdicts
from raygan.models.hardware import peak_resident_bytes

#: Share of copies, and of near-duplicates.
_COPIES = 0.1


def synthetic_records(count: int) -> pa.Table:
    """Records of `count` photos."""
    random = np.random.default_rng(0)
    words = random.integers(0, 2**64, count, dtype=np.uint64)
    some = int(count * _COPIES)
    near, originals = random.permutation(count)[: 2 * some].reshape(2, -1)
    words[near] = words[originals] ^ (np.uint64(1) << random.integers(0, 64, some, dtype=np.uint64))
    hashes = random.bytes(32 * count).hex()
    digests = pa.Array.from_buffers(
        pa.string(),
        count,
        [None, pa.py_buffer(np.arange(0, 64 * count + 1, 64, dtype=np.int32)), pa.py_buffer(hashes.encode())],
    )
    same = np.arange(count)
    copies, copied = random.permutation(count)[: 2 * some].reshape(2, -1)
    same[copies] = copied
    numbers = pc.cast(pa.array(np.arange(count)), pa.string())
    columns = {
        "source": pa.array(np.zeros(count, np.int32)),
        "path": pc.binary_join_element_wise("cat/photo-", numbers, ".jpg", ""),
        "label": pa.array(["cat", "dog"]).take(pa.array(random.integers(0, 2, count))),
        "ignored": pa.array(np.zeros(count, bool)),
        "width": pa.array(random.integers(200, 4000, count, dtype=np.int32)),
        "height": pa.array(random.integers(200, 4000, count, dtype=np.int32)),
        "detail": pa.array([""]).take(pa.array(np.zeros(count, np.int8))),
        "hash": digests.take(pa.array(same)),
        "phash": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(8), count, [None, pa.py_buffer(words.astype(">u8"))]
        ).cast(pa.binary()),
    }
    return pa.table(
        [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in chunks.RECORD],
        schema=chunks.RECORD,
    )


def compare(count: int) -> dict[str, float]:
    """Seconds and peak MB of this process to judge `count` photos."""
    records = synthetic_records(count)
    began = time.perf_counter()
    verdicts = Verdicts(records)
    verdicts.reject_duplicates()
    verdicts.reject_near_duplicates(6)
    table = verdicts.table(np.empty((0, 3), np.int64), 0.05)
    seconds = time.perf_counter() - began
    kept = table.num_rows - table["split"].null_count
    return {"seconds": seconds, "peak_megabytes": peak_resident_bytes() / 1e6, "kept": float(kept)}


def measure(counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Measure each number of photos in a process of its own, printing as it goes."""
    rows = {}
    for count in counts:
        rows[str(count)] = row = in_process("comparing photos", compare, count)
        print(
            f"{count:12,} photos compared in {row['seconds']:6.1f} s  {1e6 * row['seconds'] / count:5.1f} us and "
            f"{1e3 * row['peak_megabytes'] / count:5.2f} kB each  peak {row['peak_megabytes']:6.0f} MB",
            flush=True,
        )
    return rows
