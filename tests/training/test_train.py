"""Training through the real Ray Train: gradients, records, resumption, and what is refused."""

import json
import os
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.train
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from raygan import tracking
from raygan.benchmarks.processes import find_processes
from raygan.data.batches import BatchStream
from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.errors import ConfigurationError, RayganError
from raygan.metrics.distances import kid
from raygan.models.distributed import Share
from raygan.models.features import load_features
from raygan.models.gan import load_generator
from raygan.training.build import new_step
from raygan.training.checkpoints import save_training
from raygan.training.monitor import draw
from raygan.training.schedule import Schedule
from raygan.training.train import train
from tests.helpers import CORES, run_ranks, start_job, wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")

PICTURES = [
    "curves.png",
    "interpolation.png",
    "progress.webp",
]


def test_a_training_is_measured_and_leaves_a_model_pictures_and_a_finished_run(train_settings, write_shards, tmp_path):
    data = str(write_shards(per_label=40, folder="measured", held_out=6))
    settings = train_settings(
        data=data,
        name="whole",
        conditional=True,
        kimg=0.16,
        checkpoint_every=0.02,  # every other one is never measured, which must not make it the best
        quality_every=0.04,
        quality_samples=16,
        generator_lr=0.03,  # too high, so the best checkpoint is not the last
        snapshot_every=0.08,
        keep_checkpoints=1,
        log_checkpoints="last",
    )
    result = train(settings)
    client = tracking.connect(settings)
    assert_recorded(client, result, settings)
    assert_the_best_is_chosen(client, result)
    assert_measured_afresh(client, result, data)
    assert_registered(client, result, tmp_path)
    line = json.loads(result.to_json())
    assert set(line) == {"run_id", "model", "promotion", "checkpoint", "metrics", "last_metrics"}
    assert line["promotion"] == {"promoted": True, "reason": "there was none before"}
    assert os.path.exists(os.path.join(line["checkpoint"], "training.safetensors"))
    # The name belongs to this run from now on.
    with pytest.raises(ConfigurationError, match="is finished: train it further"):
        train(settings)
    with pytest.raises(ConfigurationError, match="z_dim was 8, now 9"):
        train(settings.model_copy(update={"kimg": 0.2, "z_dim": 9}))
    other = str(write_shards(per_label=40, folder="other", seed=1))
    with pytest.raises(ConfigurationError, match="shards have changed"):
        train(settings.model_copy(update={"kimg": 0.2, "data": other}))


def assert_recorded(client, result, settings):
    """The run in MLflow: settings, every metric of every batch of eight, pictures and data."""
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["z_dim"] == "8"
    assert run.data.params["fingerprint"] == "0-40"
    for name in ("critic_loss", "generator_loss", "wasserstein", "critic_gradient", "certainty", "score_train"):
        assert [m.step for m in client.get_metric_history(result.run_id, name)] == list(range(8, 161, 8))
    # The preset takes the penalty in every fourth step.
    assert [m.step for m in client.get_metric_history(result.run_id, "gradient_penalty")] == list(range(8, 161, 32))
    artifacts = [a.path for a in client.list_artifacts(result.run_id, "pictures")]
    assert artifacts == [f"pictures/{name}" for name in PICTURES]
    # Series, which MLflow's user interface compares between runs.
    series = {a.path.split("+timestamp")[0] for a in client.list_artifacts(result.run_id, "images")}
    assert series >= {"images/curves+step+160", *(f"images/samples+step+{images}" for images in (0, 80, 160))}
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("measured", "0-40")
    assert json.loads(data.dataset.source)["uri"] == settings.data
    assert json.loads(data.dataset.profile)["train"] == {"cat": 60, "dog": 60}
    with Image.open(os.path.join(result.pictures, "samples-000000160-images.png")) as picture:
        assert np.asarray(picture).std() > 10
    with Image.open(os.path.join(result.pictures, "progress.webp")) as picture:
        assert picture.n_frames == 3
    assert "nearest-000000160-images.png" in os.listdir(result.pictures)
    kept = [a.path for a in client.list_artifacts(result.run_id, "checkpoints/last")]
    assert "checkpoints/last/training.safetensors" in kept
    logs = logs_of(result)
    # The critic's scores of held-out photos stand beside those of training photos, under their own labels.
    assert all({"score_train", "score_held_out"} <= set(each) for each in logs)
    # The rate is that of the whole time between two logs, with the pauses for pictures and checkpoints.
    for before, after in pairwise(logs):
        seconds = 60 * (after["minutes"] - before["minutes"])
        assert seconds * after["images_per_second"] == pytest.approx(after["images"] - before["images"], rel=1e-6)


