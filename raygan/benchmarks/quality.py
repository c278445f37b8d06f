"""KID against time: presets under Ray Train, and textbook WGAN-GP, on the same photos and cores.

Each trains alone for the same number of minutes, one after another, with all cores in one worker:

    PRESET     the whole of `jobs/train.py` without quality measurements
    textbook   `TextbookStep` with the settings of the preset wgan-gp-128 at the shards' size, on photos in memory, in
               one process with a thread per core and the default allocator; without EMA: its generator is judged

What each had at equal times is then compared with all real photos of the label. Each training is a run in the storage
folder, named after label, minutes and shards. The textbook keeps a generator only at the points in time that are
judged, so its name has their number too. The same command resumes a preset where it stopped, restarts the textbook, and
repeats nothing that is finished.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from raygan import pictures
from raygan.addresses import is_remote
from raygan.benchmarks.candidates import SOURCE, TEXTBOOK
from raygan.benchmarks.processes import in_process
from raygan.benchmarks.results import machine, write_json
from raygan.benchmarks.settings import QualityBenchmarkSettings
from raygan.benchmarks.textbook import TextbookStep
from raygan.benchmarks.train import in_memory
from raygan.charts import row_of_axes, to_png
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.machine import cores
from raygan.metrics.distances import kid
from raygan.models.gan import load_generator, save_generator
from raygan.runtime.runs import is_finished, recorded
from raygan.settings import load_preset
from raygan.tracking.networks import feature_network, load_network
from raygan.training.build import network_settings
from raygan.training.monitor import draw
from raygan.training.settings import TrainSettings
from raygan.training.train import check, train

#: Number of images of each shown at the end.
_SHOWN = 24


def benchmark(settings: QualityBenchmarkSettings) -> dict[str, Any]:
    """Train, judge, print a table, draw, write JSON if asked, and return the numbers.

    Raises:
        ConfigurationError: the storage folder isn't on this machine, where checkpoints are read from it.
    """
    if is_remote(settings.storage):
        raise ConfigurationError(f"--storage: this benchmark needs a folder on this machine, not {settings.storage}")
    trainings = {name: _training(settings, name) for name in settings.presets}
    source = _training(settings, SOURCE)
    for training in (*trainings.values(), *([source] if settings.textbook else [])):
        check(training)
    folders = {}
    for preset, training in trainings.items():
        name = str(training.name)
        folders[preset] = Path(settings.storage, "runs", name)
        if not is_finished(settings, name):
            print(f"training {preset}", file=sys.stderr)
            train(training)
    if settings.textbook:
        folders[TEXTBOOK] = _textbook(settings, source, Path(settings.storage, "runs", run_name(settings, TEXTBOOK)))
    reals, _ = in_memory(DataSet.open(settings.data), settings.label, "train", "validation")
    network = load_network(feature_network(settings, settings.network, "--network"))
    real_features = network(reals)
    times = np.linspace(0, settings.minutes, settings.points + 1)[1:]
    rows: dict[str, list[dict[str, float]]] = {}
    shown = [("real", reals[torch.from_numpy(pictures.spread(_SHOWN, len(reals)))])]
    for name, folder in folders.items():
        for minutes in times:
            checkpoint, about = _nearest(folder, float(minutes))
            drawn = draw(load_generator(checkpoint)[0], settings.samples, seed=1)
            value, error = kid(real_features, network(drawn))
            row = {"minutes": about["minutes"], "kimg": about["kimg"], "kid": value, "error": error}
            rows.setdefault(name, []).append(row)
            print(
                f"{name:12} {row['minutes']:5.1f} min {row['kimg']:7.1f} kimg  KID {value:.3f} +- {error:.3f}",
                flush=True,
            )
        shown.append((f"{name}, {settings.minutes:g} min", drawn[:_SHOWN]))
    result = {"machine": machine(), "settings": recorded(settings), "network": network.name, "rows": rows}
    write_json(settings.json_file, result)
    if settings.picture:
        Path(settings.picture).write_bytes(_picture(rows, shown, f"KID, {settings.samples} samples, {network.name}"))
    return result


def _training(settings: QualityBenchmarkSettings, preset: str) -> TrainSettings:
    """A preset's training at the shards' size, as long as asked."""
    return TrainSettings.model_validate(
        {
            **load_preset(TrainSettings, preset),
            "storage": settings.storage,
            "tracking_uri": settings.tracking_uri,
            "experiment": settings.experiment,
            "data": settings.data,
            "label": settings.label,
            "image_size": DataSet.open(settings.data).manifest.image_size,
            "name": run_name(settings, preset),
            "kimg": 1e6,
            "minutes": settings.minutes,
            "log_every": settings.every,
            "checkpoint_every": settings.every,
            "snapshot_every": 1e6,
            "quality_every": 0,
            "keep_checkpoints": 10_000,
            "cpus_per_worker": cores(),
            "promote": False,
        }
    )


def run_name(settings: QualityBenchmarkSettings, who: str) -> str:
    """The run's name, which differs whenever the training does."""
    shards = DataSet.open(settings.data).manifest.fingerprint[:8]
    points = f"-{settings.points}-points" if who == TEXTBOOK else ""
    return f"quality-{who}-{settings.label or 'all'}-{settings.minutes:g}-minutes{points}-{shards}"


