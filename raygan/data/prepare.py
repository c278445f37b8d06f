"""Prepare: messy folders of photos to clean shards, streamed through Ray Data.

The mental model:

1. List. The driver lists the inputs and guesses labels from names (`raygan.data.sources`).
2. Examine. Ray Data tasks read, decode, judge and shrink a chunk of photos each and write it to the work folder,
   ``OUTPUT/.prepare``. Only counts come back.
3. Compare. The driver reads the chunks' records, a few hundred bytes for each photo and no pixels, and
   finds what can only be found by comparing photos: duplicates and outliers. It chooses the split.
4. Write. Ray Data tasks copy the kept photos' pixels from chunks to shards, without decoding again. Then come
   report, rejects and pictures, and last, in one rename, the manifest that makes the folder a data set.

Every step is a pure function of the photos and the settings, so a run that was killed ends with the same
bytes as one that wasn't, and chunks that are in the work folder already are taken up as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from raygan import tracking
from raygan.data import chunks, duplicates, faces, outliers, report, sheets, tasks, variation
from raygan.data.chunks import PixelSettings
from raygan.data.filters import Limits
from raygan.data.settings import PrepareSettings
from raygan.data.shards import MANIFEST, Manifest, ShardFile, Split
from raygan.data.sources import Listing, find_photos
from raygan.errors import ConfigurationError, RayganError
from raygan.runtime import cluster, storage
from raygan.runtime.runs import recorded
from raygan.tracking.networks import feature_network

#: Bytes of pixels that a shard has by default at most.
_SHARD_BYTES = 32e6

#: Shards that even small data sets are cut into, so that there is one for each of a few workers.
_SHARDS_AT_LEAST, _IMAGES_AT_LEAST = 8, 64

#: Photos of a label from which variation is measured at least, if there are as many: enough for two digits.
_SURVEYED = 2000

#: Shards that a task writes at most: it answers when it is done with them.
_SHARDS_PER_TASK = 16

#: Tasks that Ray knows of at a time, unless it has as many cores: its lists of them must stay short.
_TASKS_WAITING = 1000

#: Settings that don't change what the shards hold.
_CIRCUMSTANCES = frozenset({"output", "storage", "tracking_uri", "experiment", "overwrite", "dry_run"})


def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Clean the photos, write the shards, and return the report (see `raygan.data.report`).

    Does nothing if the output holds this very data set already. Raises ConfigurationError if there are no
    photos or no labels, or if the output holds another data set; RayganError if files can't be read or written.
    """
    if settings.crop_faces:
        faces.check_detector(settings.detector)
    if "outlier" not in settings.skip:
        network = feature_network(settings, settings.outlier_network, "--outlier-network")
        settings = settings.model_copy(update={"outlier_network": network})
    listing = _list(settings)
    inputs = _fingerprint(listing)
    if not settings.dry_run:
        known = _known_report(settings, inputs)
        if known is not None:
            print(f"{settings.output} holds these photos with these settings already: nothing to do")
            return known
        tracking.connect(settings)  # better to hear now than after the work that the address is wrong
    with cluster.ray_data(settings, **_TASKS_QUEUE), _work_folder(settings) as folder:
        work = _Work(settings, listing, folder)
        work.examine()
        records, outlier_notes = work.judge()
        summary = report.summarise(records, listing) | {"outliers": outlier_notes}
        if not summary["kept"]:
            raise RayganError(f"--input: no photo is left to train on: {report.reasons_in_words(summary)}")
        summary["variation"] = work.survey(records)
        print(report.in_words(summary))
        if settings.dry_run:
            return summary
        pictures = work.write(records, summary, inputs)
    storage.delete(storage.join(settings.output, ".prepare"))
    _log(settings, summary, pictures)
    print(f"{summary['kept']:,} photos written to {settings.output}")
    return summary


#: Ray Data would hand out a task only when it has seen another end, which it looks for ten times a second, and in the
#: first second one task at a time: cores stood idle for a third of the time. Without its budgets, which are for
#: pipelines that may fill the memory, the tasks queue at Ray's own scheduler.
_TASKS_QUEUE = {"op_resource_reservation_enabled": False}