def logs_of(result):
    with open(os.path.join(os.path.dirname(result.pictures), "metrics.jsonl")) as file:
        return [each for each in map(json.loads, file) if "images_per_second" in each]


def assert_the_best_is_chosen(client, result):
    """The checkpoint of the lowest KID, with its own metrics."""
    history = client.get_metric_history(result.run_id, "kid16_efficientnet_lite0")
    assert [metric.step for metric in history] == [32, 64, 96, 128, 160]
    best = min(history, key=lambda metric: metric.value).step
    with open(os.path.join(result.checkpoint, "generator.json")) as file:
        about = json.load(file)["about"]
    assert about["metrics"]["images"] == best
    # The metrics of a result are those of the checkpoint that became the model.
    assert (result.metrics["images"], result.last_metrics["images"]) == (best, 160)
    assert result.metrics["kid16_efficientnet_lite0"] == min(metric.value for metric in history)
    assert result.metrics["critic_loss"] == about["metrics"]["critic_loss"]
    kept = checkpoints(os.path.dirname(result.checkpoint))
    assert len(kept) == (1 if best == 160 else 2)  # the best and the last


def assert_registered(client, result, folder):
    """The champion of both labels, which draws from what MLflow keeps."""
    served = tracking.serving_generators(client)
    assert served["cat"] == served["dog"] == result.model
    tags = client.get_model_version(result.model.name, result.model.version).tags
    assert "there was none before" in tags["raygan.promoted"]
    generator, about = load_generator(tracking.download_model(client, result.model, folder / "fetched"))
    assert about["labels"] == ["cat", "dog"]
    assert generator(torch.randn(2, 8), torch.tensor([0, 1])).shape == (2, 3, 32, 32)


def assert_measured_afresh(client, result, data):
    """Both networks measure the result once more: on other samples, and on photos that the monitor did not see."""
    photos = open_photos(DataSet.open(data), "validation", None)
    pixels, classes = photos.block(0)
    cats, dogs = (np.flatnonzero(classes == number) for number in (0, 1))
    # Of the six of each class, in order, the monitor sees the others.
    held = np.sort(np.concatenate([cats[1::2], dogs[1::2]]))
    generator, _ = load_generator(Path(result.checkpoint))
    drawn = draw(generator, 16, seed=2, like=torch.from_numpy(classes[held].copy()))
    for name in ("efficientnet_lite0", "efficientnet_lite2"):
        features = load_features(name)
        expected, error = kid(features(torch.from_numpy(pixels[held].copy())), features(drawn))
        assert result.metrics[f"fresh_kid16_{name}"] == pytest.approx(expected, rel=1e-3)
        assert result.metrics[f"fresh_kid16_{name}_error"] == pytest.approx(error, rel=1e-3)
        (recorded,) = client.get_metric_history(result.run_id, f"fresh_kid16_{name}")
        assert recorded.step == result.metrics["images"]


