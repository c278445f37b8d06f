"""The passes of `prepare` over the photos: examine, compare, survey, write.

`Passes` holds what they share: which photos are in which chunk. Pixels stay in the chunks; the driver sees records,
counts, and the few photos that it draws.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from raygan import pictures
from raygan.data import chunks, duplicates, outliers, report, sheets, streaming, tasks, variation
from raygan.data.arrow import whole
from raygan.data.chunks import PixelSettings
from raygan.data.listing import Listing
from raygan.data.locations import Locations
from raygan.data.settings import PrepareSettings
from raygan.data.shards import MANIFEST, Manifest, ShardFile
from raygan.runtime import cluster, storage

#: Maximum bytes of pixels in a shard, by default.
_SHARD_BYTES = 32e6

#: Even small data sets are cut into this many shards, one for each of a few workers, but not below this many images.
_SHARDS_AT_LEAST, _IMAGES_AT_LEAST = 8, 64

#: Maximum bytes of photos that a task examines, so that even a few large photos keep all cores busy.
_TASK_BYTES = 64e6

#: Photos that the variation of a label is measured from: enough for two digits.
_SURVEYED = 2000

#: Photos measured of each `chunk_images` photos: an eighth gives the same variation as all.
_OF_EACH = 64

#: The filters that `compare` applies.
_COMPARISONS = ["duplicate", "near_duplicate", "outlier"]

#: Maximum number of shards per task, which reports only once it has written all of them.
_SHARDS_PER_TASK = 16


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
        photos = self.listing.photos
        keys = chunks.keys_of(photos, self.listing.sources, self.pixel_settings)
        self.where = Locations(self.folder, keys, photos["source"])
        with_network = bool(self.pixel_settings.network or self.pixel_settings.detector)
        self._run = functools.partial(streaming.run, with_network=with_network)

    def examine(self) -> None:
        """Make chunks of the photos that no chunk has yet."""
        self.where.find([storage.name(file) for file in storage.list_files(self.folder, "chunk-*.parquet")])
        missing = np.flatnonzero(self.where.chunk < 0)
        found = len(self.where.keys) - len(missing)
        if found:
            print(f"resuming: {found:,} of {len(self.where.keys):,} photos are known, {len(missing):,} are still to do")
        parts = _tasks(missing, self.listing.photos["size"].to_numpy(), self.settings.chunk_images)
        tables = [self._part(part) for part in parts]
        given = {"folder": self.folder, "sources": self.listing.sources, "settings": self.pixel_settings}
        total = sum(table.num_rows for table in tables)
        with tqdm(total=total, desc="examining photos", unit=" images", smoothing=0.1) as bar:
            megabytes, start = 0.0, time.monotonic()
            for done in self._run(tables, tasks.examine, given):
                megabytes += done["bytes"] / 1e6
                bar.set_postfix_str(f"{megabytes / (time.monotonic() - start):.1f} MB/s", refresh=False)
                bar.update(done["images"])

        for part in parts:
            self.where.locate(part, chunks.name_of(self.where.keys[part]))

    def compare(self) -> tuple[pa.Table, dict[str, Any]]:
        """Compare the photos with each other: records with final verdicts and splits, and notes on outliers."""
        skip, distance = self.settings.skip, self.settings.hash_distance
        verdicts = duplicates.Verdicts(self.where.records())
        if "duplicate" not in skip:
            verdicts.reject_duplicates()
        if "near_duplicate" not in skip:
            verdicts.reject_near_duplicates(distance)
        notes = self.reject_outliers(verdicts) if "outlier" not in skip else {}
        # Only links between kept photos: if a link went through a rejected photo, its neighbors would be parted.
        pairs = verdicts.links(distance) if "near_duplicate" in skip else np.empty((0, 3), np.int64)
        return verdicts.table(pairs, self.settings.validation), notes

    def reject_outliers(self, verdicts: duplicates.Verdicts) -> dict[str, Any]:
        """Reject each label's outliers.

        Returns:
            For each label, the number of outliers, the threshold and the median score, or why it was skipped.
        """
        photos = verdicts.alive_by_label()
        waiting = {label: self._score(rows) for label, rows in photos.items() if len(rows) >= outliers.MIN_PHOTOS}
        notes: dict[str, Any] = {}
        for label, rows in photos.items():
            if label not in waiting:
                notes[label] = {"skipped": f"{len(rows)} photos are too few for statistics"}
                continue
            scores = np.concatenate(cluster.fetch(waiting[label]))
            threshold = outliers.threshold(scores, self.settings.outlier_deviations)
            found = verdicts.reject_outliers(rows, scores, threshold)
            notes[label] = {"found": found, "threshold": threshold, "median": float(np.median(scores))}
        return notes

    def _score(self, rows: np.ndarray) -> list[Any]:
        """Start tasks that score a label's photos, which are in order; references to their scores, in order."""
        import ray

        score = ray.remote(tasks.outlier_scores)
        if len(rows) <= outliers.PART:
            return [score.remote(self.where.places(rows), None, None)]
        chosen = pictures.spread(outliers.EXACT, len(rows))
        others = ray.remote(tasks.features).remote(self.where.places(rows[chosen]))
        own = np.full(len(rows), -1)
        own[chosen] = np.arange(len(chosen))
        return [
            score.remote(
                self.where.places(rows[start : start + outliers.PART]), others, own[start : start + outliers.PART]
            )
            for start in range(0, len(rows), outliers.PART)
        ]

    def survey(self, records: pa.Table) -> dict[str, float | None]:
        """The variation of each label's kept photos, from about `_SURVEYED` of them if there are more.

        The listing is cut into runs of `chunk_images` photos. Of each run's photos that no filter rejects on their own,
        the `_OF_EACH` with the smallest hashes count, so the result doesn't depend on the chunks.
        """
        decoded = pc.not_equal(records["hash"], "")
        alone = pc.or_kleene(pc.is_null(records["reason"]), pc.is_in(records["reason"], pa.array(_COMPARISONS)))
        good = np.flatnonzero(pc.and_(decoded, alone).to_numpy())
        kept = pc.is_valid(records["split"]).to_numpy()
        labels = whole(records["label"]).dictionary_encode()
        codes = labels.indices.to_numpy()
        there = np.unique(codes[kept])
        totals, counts = np.zeros((len(labels.dictionary), variation.LENGTH)), np.zeros(len(labels.dictionary), int)
        for number in np.unique(np.flatnonzero(kept) // self.settings.chunk_images).tolist():
            if counts[there].min() >= _SURVEYED:
                break
            first, last = np.searchsorted(good, np.array([number, number + 1]) * self.settings.chunk_images)
            part = good[first:last]
            hashes = records["hash"].take(pa.array(part)).to_pylist()
            chosen = np.sort(part[np.argsort(np.array(hashes, object), kind="stable")[:_OF_EACH]])
            chosen = chosen[kept[chosen] & (counts[codes[chosen]] < _SURVEYED)]
            if len(chosen):
                pixels = self.where.pixels(chosen)
                maps = variation.layouts(np.stack([pixels[index] for index in chosen.tolist()]))
                for code in np.unique(codes[chosen]).tolist():
                    own = maps[codes[chosen] == code]
                    totals[code], counts[code] = totals[code] + own.sum(axis=0), counts[code] + len(own)
        names = labels.dictionary.to_pylist()
        found = {names[code]: variation.variation(totals[code], int(counts[code])) for code in there.tolist()}
        return dict(sorted(found.items()))

    def write(self, records: pa.Table, summary: dict[str, Any], configuration: dict[str, Any], inputs: str) -> None:
        """Write the shards, the report, the rejected photos, the pictures and, last, the manifest.

        Args:
            records: from `compare`.
            summary: the report.
            configuration: of the manifest.
            inputs: of the manifest.
        """
        output = self.settings.output
        stale = _shards_in(output)
        storage.delete(storage.join(output, MANIFEST))
        with ThreadPoolExecutor(1) as painter:  # the driver draws while the workers write
            drawn = painter.submit(sheets.drawn, records, self.where.pixels)
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
        manifest.write(output)

    def _part(self, photos: np.ndarray) -> pa.Table:
        """A block for Ray Data: photos of the listing, their keys, and the name of the chunk to make of them."""
        part = self.listing.photos.take(pa.array(photos)).append_column("key", pa.array(self.where.keys[photos]))
        return part.append_column("chunk", pa.array([chunks.name_of(self.where.keys[photos])] * len(photos)))

    def _shard(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A shard for Ray Data: its name, and where its photos are."""
        places = self.where.places(plan["photos"])
        where = {
            "addresses": [address for address, *_ in places],
            "rows": [rows.tolist() for _, rows, _ in places],
            "places": [numbers.tolist() for *_, numbers in places],
        }
        return {"file": plan["file"], "split": plan["split"], **where}

    def _write_shards(self, records: pa.Table) -> tuple[list[ShardFile], str]:
        """Write the shards; returns them, and a fingerprint of their content."""
        plans = _shard_plans(records["split"], self.settings)
        cores = max(1, int(cluster.total("CPU")))
        count = max(len(plans) // _SHARDS_PER_TASK, min(len(plans), 2 * cores))
        # Every n-th shard: the last ones, for validation, may be small.
        tables = [pa.Table.from_pylist([self._shard(plan) for plan in plans[n::count]]) for n in range(count)]
        given = {"output": self.settings.output, "encoding": self.settings.encoding}
        with tqdm(total=sum(len(plan["photos"]) for plan in plans), desc="writing shards", unit=" images") as bar:
            done = {}
            for answer in self._run(tables, tasks.write, given):
                done[answer["file"]] = answer
                bar.update(answer["images"])
        shards = [
            ShardFile(file=plan["file"], split=plan["split"], rows=json.loads(done[plan["file"]]["rows"]))
            for plan in plans
        ]
        digests = "".join(done[shard.file]["digest"] for shard in shards)
        return shards, hashlib.sha256(digests.encode()).hexdigest()


def _tasks(photos: np.ndarray, sizes: np.ndarray, most: int) -> list[np.ndarray]:
    """Photos cut into runs of at most `most` photos and, beyond the first photo, at most `_TASK_BYTES`."""
    ends = np.cumsum(sizes[photos])
    parts, start = [], 0
    while start < len(photos):
        full = np.searchsorted(ends, ends[start] - sizes[photos[start]] + _TASK_BYTES, side="right")
        stop = min(start + most, max(start + 1, int(full)))
        parts.append(photos[start:stop])
        start = stop
    return parts


def _shard_plans(splits: pa.ChunkedArray, settings: PrepareSettings) -> list[dict[str, Any]]:
    """Which photos go to which shard: consecutive kept photos of a split, in shards of nearly equal size."""
    most = settings.shard_images or max(1, min(1024, int(_SHARD_BYTES / (3 * settings.image_size**2))))
    plans = []
    for split in ("train", "validation"):
        rows = np.flatnonzero(pc.equal(splits, split).fill_null(False).to_numpy())
        count = max(-(-len(rows) // most), min(_SHARDS_AT_LEAST, len(rows) // _IMAGES_AT_LEAST), 1)
        for number, part in enumerate(np.array_split(rows, count)):
            if len(part):
                plans.append({"file": f"{split}-{number:05d}.parquet", "split": split, "photos": part})
    return plans


def _shards_in(output: str) -> set[str]:
    """Names of the shards left by an earlier run, finished or not, and of parts of shards."""
    patterns = [f"{split}-*.parquet{end}" for split in ("train", "validation") for end in ("", ".*part")]
    return {storage.name(file) for pattern in patterns for file in storage.list_files(output, pattern)}
