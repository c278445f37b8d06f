"""Quickstart: photos in, samples over HTTP out, with one command and sensible defaults.

It prepares shards, trains a GoogLeNet and a GAN, and serves both through the same functions as the jobs. Without photos
it draws faces itself (`raygan.data.synthetic`), so it needs no download. With `--minutes` it trains the best preset for
as long as the other stages leave (`raygan.quickstart.timetable`), and ends with a report card.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote

from ray import serve

from raygan import tracking
from raygan.addresses import is_remote, public, slug
from raygan.classifier.classify import classify
from raygan.classifier.settings import ClassifySettings
from raygan.data import synthetic
from raygan.data.prepare import prepare
from raygan.data.settings import PrepareSettings
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError, Terminated
from raygan.evaluation.evaluate import evaluate
from raygan.evaluation.report import PAGE
from raygan.evaluation.settings import EvaluateSettings
from raygan.quickstart.settings import QuickstartSettings
from raygan.quickstart.timetable import Timetable
from raygan.runtime import cluster, storage
from raygan.runtime.runs import is_finished
from raygan.serve.app import build, check_port
from raygan.serve.settings import ServeSettings
from raygan.settings import load_preset, validate
from raygan.training import monitor
from raygan.training.settings import TrainSettings
from raygan.training.train import train

#: Drawn faces per label, and thousands of images to train on them: enough to see faces appear in a few minutes.
DRAWN_FACES, DRAWN_KIMG = 640, 20

#: Thousands of images to train on photos: enough for recognizable faces.
PHOTOS_KIMG = 100

#: Images that GoogLeNet trains on: on two cores, drawn faces take a quarter of a minute and photos two minutes.
DRAWN_CLASSIFIED, PHOTOS_CLASSIFIED = 2_500, 15_000

#: Images that GoogLeNet trains on per minute of --minutes, at most the above: a twentieth of the time on two cores.
_CLASSIFIED_PER_MINUTE = 450

#: Samples per label in the report card.
_REPORT_SAMPLES = 1000

#: Maximum number of cores for the training; its batches are too small to be split among more.
MOST_CORES = 8

HOST = "127.0.0.1"


def quickstart(settings: QuickstartSettings) -> None:
    """Prepare, train and, by default, serve until Ctrl-C.

    Running it again with the same photos and settings resumes where it stopped, or goes straight to serving.

    Raises:
        ConfigurationError: a setting is wrong, or the port is in use.
        RayganError: a stage failed.
        KeyboardInterrupt: Ctrl-C, or SIGTERM (`Terminated`), also where it ends the serving.
    """
    if settings.serve:
        check_port(HOST, settings.port)
    if is_remote(settings.storage):
        raise ConfigurationError("--storage: the quickstart needs a local folder; the other jobs accept URIs")
    tracking.check_records(settings)
    times = Timetable(settings.minutes)
    if settings.minutes:
        print(times.plan(), flush=True)
    with times.stage("Ray"):
        cluster.connect(settings)
    with times.stage("photos"):
        data = _shards(settings, settings.input or [str(_drawn_faces(Path(settings.storage)))])
    if settings.label:
        data.check_label(settings.label)
    label = settings.label or _only_label(settings, data.manifest.classes)
    if settings.minutes:
        print(_expectation(data.manifest.count("train", label)), flush=True)
    with times.stage("GoogLeNet"):
        _classified(settings, data)
    if settings.minutes:
        print(times.outlook(), flush=True)
    with times.stage("GAN"):
        trained = _trained(settings, data, label, times.training_minutes)
    report = None
    if settings.minutes:
        with times.stage("report card"):
            report = _reported(settings, data, label)
    shown = quote(label or data.manifest.classes[0])
    address = f"http://{HOST}:{settings.port}/v1/sample?label={shown}&n=16&seed=7"
    serving_here = None
    if settings.serve:
        with times.stage("service"):
            serving_here = _serve(settings)
    print(f"\ntime      {times}")
    print(f"pictures  {trained}")
    print(f"MLflow    {tracking.ui_command(settings)}")
    if report:
        print(f"report    {report}")
    if serving_here:
        print(f"samples   {address}\npage      http://{HOST}:{settings.port}/\n\nServing until Ctrl-C.", flush=True)
        number = serving_here.get()
        serve.shutdown()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
    else:
        print(f"serve     {_serve_command(settings)}, then open {address}")


def _only_label(settings: QuickstartSettings, labels: Sequence[str]) -> str | None:
    """The label to train on; None for a conditional generator of all labels."""
    if not settings.input:
        return "cat"
    return labels[0] if len(labels) == 1 else None


def _drawn_faces(root: Path) -> Path:
    """The folder of drawn faces, made on the first call, completely or not at all."""
    folder = root / f"drawn-faces-{DRAWN_FACES}"
    if not folder.exists():
        print(f"drawing {DRAWN_FACES} faces of each of {', '.join(synthetic.LABELS)}")
        unfinished = folder.with_suffix(".part")
        synthetic.draw_folder(unfinished, DRAWN_FACES)
        unfinished.rename(folder)
    return folder


def _shards(settings: QuickstartSettings, inputs: list[str]) -> DataSet:
    """Prepare the photos; again if they have changed."""
    key = _digest(*(os.path.abspath(path) for path in inputs), str(settings.image_size))
    values = {
        **_storage_values(settings),
        "input": inputs,
        "output": storage.join(settings.storage, "shards", f"quickstart-{key}"),
        "image_size": settings.image_size,
        "overwrite": True,
    }
    prepare(validate(PrepareSettings, values))
    return DataSet.open(str(values["output"]))


def _expectation(photos: int) -> str:
    """What to expect from this many training photos."""
    known = "On two cores, 1,381 photos of cat faces became recognizable faces, blurred in detail, within 20 minutes"
    if photos < 150:
        return f"{photos} training photos are few: expect blurred variations of them. {known}."
    return f"{photos:,} training photos. {known}; photos that vary more take longer."


def _classified(settings: QuickstartSettings, data: DataSet) -> None:
    """Train GoogLeNet to tell the labels apart, unless that is done already or there is only one."""
    labels = data.manifest.classes
    if len(labels) < 2:
        print(f"no classifier: it needs photos of two labels or more, and these are all of {', '.join(labels)}")
        return
    photos = data.manifest.count("train", None)
    images = PHOTOS_CLASSIFIED if settings.input else DRAWN_CLASSIFIED
    if settings.minutes:
        images = min(PHOTOS_CLASSIFIED, round(_CLASSIFIED_PER_MINUTE * settings.minutes))
    epochs = settings.epochs or min(20, max(1, round(images / photos)))
    name = f"quickstart-classifier-{_digest(data.manifest.fingerprint, str(epochs))}"
    if is_finished(settings, name):
        print(f"run {name} is already trained")
        return
    values = {"data": data.address, "name": name, "epochs": epochs, "promote": "always"}
    try:
        classify(validate(ClassifySettings, {**_storage_values(settings), **_workers(), **values}))
    except RayganError as error:  # a label without validation photos, for instance: the generator needs none of this
        print(f"no classifier: {error}")


def _reported(settings: QuickstartSettings, data: DataSet, label: str | None) -> str | None:
    """The address of the report card's page; None if there are too few photos to compare with."""
    name = tracking.generator_name(label or "all")
    values = {"data": data.address, "model": [name], "samples": _REPORT_SAMPLES}
    try:
        folder = evaluate(validate(EvaluateSettings, {**_storage_values(settings), **values})).folder
    except RayganError as error:
        print(f"no report card: {error}")
        return None
    return storage.join(folder, PAGE)