def _nearest(folder: Path, minutes: float) -> tuple[Path, dict[str, float]]:
    """The checkpoint written nearest to a time, and its description."""
    found = []
    for path in folder.glob("*/generator.json"):
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        found.append((abs(about["minutes"] - minutes), path.parent, about))
    if not found:
        raise RayganError(f"{folder} has no checkpoints: delete it and train again")
    _, checkpoint, about = min(found, key=lambda each: each[0])
    return checkpoint, about


def _textbook(settings: QualityBenchmarkSettings, source: TrainSettings, folder: Path) -> Path:
    """Train the textbook in a fresh process, unless that is done, and return the folder with its generators."""
    if (folder / "finished").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"training {TEXTBOOK}", file=sys.stderr)
    in_process("the textbook's training", _loop, settings, source, folder)
    (folder / "finished").touch()
    return folder


def _loop(settings: QualityBenchmarkSettings, source: TrainSettings, folder: Path) -> None:
    """Run Algorithm 1 for the minutes asked for, and keep a generator at each point in time."""
    torch.set_num_threads(cores())
    photos, _ = in_memory(DataSet.open(settings.data), settings.label, "train")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = TextbookStep(network_settings(source, ()), source, device)
    batch, done, kept, began = source.batch_size, 0, 0, time.monotonic()
    torch.manual_seed(source.seed)
    bar = tqdm(total=settings.minutes, desc="training", unit="min", bar_format="{l_bar}{bar}| {n:.1f}/{total:.1f} min")
    while kept < settings.points:
        step.critic_step(photos[torch.randint(len(photos), (batch,))])
        done += 1
        if done % source.n_critic == 0:
            step.generator_step()
        minutes = (time.monotonic() - began) / 60
        bar.update(min(minutes, settings.minutes) - bar.n)
        if minutes >= settings.minutes * (kept + 1) / settings.points:
            kept += 1
            about = {"kimg": done * batch / 1000, "minutes": minutes, "label": source.label or "all"}
            save_generator(folder / f"{kept:03}", step.generator, about)


def _picture(rows: dict[str, list[dict[str, float]]], shown: list[tuple[str, torch.Tensor]], title: str) -> bytes:
    """A PNG: KID against minutes above, final samples below."""
    figure, (axes,) = row_of_axes(7.0, 3.6, 1)
    for name, points in rows.items():
        minutes, kids, errors = ([point[key] for point in points] for key in ("minutes", "kid", "error"))
        axes.errorbar(minutes, kids, errors, label=name, marker="o", markersize=3, capsize=2, linewidth=1.4)
    axes.set(xlabel="minutes of training", ylabel=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    chart = Image.open(io.BytesIO(to_png(figure)))
    panels = pictures.side_by_side(shown, 4)
    sheet = Image.new("RGB", (max(chart.width, panels.width), chart.height + panels.height), "white")
    sheet.paste(chart, (0, 0))
    sheet.paste(panels, (0, chart.height))
    return pictures.png(sheet)
