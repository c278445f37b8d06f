"""Registered models as MLflow models: for raygan they are data, for others they predict without raygan."""

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
from importlib.metadata import distribution
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from PIL import Image

import raygan
from raygan import tracking
from raygan.errors import RayganError
from raygan.models.gan import save_generator
from raygan.runtime.settings import StorageSettings
from raygan.serve.messages import ModelVersion, SampleRequest
from raygan.serve.model_store import ModelStore
from raygan.serve.replicas import Replica
from raygan.serve.settings import ServeSettings
from tests.conftest import takes_long
from tests.helpers import wait_until
from tests.serve.local import make_classifier, make_generator

LABELS = ("cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the models' folders are, `g` and `c`, and the records."""
    return tmp_path_factory.mktemp("registered")


@pytest.fixture(scope="module")
def settings(folder, empty_records):
    shutil.copy(empty_records, folder)
    return StorageSettings(storage=str(folder), tracking_uri=None)


@pytest.fixture(scope="module")
def registered(settings, folder):
    """A run with a conditional generator and a classifier, both champions."""
    save_generator(folder / "g", make_generator(labels=LABELS), {"kimg": 0.064, "minutes": 1.0})
    make_classifier(folder / "c", LABELS)
    metrics = {"images": 64.0, "kid16_efficientnet_lite0": 0.5}
    params = {"photos": 30, "fingerprint": "f00d", "z_dim": 8}
    with tracking.start_run(settings, "r", job="train", params=params) as run:
        run.log_metrics({"critic_loss": 3.0}, 32)
        run.log_metrics(metrics | {"critic_loss": 2.0}, 64)
        tracking.register_generator(run, folder / "g", "pets", labels=list(LABELS), promote=True, metrics=metrics)
        tracking.register_classifier(run, folder / "c", LABELS, promote=True, metrics={"images": 64, "accuracy": 1})
    return run


@pytest.fixture
def at_mlflow(settings, monkeypatch):
    """MLflow's own functions use these records."""
    uri = tracking.tracking_uri(settings)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(None)
    if before:
        os.environ["MLFLOW_TRACKING_URI"] = before


def test_a_version_has_a_card_and_is_linked_to_its_run_and_metrics(registered):
    client = registered.client
    version = client.get_model_version("raygan-generator-pets", "1")
    for fact in ("30", "f00d", "| images seen | 64 |", "kid16_efficientnet_lite0 | 0.5", "## Use and limits", "z_dim"):
        assert fact in version.description
    run = client.get_run(registered.id)
    assert version.run_id == registered.id
    logged = {model.name: model for model in client.search_logged_models([run.info.experiment_id])}
    assert set(logged) == {"generator", "classifier"}
    generator = logged["generator"]
    assert (generator.status, generator.source_run_id, generator.params["photos"]) == ("READY", registered.id, "30")
    assert {output.model_id for output in run.outputs.model_outputs} == {one.model_id for one in logged.values()}
    assert json.loads(generator.tags["mlflow.modelVersions"]) == [{"name": "raygan-generator-pets", "version": 1}]
    # The metrics of that moment are the model's, and stand in the run once.
    assert {metric.key: metric.value for metric in generator.metrics} == {
        "images": 64.0,
        "kid16_efficientnet_lite0": 0.5,
        "critic_loss": 2.0,
    }
    assert [metric.step for metric in client.get_metric_history(registered.id, "critic_loss")] == [32, 64]


def test_nothing_is_pickled_and_raygan_reads_only_data(registered, settings, tmp_path):
    client = registered.client
    version = client.get_model_version("raygan-generator-pets", "1")
    files = [path for path in Path(version.source.removeprefix("file://")).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".py", ".json", ".yaml", ".txt", ".safetensors", ".md", ".png", ""}
    store = ModelStore(ServeSettings(**settings.model_dump()))
    for kind, name in (("generator", "raygan-generator-pets"), ("classifier", "raygan-classifier")):
        data = {f"{kind}.json", f"{kind}.safetensors"}
        assert set(store.files(ModelVersion(name, "1"))) == data
        model = tracking.find_model(client, name)
        assert {path.name for path in tracking.download_model(client, model, tmp_path / kind).iterdir()} == data


def test_a_version_registered_before_there_were_mlflow_models_still_loads(registered, settings, folder):
    client = registered.client
    client.log_artifacts(registered.id, str(folder / "g"), "generator")
    source = f"{client.get_run(registered.id).info.artifact_uri}/generator"
    client.create_model_version("raygan-generator-pets", source, run_id=registered.id)
    before, now = (
        raygan.load_generator(f"models:/raygan-generator-pets/{number}", storage=settings.storage) for number in (2, 1)
    )
    assert (before.sample([3], "dog") == now.sample([3], "dog")).all()
    files = ModelStore(ServeSettings(**settings.model_dump())).files(ModelVersion("raygan-generator-pets", "2"))
    assert set(files) == {"generator.json", "generator.safetensors"}

    client.log_artifacts(registered.id, str(folder / "c"), "classifier")
    source = f"{client.get_run(registered.id).info.artifact_uri}/classifier"
    client.create_model_version("raygan-classifier", source, run_id=registered.id)
    old, new = (raygan.load_classifier(f"raygan-classifier/{number}", storage=settings.storage) for number in (2, 1))
    pictures = now.sample([3, 4], "dog")
    np.testing.assert_array_equal(old.probabilities(pictures), new.probabilities(pictures))
    with pytest.raises(RayganError, match=r"cannot keep g\.onnx beside raygan-classifier/2: it is no MLflow model"):
        tracking.keep_beside(client, tracking.find_model(client, "raygan-classifier/2"), folder / "g.onnx", "onnx")


def test_mlflow_predicts_from_seeds_and_images(registered, settings, at_mlflow):
    generator = mlflow.pyfunc.load_model("models:/raygan-generator-pets@champion")
    images = generator.predict(pd.DataFrame({"seed": [7, 9, 7], "label": ["dog", "cat", "dog"]}), {"truncation": 0.7})
    assert (images.dtype, images.shape) == (np.uint8, (3, 32, 32, 3))
    card = registered.client.get_model_version("raygan-generator-pets", "1").description
    named = {"mlflow": mlflow, "pandas": pd}
    exec(card.split("```python\n")[1].split("```")[0], named)  # noqa: S102 (the card's example)
    assert named["images"].shape == images.shape
    ours = raygan.load_generator("models:/raygan-generator-pets@champion", storage=settings.storage)
    assert (images == ours.sample([7, 9, 7], ["dog", "cat", "dog"], 0.7)).all()
    with pytest.raises(ValueError, match="label must be one of cat, dog, not 'lion'"):
        generator.predict(pd.DataFrame({"seed": [1], "label": ["lion"]}))
    with pytest.raises(ValueError, match="truncation must be above 0"):
        generator.predict(pd.DataFrame({"seed": [1], "label": ["cat"]}), {"truncation": 0.0})

    classifier = mlflow.pyfunc.load_model("models:/raygan-classifier@champion")
    png = io.BytesIO()
    Image.fromarray(images[0]).save(png, "PNG")
    forms = [images[0], png.getvalue(), base64.b64encode(png.getvalue()).decode()]
    found = classifier.predict(pd.DataFrame({"image": forms}))
    assert list(found.columns) == ["cat", "dog"]
    expected = raygan.load_classifier(storage=settings.storage).probabilities(images[:1])
    np.testing.assert_allclose(found, np.repeat(expected, 3, 0), atol=1e-6)
    asked = pd.DataFrame({"image": [images[0].tolist(), images[0].astype(int)]})  # as from JSON
    np.testing.assert_allclose(classifier.predict(asked), np.repeat(expected, 2, 0), atol=1e-6)
    for wrong, says in (
        (b"no picture", "cannot identify"),
        (images[0] / 255, "it has float64 values, not whole numbers from 0 to 255"),
        (images[0].astype(int) - 256, "it has int64 values, not whole numbers"),
    ):
        with pytest.raises(ValueError, match=f"image 1 is neither .*{says}"):
            classifier.predict(pd.DataFrame({"image": [images[0], wrong]}))


def test_mlflow_predicts_from_seeds_alone_where_there_is_one_label(registered, settings, at_mlflow, tmp_path):
    save_generator(tmp_path, make_generator(), {"label": "cat"})
    with tracking.start_run(settings, "cat", job="train", params={}) as run:
        tracking.register_generator(run, tmp_path, "cat", labels=["cat"], promote=True)
    generator = mlflow.pyfunc.load_model("models:/raygan-generator-cat@champion")
    images = generator.predict(pd.DataFrame({"seed": [7, 9]}))
    assert (images == raygan.load_generator(str(tmp_path)).sample([7, 9])).all()


def test_python_draws_the_pixels_of_the_service(tmp_path):
    """Alone and among others, whatever the service's batches are."""
    save_generator(tmp_path, make_generator(), {"label": "cat"})
    version = ModelVersion("raygan-generator-cat", "1")

    async def fetch(model):
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    replica = Replica(ServeSettings(storage="x", tracking_uri=None, threads=2), fetch)
    seeds = tuple(range(50))

    async def serve(*requests):
        return [(await replica.draw(version, request))[0].images for request in requests]

    walk = SampleRequest("cat", (3,) * 4, 0.7, (4,) * 4, (0.0, 1 / 3, 2 / 3, 1.0))
    served, walked = asyncio.run(serve(SampleRequest("cat", seeds, 0.7), walk))
    generator = raygan.load_generator(str(tmp_path))
    assert (generator.sample(seeds, truncation=0.7) == served).all()
    assert (generator.sample([33], truncation=0.7)[0] == served[33]).all()
    assert (generator.interpolate(3, 4, 4, truncation=0.7) == walked).all()


PREDICT = """
import importlib.util, json, sys
import numpy, pandas
import mlflow.pyfunc

assert not any(importlib.util.find_spec(name) for name in ("raygan", "ray", "timm"))
uri, out = sys.argv[1:]
mlflow.set_tracking_uri(uri)
generator = mlflow.pyfunc.load_model("models:/raygan-generator-pets@champion")
seeds = pandas.DataFrame({"seed": [7, 9], "label": ["dog", "cat"]})
images = generator.predict(seeds, params={"truncation": 0.7})
numpy.save(out + "/images.npy", images)
classifier = mlflow.pyfunc.load_model("models:/raygan-classifier@champion")
numpy.save(out + "/probabilities.npy", classifier.predict(pandas.DataFrame({"image": list(images)})).to_numpy())
"""


@takes_long
@pytest.mark.timeout(600)
def test_a_bare_environment_predicts_and_serves(registered, settings, tmp_path):
    uri = tracking.tracking_uri(settings)
    required = set()
    for name in ("raygan-generator-pets", "raygan-classifier"):
        source = registered.client.get_model_version(name, "1").source.removeprefix("file://")
        required |= set(Path(source, "requirements.txt").read_text().split())
    python = bare_environment(tmp_path / "bare", required)
    program = tmp_path / "predict.py"
    program.write_text(PREDICT)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    options = {"cwd": tmp_path, "env": {**environment, "MLFLOW_TRACKING_URI": uri}}
    subprocess.run([python, program, uri, tmp_path], check=True, timeout=200, **options)
    ours = raygan.load_generator("raygan-generator-pets", storage=settings.storage)
    images = ours.sample([7, 9], ["dog", "cat"], 0.7)
    assert (np.load(tmp_path / "images.npy") == images).all()
    expected = raygan.load_classifier(storage=settings.storage).probabilities(images)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)

    rows = {"dataframe_split": {"columns": ["seed", "label"], "data": [[7, "dog"], [9, "cat"]]}}
    asked = {**rows, "params": {"truncation": 0.7}}
    answer = ask_server(python, "models:/raygan-generator-pets@champion", asked, options)
    assert (np.array(answer["predictions"]) == images).all()
    png = io.BytesIO()
    Image.fromarray(images[0]).save(png, "PNG")
    forms = [[base64.b64encode(png.getvalue()).decode()], [images[1].tolist()]]
    asked = {"dataframe_split": {"columns": ["image"], "data": forms}}
    answer = ask_server(python, "models:/raygan-classifier@champion", asked, options)
    found = [[row["cat"], row["dog"]] for row in answer["predictions"]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def ask_server(python, model, body, options):
    """What `mlflow models serve` answers for a model."""
    serve = [python, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "-p", "5077"]
    server = subprocess.Popen(serve, start_new_session=True, **options)
    try:
        return wait_until(lambda: ask(body), "an answer", 200, alive=server)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def ask(body):
    """The answer of MLflow's server, or None while there is none."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:5077/invocations", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except OSError as error:
        if getattr(error, "code", None):
            pytest.fail(error.read().decode())
        return None


def bare_environment(folder, required):
    """A Python that has the required packages, what they require, and nothing else: links to those installed here."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    waiting, known = {Requirement(line).name for line in required}, set()
    while waiting:
        name = waiting.pop()
        known.add(name)
        try:
            found = distribution(name)
        except ModuleNotFoundError:
            continue  # for another platform
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.name not in known and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                waiting.add(needed.name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            place = packages / top
            if not place.exists():
                place.symlink_to(Path(found.locate_file(top)))
    return str(folder / "bin" / Path(sys.executable).name)
