"""Prepare: from messy folders of photos to clean shards.

The mental model:

1. List. The driver lists the inputs and takes labels from names (`raygan.data.sources`, `raygan.data.labels`).
2. Examine. Ray Data tasks read, decode, judge and shrink one chunk of photos each, and write it to the work folder,
   ``OUTPUT/.prepare``. Only counts come back.
3. Compare. The driver reads the chunks' records, a few hundred bytes per photo without pixels, finds duplicates and
   outliers, and chooses the split.
4. Write. Ray Data tasks copy the pixels of the kept photos from chunks to shards, without decoding again. The report,
   the list of rejected photos and the pictures follow; last comes the manifest, whose rename makes the folder a data
   set.

`raygan.data.passes` runs steps 2 to 4. Each is a pure function of the photos and the settings, so a killed and resumed
run ends with the same bytes as an undisturbed one, and existing chunks are used as they are.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raygan import tracking
from raygan.addresses import is_remote
from raygan.data import chunks, faces, outliers, report
from raygan.data.chunks import PixelSettings
from raygan.data.filters import Rules
from raygan.data.listing import Listing, find_photos
from raygan.data.passes import Passes
from raygan.data.settings import PrepareSettings
from raygan.data.shards import MANIFEST
from raygan.errors import ConfigurationError, RayganError
from raygan.machine import cache_folder
from raygan.runtime import cluster, storage
from raygan.runtime.room import check_room
from raygan.runtime.runs import recorded
from raygan.tracking.networks import feature_network

#: An empty file in a data set whose run MLflow has not recorded yet.
UNRECORDED = ".unrecorded"

#: Settings that don't affect the content of the shards.
_CIRCUMSTANCES = frozenset({"output", "storage", "tracking_uri", "experiment", "overwrite", "dry_run", "more_later"})


def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Clean the photos, write the shards, and return the report (see `raygan.data.report`).

    Does nothing if the output already holds this very data set.

    Raises:
        ConfigurationError: there are no photos or no labels, or the output holds a different data set.
        RayganError: files can't be read or written, or another job is writing to the output.
    """
    if settings.dry_run:
        return _prepare(settings)
    with _alone(settings.output):
        return _prepare(settings)


def _prepare(settings: PrepareSettings) -> dict[str, Any]:
    if "outlier" not in settings.skip:
        network = feature_network(settings, settings.outlier_network, "--outlier-network")
        settings = settings.model_copy(update={"outlier_network": network})
    pixel_settings = pixel_settings_of(settings)
    listing = list_photos(settings)
    if pixel_settings.detector:
        faces.check_detector(pixel_settings.detector, set(listing.photos["label"].unique().to_pylist()))
    inputs = _fingerprint(listing)
    configuration = configuration_of(settings, pixel_settings)
    if not settings.dry_run:
        known = _known_report(settings, inputs, configuration)
        unrecorded = storage.join(settings.output, UNRECORDED)
        if known is not None and not storage.is_file(unrecorded):
            print(f"{settings.output} already holds these photos with these settings: nothing to do")
            return known
        tracking.check_records(settings)  # a wrong address should fail now, not after the work
        if known is not None:
            print(f"{settings.output} already holds these photos with these settings: recording them in MLflow")
            _drop_work(settings)
            _record(settings, configuration, known)
            return known
        _say_room(settings, pixel_settings, listing)
    with cluster.ray_data(settings), _work_folder(settings, configuration) as folder:
        listing.sources = listing.decompressed(folder)
        passes = Passes(settings, pixel_settings, listing, folder)
        passes.examine()
        records, outlier_notes = passes.compare()
        summary = report.summarize(records, listing) | {"outliers": outlier_notes}
        if not summary["kept"]:
            raise RayganError(f"--input: no photo is left to train on: {report.why_none_is_left(records, summary)}")
        summary["variation"] = passes.survey(records)
        print(report.in_words(summary))
        if settings.dry_run:
            return summary
        storage.write_bytes(storage.join(settings.output, UNRECORDED), b"")
        passes.write(records, summary, configuration, inputs)
    _drop_work(settings)
    _record(settings, configuration, summary)
    print(f"{summary['kept']:,} photos written to {settings.output}")
    return summary


def list_photos(settings: PrepareSettings) -> Listing:
    """The photos of all inputs; prints where labels come from."""
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


def pixel_settings_of(settings: PrepareSettings) -> PixelSettings:
    """The settings that chunks depend on. Raises ConfigurationError if a filter can't be imported."""
    network = None if "outlier" in settings.skip else settings.outlier_network
    return PixelSettings(
        size=settings.image_size,
        fit=settings.fit,
        rules=Rules.choose(settings, settings.skip),
        network=network,
        network_digest=_digest_of(network) if network else "",
        detector=faces.detector(settings.detector) if settings.crop_faces else None,
    )


def _digest_of(network: str) -> str:
    """SHA-256, in hex, of the files of a feature network that is named by its folder or file; else empty."""
    place = Path(storage.local_folder(network))
    files = sorted(place.iterdir()) if place.is_dir() else [Path(network.rpartition(":")[2])]
    digest = hashlib.sha256()
    found = [file for file in files if file.is_file()]
    for file in found:
        digest.update(file.read_bytes())
    return digest.hexdigest() if found else ""