def test_a_collapsed_training_says_so_and_keeps_the_last_good_checkpoint(train_settings):
    """The learning rates rise until the generator is lost."""
    rates = {"generator_lr": 1.0, "critic_lr": 1.0, "warmup_kimg": 0.3}
    settings = train_settings(name="collapsed", objective="r3gan", **rates, epochs=60, checkpoint_every=0.008)
    with pytest.raises(RayganError, match=r"has collapsed at .*: .*; the last good checkpoint is") as raised:
        train(settings)
    assert "\n" not in str(raised.value)
    client = tracking.connect(settings)
    (run,) = client.search_runs([client.get_experiment_by_name("raygan").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["raygan.collapsed"]
    kept = str(raised.value).split("checkpoint is ")[1].split(";")[0]
    generator, _ = load_generator(Path(kept))
    assert all(torch.isfinite(p).all() for p in generator.parameters())


def plain_loop(rank, settings, folder):
    """The training without Ray, on one of two ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    photos, share = open_photos(DataSet.open(settings.data), "train", None), Share(rank, 2)
    schedule = Schedule.of(settings, len(photos), settings.batch_size)
    step = new_step(settings, schedule, share=share)
    for reals, classes in BatchStream(photos, settings.batch_size, settings.seed, share).starting_at(0):
        step.step(reals, classes)
        if step.images_seen >= schedule.total:
            break
    if rank == 0:
        save_training(Path(folder), step, {})


def test_a_killed_driver_and_a_killed_worker_change_no_weight(train_settings, tmp_path):
    length = {"num_workers": 2, "epochs": 16, "snapshot_every": 1000, "log_every": 0.056, "keep_checkpoints": 100}
    settings = train_settings(name="killed", **length)
    driver = start_job("train", settings=settings, address=ray.get_runtime_context().gcs_address)
    folder = os.path.join(settings.storage, "runs/killed")
    wait_until(lambda: checkpoints(folder), "a checkpoint", alive=driver)
    driver.kill()
    driver.wait()
    killed = []
    threading.Thread(target=kill_a_worker, args=(folder, set(checkpoints(folder)), killed)).start()
    resumed = train(settings)
    assert killed
    (tmp_path / "whole").mkdir()
    run_ranks(plain_loop, 2, settings, str(tmp_path / "whole"))
    whole = load_file(tmp_path / "whole" / "training.safetensors")
    found = load_file(os.path.join(resumed.checkpoint, "training.safetensors"))
    assert found.keys() == whole.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, found[name])] == []
    client = tracking.connect(settings)
    assert client.get_run(resumed.run_id).info.status == "FINISHED"
    runs = client.search_runs([client.get_experiment_by_name("raygan").experiment_id])
    assert [run.info.run_name for run in runs] == ["killed"]
    assert client.get_run(resumed.run_id).data.tags["raygan.resumed"]
    steps = [metric.step for metric in client.get_metric_history(resumed.run_id, "critic_loss")]
    assert sorted(steps) == list(range(56, 16 * 56 + 1, 56))  # 60 photos make 7 batches of 8 per epoch


def kill_a_worker(folder, known, killed):
    """Kill a training worker as soon as there is a new checkpoint."""
    wait_until(lambda: set(checkpoints(folder)) - known, "a new checkpoint")
    for process in find_processes("ray::RayTrainWorker")[:1]:
        process.kill()
        killed.append(process.pid)


def checkpoints(folder):
    if not os.path.isdir(folder):
        return []
    return [name for name in os.listdir(folder) if name.startswith("checkpoint_2")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "/nowhere/shards"}, "prepare.py"),
        ({"image_size": 64}, "--image-size"),
        ({"label": "bird"}, "it has cat, dog"),
        ({"batch_size": 500}, "lower --batch-size to at most 60"),
        ({"num_workers": 2, "cpus_per_worker": CORES - 1.0}, "do not fit this cluster"),
        ({"tracking_uri": "http://127.0.0.1:9"}, "does not answer"),
        ({"name": "a/b"}, r"letters \(a to z, A to Z\), digits"),
        ({"quality_every": 0.01, "quality_network": "nobody"}, "--quality-network: 'nobody' is not a feature network"),
        ({"quality_every": 0.01, "quality_network": "googlenet"}, "--quality-network: no classifier is registered"),
        ({"gpu": True}, "GPU"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run_begins(train_settings, changes, says):
    settings = train_settings(**changes)
    with pytest.raises(RayganError, match=says) as raised:
        train(settings)
    assert "\n" not in str(raised.value)
    assert not Path(settings.storage, "runs").exists()


@pytest.mark.parametrize("damage", ["cut short", "of another data set"])
def test_a_bad_shard_is_refused_before_the_run_begins(train_settings, write_shards, damage):
    root = write_shards()
    shard = root / "b.parquet"
    if damage == "cut short":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        shutil.copy(write_shards(per_label=8, folder="other") / "b.parquet", shard)
    says = "cannot read shard" if damage == "cut short" else "has other photos than its manifest says"
    with pytest.raises(RayganError, match=f"{says}.*prepare") as raised:
        train(train_settings(data=str(root)))
    assert "\n" not in str(raised.value)
