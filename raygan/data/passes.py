"""The passes of `prepare` over the photos: examine, compare, survey, write.

`Passes` holds what they share: which photos are in which chunk. Pixels stay in the chunks; the driver sees records,
counts, and the few photos that it draws.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from raygan.data import chunks, duplicates, outliers, report, sheets, tasks, variation
from raygan.data.chunks import PixelSettings
from raygan.data.listing import Listing
from raygan.data.settings import PrepareSettings
from raygan.data.shards import MANIFEST, Manifest, ShardFile, Split
from raygan.errors import RayganError
from raygan.runtime import cluster, storage

#: Most bytes of pixels in a shard, by default.
_SHARD_BYTES = 32e6

#: Even small data sets are cut into this many shards, one for each of a few workers, but not below this many images.
_SHARDS_AT_LEAST, _IMAGES_AT_LEAST = 8, 64

#: Photos that the variation of a label is measured from: enough for two digits.
_SURVEYED = 2000

#: Most shards per task, which reports only once it has written all of them.
_SHARDS_PER_TASK = 16

#: Tasks submitted to Ray at a time, unless there are more cores: its queues must stay short.
_TASKS_WAITING = 1000


@dataclass
class Passes:
    """One preparation under way.

    Attributes:
        folder: address of the work folder.
    """

    settings: PrepareSettings
    pixel_settings: PixelSettings
    listing: Listing
    folder: str

    def __post_init__(self) -> None:
        size, photos = self.settings.chunk_images, self.listing.photos
        self.parts = [photos.slice(start, size) for start in range(0, photos.num_rows, size)]
        self.names = [
            chunks.name_of(number, part, self.listing.sources, self.pixel_settings)
            for number, part in enumerate(self.parts)
        ]

    def examine(self) -> None:
        """Make the chunks that don't exist yet."""
        there = _files_in(self.folder)
        missing = [number for number, name in enumerate(self.names) if name not in there]
        found = len(self.names) - len(missing)
        if found:
            print(f"resuming: {found} of {len(self.names)} chunks are there, {len(missing)} are still to do")
        tables = [self._part(number) for number in missing]
        given = {"folder": self.folder, "sources": self.listing.sources, "settings": self.pixel_settings}
        total = sum(table.num_rows for table in tables)
        with tqdm(total=total, desc="examining photos", unit=" images", smoothing=0.1) as bar:
            megabytes, start = 0.0, time.monotonic()
            for done in _stream(tables, tasks.examine, given):
                megabytes += done["bytes"] / 1e6
                bar.set_postfix_str(f"{megabytes / (time.monotonic() - start):.1f} MB/s", refresh=False)
                bar.update(done["images"])

    def compare(self) -> tuple[pa.Table, dict[str, Any]]:
        """Compare the photos with each other: records with final verdicts and splits, and notes on outliers."""
        skip, distance = self.settings.skip, self.settings.hash_distance
        verdicts = duplicates.Verdicts(chunks.read_records([storage.join(self.folder, name) for name in self.names]))
        if "duplicate" not in skip:
            verdicts.reject_duplicates()
        if "near_duplicate" not in skip:
            pairs = verdicts.reject_near_duplicates(verdicts.close_pairs(distance))
        notes = self.reject_outliers(verdicts) if "outlier" not in skip else {}
        if "near_duplicate" in skip:
            # Only links between kept photos: if a link went through a rejected photo, its neighbors would be parted.
            pairs = verdicts.close_pairs(distance, all_pairs=False)
        return verdicts.table(pairs, self.settings.validation), notes

    def reject_outliers(self, verdicts: duplicates.Verdicts) -> dict[str, Any]:
        """Reject each label's outliers, scored in one task per label.

        Returns:
            For each label, the number of outliers, the threshold and the median score, or why it was skipped.
        """
        import ray

        score = ray.remote(tasks.outlier_scores)
        photos = verdicts.alive_by_label()
        waiting = {
            label: score.remote([place[:2] for place in self.places(rows)])
            for label, rows in photos.items()
            if len(rows) >= outliers.MIN_PHOTOS
        }
        notes: dict[str, Any] = {}
        for label, rows in photos.items():
            if label not in waiting:
                notes[label] = {"skipped": f"{len(rows)} photos are too few for statistics"}
                continue
            scores = cluster.fetch(waiting[label])
            threshold = outliers.threshold(scores, self.settings.outlier_deviations)
            found = verdicts.reject_outliers(rows, scores, threshold)
            notes[label] = {"found": found, "threshold": threshold, "median": float(np.median(scores))}
        return notes

    def survey(self, records: pa.Table) -> dict[str, float | None]:
        """The variation of each label's kept photos, from about `_SURVEYED` of them if there are more."""
        labels = np.array(records["label"].to_pylist(), dtype=object)
        kept = np.array([where is not None for where in records["split"].to_pylist()])
        found: dict[str, float | None] = {}
        for label in sorted(set(labels[kept])):
            total, count = np.zeros(variation.LENGTH), 0
            for address, rows, _ in self.places(np.flatnonzero(kept & (labels == label))):
                maps = chunks.read_layouts(address, rows)
                total, count = total + maps.sum(axis=0), count + len(maps)
                if count >= _SURVEYED:
                    break
            found[label] = variation.variation(total, count)
        return found

    def write(
        self, records: pa.Table, summary: dict[str, Any], configuration: dict[str, Any], inputs: str
    ) -> dict[str, bytes]:
        """Write the shards, the report, the rejected photos, the pictures and, last, the manifest.

        Args:
            records: from `compare`.
            summary: the report.
            configuration: of the manifest.
            inputs: of the manifest.

        Returns:
            The pictures: PNG files by name.
        """
        output = self.settings.output
        stale = _shards_in(output)
        storage.delete(storage.join(output, MANIFEST))
        with ThreadPoolExecutor(1) as painter:  # the driver draws while the workers write
            drawn = painter.submit(sheets.pictures, records, self.pixels)
            shards, fingerprint = self._write_shards(records)
            pictures = drawn.result()
        storage.delete(storage.join(output, report.PICTURES))
        report.write(output, records, self.listing, summary, pictures)
        for name in sorted(stale - {shard.file for shard in shards}):
            storage.delete(storage.join(output, name))
        manifest = Manifest(
            image_size=self.settings.image_size,
            encoding=self.settings.encoding,
            classes=sorted({label for shard in shards for label in shard.rows}),
            shards=shards,
            fingerprint=fingerprint,
            configuration=configuration,
            inputs=inputs,
        )
        storage.write_json(storage.join(output, MANIFEST), manifest.model_dump(mode="json"))
        return pictures

    def pixels(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        """Pixels (S, S, 3), by index, of those of the given photos that were decoded; holds one chunk at a time."""
        found: dict[int, np.ndarray] = {}
        for address, rows, numbers in self.places(indices):
            decoded = np.array([value != "" for value in chunks.read_records([address])["hash"].to_pylist()])[rows]
            found.update(zip(numbers[decoded].tolist(), chunks.read_pixels(address, rows[decoded]), strict=True))
        return found

    def places(self, indices: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Where the given photos are: for each chunk with any, its address, their rows in it, and their indices."""
        size = self.settings.chunk_images
        return [
            (storage.join(self.folder, self.names[number]), indices[chosen] % size, indices[chosen])
            for number in np.unique(indices // size)
            if (chosen := indices // size == number).any()
        ]

    def _part(self, number: int) -> pa.Table:
        """A block for Ray Data: a slice of the listing, and the name of the chunk to make from it."""
        part = self.parts[number]
        return part.append_column("chunk", pa.array([self.names[number]] * part.num_rows))

    def _shard(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A shard for Ray Data: its name, and where its photos are."""
        places = self.places(plan["photos"])
        addresses, rows = [place[0] for place in places], [place[1].tolist() for place in places]
        return {"file": plan["file"], "split": plan["split"], "addresses": addresses, "rows": rows}

    def _write_shards(self, records: pa.Table) -> tuple[list[ShardFile], str]:
        """Write the shards; returns them, and a fingerprint of their content."""
        plans = _shard_plans(records["split"].to_pylist(), self.settings)
        cores = max(1, int(cluster.total("CPU")))
        count = max(len(plans) // _SHARDS_PER_TASK, min(len(plans), 2 * cores))
        # Every n-th shard: the last ones, for validation, may be small.
        tables = [pa.Table.from_pylist([self._shard(plan) for plan in plans[n::count]]) for n in range(count)]
        given = {"output": self.settings.output, "encoding": self.settings.encoding}
        with tqdm(total=sum(len(plan["photos"]) for plan in plans), desc="writing shards", unit=" images") as bar:
            done = {}
            for answer in _stream(tables, tasks.write, given):
                done[answer["file"]] = answer
                bar.update(answer["images"])
        shards = [
            ShardFile(file=plan["file"], split=plan["split"], rows=json.loads(done[plan["file"]]["rows"]))
            for plan in plans
        ]
        digests = "".join(done[shard.file]["digest"] for shard in shards)
        return shards, hashlib.sha256(digests.encode()).hexdigest()


def _stream(
    tables: Sequence[pa.Table], task: Callable[..., pa.Table], given: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Run a task of `raygan.data.tasks` on each table with Ray Data, and yield the rows of its answers as they come.

    given: the task's other arguments. Raises RayganError if a task fails.
    """
    if not tables:
        return
    import ray

    data = ray.data.from_arrow(list(tables))
    answers = data.map_batches(
        task,
        fn_kwargs=given,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        concurrency=min(len(tables), max(_TASKS_WAITING, 4 * int(cluster.total("CPU")))),
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            for answer in batch.to_pylist():
                if answer["error"]:
                    raise RayganError(answer["error"])
                yield answer
    except ray.exceptions.RayError as error:
        raise cluster.failure(error) from error


def _shard_plans(splits: Sequence[Split | None], settings: PrepareSettings) -> list[dict[str, Any]]:
    """Which photos go to which shard: consecutive kept photos of a split, in shards of nearly equal size."""
    most = settings.shard_images or max(1, min(1024, int(_SHARD_BYTES / (3 * settings.image_size**2))))
    plans = []
    of_photo = np.array([split or "" for split in splits])
    for split in ("train", "validation"):
        rows = np.flatnonzero(of_photo == split)
        count = max(-(-len(rows) // most), min(_SHARDS_AT_LEAST, len(rows) // _IMAGES_AT_LEAST), 1)
        for number, part in enumerate(np.array_split(rows, count)):
            if len(part):
                plans.append({"file": f"{split}-{number:05d}.parquet", "split": split, "photos": part})
    return plans


def _files_in(address: str) -> set[str]:
    return {storage.name(file) for file in storage.list_files(address, "*")}


def _shards_in(output: str) -> set[str]:
    """Names of the shards left by an earlier run, finished or not."""
    return {n for n in _files_in(output) if n.startswith(("train-", "validation-")) and n.endswith(".parquet")}