def _fingerprint(listing: Listing) -> str:
    digest = hashlib.sha256(repr([source.root for source in listing.sources]).encode())
    digest.update(chunks.digest_of(listing.photos))
    return digest.hexdigest()


def configuration_of(settings: PrepareSettings, pixel_settings: PixelSettings) -> dict[str, Any]:
    """For the manifest: the settings, and whatever else the content of the shards depends on."""
    values = {name: value for name, value in recorded(settings).items() if name not in _CIRCUMSTANCES}
    if offered := pixel_settings.rules.offered:
        values["offered_filters"] = offered
    if pixel_settings.detector and pixel_settings.detector.digest:
        values["detector_digest"] = pixel_settings.detector.digest
    if pixel_settings.network_digest:
        values["network_digest"] = pixel_settings.network_digest
    return values


@contextmanager
def _alone(output: str) -> Iterator[None]:
    """A block in which no other job on this machine prepares the same output.

    Two would mix their shards, and the first to finish would delete the other's chunks.
    """
    place = storage.absolute(output) if is_remote(output) else os.path.realpath(storage.absolute(output))
    name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    lock = FileLock(cache_folder() / "prepare" / f"{name}.lock")
    try:
        os.makedirs(os.path.dirname(lock.lock_file), exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RayganError(
            f"--output: another job is writing to {output}: wait for it, stop it, or give another folder"
        ) from None
    except (OSError, NotImplementedError):  # the cache's disk is full, or knows no locks
        pass
    try:
        yield
    finally:
        lock.release()


def _known_report(settings: PrepareSettings, inputs: str, configuration: dict[str, Any]) -> dict[str, Any] | None:
    """The report of the data set in the output, or None if there is none or it may be overwritten.

    Raises:
        ConfigurationError: the output holds a different data set, which may not be overwritten.
    """
    manifest = storage.read_json(storage.join(settings.output, MANIFEST))
    if manifest is None:
        return None
    if manifest.get("inputs") == inputs and manifest.get("configuration") == configuration:
        return storage.read_json(storage.join(settings.output, report.REPORT))
    if settings.overwrite:
        return None
    raise ConfigurationError(
        f"--output: {settings.output} already holds a data set made from other photos or settings: "
        f"choose another folder, or give --overwrite to replace it"
    )


@contextmanager
def _work_folder(settings: PrepareSettings, configuration: dict[str, Any]) -> Iterator[str]:
    """Where chunks live: inside the output or, for a dry run, in a temporary folder that every node sees."""
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
    # If the output can't be written, fail before the work, not after it.
    storage.write_json(storage.join(folder, "settings.json"), configuration)
    yield folder


def _drop_work(settings: PrepareSettings) -> None:
    """Delete the chunks of a data set that is complete, unless more photos will come."""
    if not settings.more_later:
        storage.delete(storage.join(settings.output, ".prepare"))


def _say_room(settings: PrepareSettings, pixel_settings: PixelSettings, listing: Listing) -> None:
    """Say how many bytes the job writes at most. Raises RayganError if the disk has no room for them."""
    square = 3 * settings.image_size**2
    features = 2 * outliers.DIM if pixel_settings.network else 0
    # A chunk and a shard hold each photo, with what is known about it.
    needed = listing.photos.num_rows * (2 * square + features + 1000) + listing.unpacked
    there = storage.bytes_in(storage.join(settings.output, ".prepare"))  # by a job that was killed
    check_room("--output", settings.output, max(0, needed - there))


def _record(settings: PrepareSettings, configuration: dict[str, Any], summary: dict[str, Any]) -> None:
    """Record the data set in MLflow. Raises RayganError if that fails; the same command then tries again."""
    try:
        _log(settings, configuration, summary)
    except RayganError as error:
        raise RayganError(
            f"{error}; the shards in {settings.output} are complete, and the same command records them"
        ) from None
    storage.delete(storage.join(settings.output, UNRECORDED))


def _log(settings: PrepareSettings, configuration: dict[str, Any], summary: dict[str, Any]) -> None:
    """Log the report and the pictures to MLflow."""
    name = f"prepare-{storage.name(settings.output)}"
    counts = {name: float(summary[name]) for name in ("seen", "kept", "rejected", "ignored")}
    reasons = {f"rejected.{reason}": float(count) for reason, count in summary["reasons"].items()}
    varied = {f"variation.{label}": value for label, value in summary["variation"].items() if value is not None}
    with tracking.start_run(settings, name, job="prepare", params=configuration) as run:
        run.log_metrics(counts | reasons | varied, step=0)
        for file in (report.REPORT, report.REJECTED):
            run.log_bytes(storage.read_bytes(storage.join(settings.output, file)), file)
        for picture in storage.list_files(storage.join(settings.output, report.PICTURES), "*"):
            run.log_bytes(storage.read_bytes(picture), f"{report.PICTURES}/{storage.name(picture)}")