@dataclass
class _Work:
    """One preparation under way. folder: the address of the work folder."""

    settings: PrepareSettings
    listing: Listing
    folder: str

    def __post_init__(self) -> None:
        size, photos = self.settings.chunk_images, self.listing.photos
        self.pixel_settings = pixel_settings(self.settings)
        self.parts = [photos.slice(start, size) for start in range(0, photos.num_rows, size)]
        self.names = [
            chunks.name_of(number, part, self.listing.sources, self.pixel_settings)
            for number, part in enumerate(self.parts)
        ]

    def examine(self) -> None:
        """Pass 1: make the chunks that aren't there."""
        there = _files_in(self.folder)
        missing = [number for number, name in enumerate(self.names) if name not in there]
        taken_up = len(self.names) - len(missing)
        if taken_up:
            print(f"going on: {taken_up} of {len(self.names)} chunks are there, {len(missing)} are done (again)")
        tables = [self._part(number) for number in missing]
        given = {"folder": self.folder, "sources": self.listing.sources, "settings": self.pixel_settings}
        total = sum(table.num_rows for table in tables)
        with tqdm(total=total, desc="examining photos", unit=" images", smoothing=0.1) as bar:
            megabytes, start = 0.0, time.monotonic()
            for done in _stream(tables, tasks.examine, given):
                megabytes += done["bytes"] / 1e6
                bar.set_postfix_str(f"{megabytes / (time.monotonic() - start):.1f} MB/s", refresh=False)
                bar.update(done["images"])

    def judge(self) -> tuple[pa.Table, dict[str, Any]]:
        """Compare the photos with each other: records with final verdicts and splits, and notes on outliers."""
        skip, distance = self.settings.skip, self.settings.hash_distance
        verdicts = duplicates.Verdicts(chunks.read_records([storage.join(self.folder, name) for name in self.names]))
        if "duplicate" not in skip:
            verdicts.reject_duplicates()
        if "near_duplicate" not in skip:
            pairs = verdicts.reject_near_duplicates(verdicts.close_pairs(distance))
        notes = self._reject_outliers(verdicts) if "outlier" not in skip else {}
        if "near_duplicate" in skip:
            # Links of photos that are kept only: one that goes would leave those it connects without a link.
            pairs = verdicts.close_pairs(distance, all_pairs=False)
        return verdicts.table(pairs, self.settings.validation), notes

    def _reject_outliers(self, verdicts: duplicates.Verdicts) -> dict[str, Any]:
        """Each label's outliers, in a task of its own; for each label its threshold and number of outliers."""
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
        """The variation of each label's kept photos, from about `_SURVEYED` of them where there are more."""
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

    def pixels(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        """Pixels (S, S, 3) of those photos that were decoded, one chunk in memory at a time."""
        found: dict[int, np.ndarray] = {}
        for address, rows, numbers in self.places(indices):
            decoded = np.array([value != "" for value in chunks.read_records([address])["hash"].to_pylist()])[rows]
            found.update(zip(numbers[decoded].tolist(), chunks.read_pixels(address, rows[decoded]), strict=True))
        return found

    def write(self, records: pa.Table, summary: dict[str, Any], inputs: str) -> dict[str, bytes]:
        """Pass 2: shards, report, rejects, pictures, which are returned too, and the manifest as the last."""
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
            configuration=_configuration(self.settings),
            inputs=inputs,
        )
        storage.write_json(storage.join(output, MANIFEST), manifest.model_dump(mode="json"))
        return pictures

    def places(self, indices: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Where photos are: for each chunk that has some its address, their rows there, and their indices."""
        size = self.settings.chunk_images
        return [
            (storage.join(self.folder, self.names[number]), indices[chosen] % size, indices[chosen])
            for number in np.unique(indices // size)
            if (chosen := indices // size == number).any()
        ]

    def _part(self, number: int) -> pa.Table:
        """A block for Ray Data: a part of the listing and the name of the chunk to make of it."""
        part = self.parts[number]
        return part.append_column("chunk", pa.array([self.names[number]] * part.num_rows))

    def _shard(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A shard for Ray Data: its name, and where its photos are."""
        places = self.places(plan["photos"])
        addresses, rows = [place[0] for place in places], [place[1].tolist() for place in places]
        return {"file": plan["file"], "split": plan["split"], "addresses": addresses, "rows": rows}

    def _write_shards(self, records: pa.Table) -> tuple[list[ShardFile], str]:
        plans = _shard_plans(records["split"].to_pylist(), self.settings)
        cores = max(1, int(cluster.total("CPU")))
        count = max(len(plans) // _SHARDS_PER_TASK, min(len(plans), 2 * cores))
        # Every n-th shard: the last ones, of validation, may be small.
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


# ---------------------------------------------------------------- Ray Data


def _stream(
    tables: Sequence[pa.Table], task: Callable[..., pa.Table], given: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Run a task of `raygan.data.tasks` on each table and yield the rows of its answers as they come.

    given: the task's other arguments. Raises RayganError if a task says so.
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


# ---------------------------------------------------------------- inputs, settings, output


def _list(settings: PrepareSettings) -> Listing:
    listing = find_photos(
        settings.input,
        label=settings.label,
        layout=settings.layout,
        image_column=settings.image_column,
        label_column=settings.label_column,
        exclude=settings.output,
    )
    print(listing.describe())
    return listing


def _fingerprint(listing: Listing) -> str:
    digest = hashlib.sha256(repr([source.root for source in listing.sources]).encode())
    digest.update(chunks.digest_of(listing.photos))
    return digest.hexdigest()


def pixel_settings(settings: PrepareSettings) -> PixelSettings:
    """The part of the settings that chunks depend on."""

    def unless_skipped(name: str, value: Any) -> Any:
        return None if name in settings.skip else value

    limits = Limits(
        min_side=unless_skipped("too_small", settings.min_side),
        max_megapixels=unless_skipped("too_large", settings.max_megapixels),
        max_aspect=unless_skipped("bad_aspect", settings.max_aspect),
        min_contrast=unless_skipped("flat", settings.min_contrast),
        min_sharpness=unless_skipped("blurry", settings.min_sharpness),
    )
    most_bytes = settings.max_megabytes * 1e6 if "too_large" not in settings.skip else float("inf")
    network = unless_skipped("outlier", settings.outlier_network)
    detector = os.path.abspath(settings.detector) if settings.crop_faces and settings.detector else None
    return PixelSettings(settings.image_size, settings.fit, limits, most_bytes, network, detector)


def _configuration(settings: PrepareSettings) -> dict[str, Any]:
    return {name: value for name, value in recorded(settings).items() if name not in _CIRCUMSTANCES}


def _known_report(settings: PrepareSettings, inputs: str) -> dict[str, Any] | None:
    """The report of the data set in the output if it is the one asked for, or None if there is none.

    Raises ConfigurationError if there is another, unless it may be overwritten.
    """
    manifest = storage.read_json(storage.join(settings.output, MANIFEST))
    if manifest is None:
        return None
    if manifest.get("inputs") == inputs and manifest.get("configuration") == _configuration(settings):
        return storage.read_json(storage.join(settings.output, report.REPORT))
    if settings.overwrite:
        return None
    raise ConfigurationError(
        f"--output: {settings.output} already holds a data set of other photos or settings: "
        f"choose another folder, or give --overwrite to replace it"
    )


@contextmanager
def _work_folder(settings: PrepareSettings) -> Iterator[str]:
    """Where chunks live: within the output, or for a dry run in a folder for a while that every node sees."""
    if settings.dry_run:
        if len(cluster.nodes()) == 1:
            with tempfile.TemporaryDirectory(prefix="raygan-") as folder:
                yield folder
            return
        folder = storage.join(settings.storage, "dry-runs", uuid.uuid4().hex)
        try:
            yield folder
        finally:
            storage.delete(folder)
        return
    folder = storage.join(settings.output, ".prepare")
    # Fail before the work, not after it, if the output can't be written.
    storage.write_json(storage.join(folder, "settings.json"), _configuration(settings))
    yield folder


def _log(settings: PrepareSettings, summary: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """Log the report and the pictures to MLflow."""
    name = f"prepare-{storage.name(settings.output)}"
    counts = {name: float(summary[name]) for name in ("seen", "kept", "rejected", "ignored")}
    reasons = {f"rejected.{reason}": float(count) for reason, count in summary["reasons"].items()}
    varied = {f"variation.{label}": value for label, value in summary["variation"].items() if value is not None}
    with tracking.start_run(settings, name, job="prepare", params=_configuration(settings)) as run:
        run.log_metrics(counts | reasons | varied, step=0)
        for file in (report.REPORT, report.REJECTED):
            run.log_bytes(storage.read_bytes(storage.join(settings.output, file)), file)
        for picture, content in pictures.items():
            run.log_bytes(content, f"{report.PICTURES}/{picture}")


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
    """Names of shards that an earlier run left, finished or not."""
    return {n for n in _files_in(output) if n.startswith(("train-", "validation-")) and n.endswith(".parquet")}
