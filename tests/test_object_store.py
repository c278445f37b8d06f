"""The jobs on an object store: photos, shards, runs, searches and samples in a bucket whose address has a query."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from raygan import tracking
from raygan.addresses import split_query
from raygan.classifier.classify import classify
from raygan.classifier.settings import ClassifySettings
from raygan.data.prepare import prepare
from raygan.data.settings import PrepareSettings
from raygan.data.shards import DataSet
from raygan.errors import RayganError
from raygan.evaluation.evaluate import evaluate
from raygan.evaluation.settings import EvaluateSettings
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.models.googlenet import load_classifier
from raygan.runtime import cluster, storage
from raygan.sampling.generators import find_generators
from raygan.sampling.sample import sample
from raygan.sampling.settings import SampleSettings
from raygan.tracking.networks import load_network
from raygan.training.train import train
from raygan.tuning.settings import TuneSettings
from raygan.tuning.tune import tune
from tests.conftest import takes_long
from tests.data import messy
from tests.helpers import CORES, google_storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

#: A run of version 0.1.0 after two epochs.
LEFT = Path(__file__).parent / "training" / "before_the_move" / "run"


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


both = pytest.mark.parametrize("bucket", ["s3", pytest.param("gs", marks=takes_long)], indirect=True)


@pytest.fixture
def bucket(endpoint, ray_cluster, request, monkeypatch):
    """The address of a folder in a new bucket: of S3, as users of MinIO or Ceph write it, or of Google's storage."""
    for variable in ("MLFLOW_S3_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, "set by the job")
        monkeypatch.delenv(variable)
    if getattr(request, "param", "s3") == "gs":
        with google_storage() as address:
            yield storage.join(address, "some", "folder")
        return
    name = request.node.originalname.replace("_", "-")[:60].strip("-")
    pafs.S3FileSystem(region="us-east-1", endpoint_override=endpoint, allow_bucket_creation=True).create_dir(name)
    yield f"s3://{name}/some/folder?region=us-east-1&endpoint_override={endpoint}"


@pytest.fixture
def records(new_storage):
    return f"sqlite:///{new_storage}/mlflow.db"


def files(address):
    filesystem, path = storage.resolve(address)
    return {
        info.path.removeprefix(f"{path}/")
        for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        if info.type == pafs.FileType.File
    }


def upload(folder, address):
    """Copy a folder's files into the bucket."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(address, str(path.relative_to(folder))), path.read_bytes())


@both
def test_photos_become_shards_in_a_bucket(bucket, records, tmp_path, monkeypatch):
    for label, first in (("cat", 1000), ("dog", 2000)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(40):
            messy.picture(first + i, 48).save(tmp_path / "photos" / label / f"{i}.png")
    photos, shards = storage.join(bucket, "photos"), storage.join(bucket, "shards")
    upload(tmp_path / "photos", photos)
    place = {"storage": bucket, "tracking_uri": records}
    prepared = {"input": [photos], "output": shards, "image_size": 32, "skip": ["outlier"], "validation": 0.2, **place}
    with monkeypatch.context() as patch:
        # On several nodes, a dry run works in a folder that all nodes see.
        patch.setattr(cluster, "nodes", lambda: [{"CPU": 4.0}] * 2)
        examined = prepare(PrepareSettings(**prepared, dry_run=True))
    assert {name.partition("/")[0] for name in files(bucket)} == {"photos"}
    assert prepare(PrepareSettings(**prepared))["kept"] == examined["kept"]
    assert DataSet.open(shards).manifest.classes == ["cat", "dog"]
    assert not any(".part" in name or ".prepare" in name for name in files(shards))


@both
def test_a_run_of_an_earlier_version_is_resumed_in_a_bucket_and_its_generator_draws_and_is_judged_there(
    bucket, records, train_settings, write_shards, capsys
):
    place = {"storage": bucket, "tracking_uri": records, "data": storage.join(bucket, "shards")}
    upload(write_shards(), place["data"])
    upload(LEFT, storage.join(bucket, "runs", "before-the-move"))
    settings = train_settings(**place, name="before-the-move", width=2, z_dim=4, epochs=3)
    result = train(settings)
    assert "resuming before-the-move" in capsys.readouterr().out
    assert result.metrics["images"] == 168  # three epochs of seven batches of eight
    lines = storage.read_text(storage.join(bucket, "runs", "before-the-move", "metrics.jsonl")).splitlines()
    known = (LEFT / "metrics.jsonl").read_text().splitlines()
    assert lines[: len(known)] == known
    assert len(lines) > len(known)
    assert result.checkpoint.startswith(split_query(bucket)[0])
    client = tracking.connect(settings)
    run = client.get_run(result.run_id)
    artifacts = split_query(storage.join(bucket, "artifacts"))[0].replace("anonymous@", "")  # pyarrow's word
    assert run.info.artifact_uri.startswith(artifacts)
    assert "pictures/curves.png" in [artifact.path for artifact in client.list_artifacts(result.run_id, "pictures")]

    output = storage.join(bucket, "samples")
    drawn = {"storage": bucket, "tracking_uri": records, "model": result.checkpoint, "output": output}
    sample(SampleSettings(**drawn, n=5, chunk_images=3))
    assert len(storage.list_files(output, "*.png")) == 5
    (found,) = find_generators(settings, [result.checkpoint], [])
    assert found.name == storage.name(result.checkpoint)
    evaluate(EvaluateSettings(**place, model=[result.checkpoint], samples=16, real_images=16, name="card"))
    assert {"card/report.html", "card/report.json"} <= files(storage.join(bucket, "reports"))


@takes_long
def test_a_classifier_is_trained_and_judges_in_a_bucket(bucket, records, write_shards, tmp_path):
    place = {"storage": bucket, "tracking_uri": records, "data": storage.join(bucket, "shards")}
    upload(write_shards(), place["data"])
    generator = build_generator(NetworkSettings(image_size=32, z_dim=4, width=2))
    save_generator(tmp_path / "all", generator, {"label": "all"})
    classify(ClassifySettings(**place, name="judge", epochs=1, batch_size=8))
    numbers = {"samples": 16, "real_images": 16, "name": "card"}
    evaluate(EvaluateSettings(**place, **numbers, model=[str(tmp_path / "all")], network=["googlenet"]))
    assert {"card/report.html", "card/report.json"} <= files(storage.join(bucket, "reports"))
    (folder,) = {name.partition("/")[0] for name in files(storage.join(bucket, "classifiers"))}
    address = storage.join(bucket, "classifiers", folder)
    assert load_network(address).name == f"googlenet_{folder}"
    assert load_classifier(storage.local_folder(address)).labels == ("cat", "dog")


@takes_long
def test_a_population_copies_checkpoints_in_a_bucket_and_a_search_is_resumed(
    bucket, records, train_settings, write_shards
):
    values = train_settings(
        storage=bucket,
        tracking_uri=records,
        data=str(write_shards(per_label=40)),
        num_workers=1,
        cpus_per_worker=CORES / 2,
        quality_every=None,
        quality_samples=16,
    ).model_dump()
    values |= {"name": "search", "trials": 2, "trial_kimg": 0.16, "judgements": 4, "scheduler": "pbt"}
    settings = TuneSettings.model_validate({**values, "space": ["generator_lr=1e-5..1e-3"]})
    with pytest.MonkeyPatch.context() as patch:
        # Interrupt at the end of the search, so that Tune's files are read again.
        patch.setattr("raygan.tuning.tune.conclude", refuse)
        with pytest.raises(RayganError, match="interrupted here"):
            tune(settings)
    result = tune(settings)
    assert result.trials == 2
    assert {"best.yaml", "pictures/samples.png"} <= files(storage.join(bucket, "searches", "search"))
    runs = {name.partition("/")[0] for name in files(storage.join(bucket, "runs"))}
    copied = [name for name in runs if name.count(".") == 2]
    assert copied
    # They started where others were, not at the first image.
    for name in copied:
        history = storage.read_text(storage.join(bucket, "runs", name, "metrics.jsonl"))
        assert min(json.loads(line)["images"] for line in history.splitlines()) > 8


def refuse(*_):
    raise RayganError("interrupted here")
