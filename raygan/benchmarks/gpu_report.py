"""`benchmark gpu`: writes what a machine with a GPU and torch needs, and makes tables of what it measured.

1. With `--data`, it writes photos and a plan into the folder: presets beside the textbook, resolved to plain values.
2. On the machine with the GPU, `python -m raygan.benchmarks.gpu FOLDER` measures (see there). Where raygan is complete
   and torch finds a GPU, `benchmark gpu --folder FOLDER` does that itself.
3. Without `--data`, it judges the generators that were kept, prints the tables, and writes them into the benchmarks'
   page. Without results they say "not measured".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raygan import pictures
from raygan.benchmarks import gpu
from raygan.benchmarks.candidates import SOURCE, TEXTBOOK
from raygan.benchmarks.results import checkout, write_json
from raygan.benchmarks.scale_model import LINKS, Cost, line_through, messages
from raygan.benchmarks.settings import GpuBenchmarkSettings
from raygan.benchmarks.train import in_memory
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError
from raygan.metrics.distances import kid
from raygan.models.features import load_features
from raygan.models.gan import NetworkSettings, build_generator
from raygan.settings import load_preset
from raygan.training.monitor import draw
from raygan.training.settings import StepOptions, TrainSettings
from raygan.training.step import GanStep

#: The tables of an image size stand between these lines of the page.
_BEGIN, _END = "<!-- gpu {size} px -->", "<!-- /gpu {size} px -->"

#: Seconds between two saves of a measurement on this machine.
_SECONDS = 500.0

#: Images of each training shown in the picture.
_SHOWN = 24


def benchmark(settings: GpuBenchmarkSettings) -> dict[str, Any]:
    """Write the plan, or measure and make tables; returns the plan, or the results."""
    folder = Path(settings.folder)
    if settings.data:
        return _write_plan(settings, folder)
    if not (folder / gpu.PLAN).exists():
        raise ConfigurationError(f"--folder: {folder} has no {gpu.PLAN}: write it with --data SHARDS")
    plan = json.loads((folder / gpu.PLAN).read_text(encoding="utf-8"))
    page = Path(settings.page) if settings.page else checkout() / "raygan" / "benchmarks" / "README.md"
    _around(page, plan["image_size"])  # it must be there before the minutes that follow
    if torch.cuda.is_available():
        gpu.finish(folder, _SECONDS, "cuda")
    results = folder / gpu.RESULTS
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    if any(name.startswith("training ") for name in found):
        found["kid"] = _judge(folder, plan, found)
    text = tables(plan, found)
    print(text)
    write_json(settings.json_file, found)
    before, after = _around(page, plan["image_size"])
    page.write_text(f"{before}{text}\n{after}", encoding="utf-8")
    return found


def _write_plan(settings: GpuBenchmarkSettings, folder: Path) -> dict[str, Any]:
    """Write photos and plan, and say what to run."""
    data = DataSet.open(str(settings.data))
    photos, _ = in_memory(data, settings.label, "train", "validation")
    chosen = photos[torch.from_numpy(pictures.spread(settings.photos, len(photos)))]
    size = data.manifest.image_size
    wide = {"image_size": size, "width": settings.width}
    precisions = ["tf32", "bf16"]
    candidates = [_planned(TEXTBOOK, SOURCE, "tf32", wide)]
    candidates += [_planned(preset, preset, each, wide) for preset in settings.presets for each in precisions]
    candidates.insert(-1, {**candidates[-1], "recorded": False})
    own = {"image_size": size}
    trained = [_planned(settings.train_preset, settings.train_preset, "bf16", own)]
    if settings.textbook:
        trained.append(_planned(TEXTBOOK, SOURCE, "tf32", own))
    plan = {
        "image_size": size,
        "label": settings.label,
        "photos": len(chosen),
        "candidates": candidates,
        "batches": settings.batches,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "timeline": {**candidates[-1], "options": {**candidates[-1]["options"], "batch_size": max(settings.batches)}},
        "trainings": trained,
        "minutes": settings.minutes,
        "points": settings.points,
    }
    if (folder / gpu.RESULTS).exists() and not _is_planned(folder, plan, chosen.numpy()):
        raise ConfigurationError(f"--folder: {folder} has results of another plan: choose another folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / gpu.PHOTOS, chosen.numpy())
    (folder / gpu.PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    print(
        f"{len(chosen)} photos and the plan are in {folder}. Copy it into a checkout on the machine with the GPU, and "
        f"run there until everything is measured:\n  python -m raygan.benchmarks.gpu {folder.name}\n"
        f"Then copy the folder back, and run this command without --data."
    )
    return plan


def _is_planned(folder: Path, plan: dict[str, Any], photos: np.ndarray) -> bool:
    """Whether the folder already has this plan and these photos."""
    written = json.loads((folder / gpu.PLAN).read_text(encoding="utf-8"))
    return bool(written == json.loads(json.dumps(plan)) and np.array_equal(np.load(folder / gpu.PHOTOS), photos))


def _planned(name: str, preset: str, precision: str, changes: dict[str, int]) -> dict[str, Any]:
    """A candidate as `raygan.benchmarks.gpu` reads it."""
    values = load_preset(TrainSettings, preset) | changes
    options = StepOptions.model_validate({key: values[key] for key in StepOptions.model_fields if key in values})
    networks = NetworkSettings(
        values["image_size"],
        values["z_dim"],
        values["width"],
        values["critic_norm"],
        architecture=values.get("architecture", "dcgan"),
    )
    return {
        "name": name,
        "networks": networks.to_dict(),
        "options": {**options.plain(), "precision": precision},
        "precision": precision,
    }


def _judge(folder: Path, plan: dict[str, Any], found: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """KID of each generator that was kept, against all photos of the folder; writes a picture of the last ones."""
    network = load_features()
    photos = torch.from_numpy(np.load(folder / gpu.PHOTOS))
    reals = network(photos)
    shown = [("real", photos[torch.from_numpy(pictures.spread(_SHOWN, len(photos)))])]
    rows: dict[str, list[dict[str, float]]] = {}
    for training in plan["trainings"]:
        name = training["name"]
        for number, kept in enumerate(found.get(f"training {name}", []), 1):
            generator = build_generator(NetworkSettings(**training["networks"]))
            generator.load_state_dict(torch.load(folder / f"{name}-{number}.pt", weights_only=True))
            drawn = draw(generator.eval(), min(1000, max(16, len(photos))), seed=1)
            value, error = kid(reals, network(drawn))
            rows.setdefault(name, []).append({**kept, "kid": value, "error": error})
        if name in rows:
            shown.append((f"{name}, {rows[name][-1]['seconds'] / 60:.1f} min", drawn[:_SHOWN]))
    (folder / "samples.png").write_bytes(pictures.png(pictures.side_by_side(shown, 4)))
    return rows


def tables(plan: dict[str, Any], found: dict[str, Any]) -> str:
    """The results as Markdown."""
    if "machine" not in found:
        return "Not measured yet."
    machine = found["machine"]
    parts = [f"{machine['gpu'] or 'No GPU'}, torch {machine['torch']}, {plan['image_size']} px."]
    if "speeds" in found:
        speeds = {**found["speeds"]}
        bandwidth = speeds.pop("bandwidth")
        measured = ", ".join(f"{speed / 1e12:,.1f} TFLOP/s in {name}" for name, speed in speeds.items())
        parts[0] += f" Measured: {measured}; a copy moves {bandwidth / 1e9:,.0f} GB/s."
    if found.get("losses"):
        apart = ", ".join(f"{difference:.0e} ({title})" for title, difference in found["losses"].items())
        parts[0] += f" The losses of an iteration are {apart} from the textbook's."
    steps = {batch: found[f"steps {batch}"] for batch in plan["batches"] if f"steps {batch}" in found}
    if steps:
        width = plan["candidates"][0]["networks"]["width"]
        head = [f"an iteration, width {width}", *(f"batch {batch}" for batch in steps)]
        parts.append(_table(head, _step_rows(steps)))
        parts.append(
            "Each cell: images/s (times the textbook), memory, share of the measured peak (share at best, by roofline)."
        )
    if len(steps) > 1:
        parts.append(_scaling(plan, steps))
    if "timeline" in found:
        parts += _timeline(found["timeline"])
    if "kid" in found:
        rows = [
            [name, *(f"{row['kid']:.2f} ± {row['error']:.2f} ({row['images'] / 1000:,.0f} kimg)" for row in kids)]
            for name, kids in found["kid"].items()
        ]
        times = [f"{plan['minutes'] * number / plan['points']:g} min" for number in range(1, plan["points"] + 1)]
        parts.append(_table([f"KID, {plan['photos']:,} photos", *times], rows))
    return "\n\n".join(parts)


def _step_rows(steps: dict[int, dict[str, dict[str, float]]]) -> list[list[str]]:
    titles = next(iter(steps.values()))
    return [[title, *(_cell(rows[title]) for rows in steps.values())] for title in titles]


def _cell(row: dict[str, float]) -> str:
    return (
        f"{row['images_per_second']:,.0f} ({row['ratio']:.2f}), {row['megabytes']:,.0f} MB, "
        f"{row['share_of_peak']:.1%} ({row['share_of_peak_at_best']:.1%})"
    )


def _scaling(plan: dict[str, Any], steps: dict[int, dict[str, dict[str, float]]]) -> str:
    """How far the last preset would scale over such GPUs, by the model of `benchmark scale`."""
    last, largest = plan["candidates"][-1], max(steps)
    title = f"{last['name']} {last['precision']}"
    seconds = {batch: batch / rows[title]["images_per_second"] for batch, rows in steps.items()}
    options = StepOptions.model_validate(last["options"])
    cost = Cost(*line_through(seconds), *messages(GanStep(NetworkSettings(**last["networks"]), options)))
    rows = [
        [name, *(f"{cost.most_workers(largest, link, weak=weak):,}" for weak in (False, True))]
        for name, link in LINKS.items()
    ]
    head = [f"most GPUs at half efficiency, {title}, by the model", f"batch {largest} in all", f"batch {largest} each"]
    return _table(head, rows)


def _timeline(found: dict[str, Any]) -> list[str]:
    gaps = found["gaps"]
    head = (
        f"An iteration of {found['candidate']} at batch {found['batch']} takes {found['milliseconds']:.2f} ms. Its "
        f"{found['launches']:,.0f} kernels keep the GPU busy {found['busy']:.0%} of the time. Under the profiler, gaps "
        f"take {gaps['share']:.0%}; the longest is {gaps['longest_microseconds']:,.0f} µs."
    )
    rows = [[f"`{each['name']}`", f"{each['share']:.1%}", f"{each['calls']:g}"] for each in found["kernels"]]
    return [head, _table(["kernel", "share of kernel time", "calls per iteration"], rows)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _around(page: Path, size: int) -> tuple[str, str]:
    """What the page has before and after the tables of images of `size` px, marks included.

    Raises:
        ConfigurationError: the page is missing or has no marks.
    """
    begin, end = _BEGIN.format(size=size) + "\n", _END.format(size=size)
    try:
        before, rest = page.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError):
        raise ConfigurationError(f"--page: {page} has no lines {begin.strip()} and {end} to write between") from None
    return before + begin, end + after