def _trained(settings: QuickstartSettings, data: DataSet, label: str | None, minutes: float | None) -> str:
    """Train on the shards, for this many minutes if given, unless that is done already; the address of the pictures."""
    length = settings.epochs if settings.minutes is None else f"{settings.minutes:g} minutes"
    subject = slug(label or "every-label", 60, ascii_only=True)
    name = f"quickstart-{subject}-{_digest(data.manifest.fingerprint, str(length))}"
    folder = storage.join(settings.storage, "runs", name)
    if is_finished(settings, name):
        print(f"run {name} is already trained")
    else:
        values = {
            **load_preset(TrainSettings, _preset(settings)),
            **_storage_values(settings),
            **_scale(settings, data, label, minutes),
            "data": data.address,
            "label": label,
            "conditional": label is None,
            "name": name,
            "image_size": settings.image_size,
            "promote": "always",
        }
        train(validate(TrainSettings, values))
    return storage.join(folder, "pictures")


def _scale(settings: QuickstartSettings, data: DataSet, label: str | None, minutes: float | None) -> dict[str, Any]:
    """Settings of workers and length that suit the cores and the photos."""
    length: dict[str, Any]
    if settings.epochs:
        length = {"epochs": settings.epochs, "kimg": None}
    elif minutes:
        length = {"minutes": minutes}
    else:
        length = {"kimg": PHOTOS_KIMG if settings.input else DRAWN_KIMG}
    # Too few held-out photos say nothing about quality, and drawn faces are only for a first look.
    judged = settings.input and monitor.can_measure(data.manifest.count("validation", label))
    return {**_workers(), **length, **({} if judged else {"quality_every": 0})}


def _preset(settings: QuickstartSettings) -> str:
    if settings.minutes is None:
        return "quick"
    return "best-64" if settings.image_size <= 64 else "best-128"


def _workers() -> dict[str, int]:
    """One worker with all cores: on a CPU, threads share a step at a lower cost than workers."""
    cores = max(1, int(max(node.get("CPU", 0) for node in cluster.nodes())))
    return {"num_workers": 1, "cpus_per_worker": min(cores, MOST_CORES)}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _serve(settings: QuickstartSettings) -> SimpleQueue[int]:
    """Deploy the service. The signal by which the user asks to stop comes through the queue."""
    stop: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.put(number))
    check_port(HOST, settings.port)
    serve.start(http_options={"host": HOST, "port": settings.port})
    serve.run(build(validate(ServeSettings, _storage_values(settings)).plain()), name="raygan")
    sys.stdout.flush()
    return stop


def _serve_command(settings: QuickstartSettings) -> str:
    tracked = f" --tracking-uri {shlex.quote(public(settings.tracking_uri))}" if settings.tracking_uri else ""
    return f"python jobs/serve.py --storage {shlex.quote(settings.storage)}{tracked}"


def _storage_values(settings: QuickstartSettings) -> dict[str, Any]:
    return {"storage": settings.storage, "tracking_uri": settings.tracking_uri, "experiment": settings.experiment}
