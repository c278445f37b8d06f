"""MLflow's model registry: trained models and their versions, and the alias that says which version is served."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import FileInfo, LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import RegisteredModel as MlflowModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from raygan.addresses import slug
from raygan.errors import RayganError, first_line
from raygan.tracking.flavor import FILES, Kind
from raygan.tracking.runs import Run

T = TypeVar("T")

#: Registry alias of the version that the service uses.
SERVING_ALIAS = "champion"

#: The registered model's name for the classifier of all labels.
CLASSIFIER_NAME = "raygan-classifier"

#: What MLflow puts before the names of registered models.
MODELS = "models:/"

#: Tag of a version: the logged model behind it.
_MODEL_ID = "raygan.model_id"

#: Seconds for which an upload is retried while the server is down or busy.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class RegisteredModel:
    """A version in MLflow's registry.

    Attributes:
        name: of the registered model.
        version: its number.
        run_id: of the MLflow run that made it, if known.
    """

    name: str
    version: str
    run_id: str | None


def generator_name(label: str) -> str:
    """The registered model's name for a label's generator. The label itself is in the model's tags."""
    return f"raygan-generator-{slug(label)}"


def register_generator(
    run: Run,
    folder: Path,
    label: str,
    *,
    labels: list[str],
    promote: bool = False,
    metrics: Mapping[str, float] | None = None,
) -> RegisteredModel:
    """Log a generator as a model of the run and register it as a new version.

    Args:
        run: the open run.
        folder: with generator.json and the weights.
        label: names the registered model.
        labels: what the generator can draw; several if it is conditional.
        promote: point the serving alias at the new version, without a reason on record.
        metrics: of the generator, for its card; those of the run at the same ``images`` are linked to the model.

    Raises:
        RayganError: the registry refuses.
    """
    tags = {"raygan.label": label, "raygan.labels": _joined(labels)}
    return _register(run, folder, generator_name(label), "generator", tags, promote, metrics or {})


def register_classifier(
    run: Run,
    folder: Path,
    labels: Sequence[str],
    *,
    promote: bool = False,
    metrics: Mapping[str, float] | None = None,
) -> RegisteredModel:
    """Log a classifier as a model of the run and register it as a new version.

    Args:
        run: the open run.
        folder: with classifier.json and the weights.
        labels: in the order of the classifier's outputs.
        promote: point the serving alias at the new version, without a reason on record.
        metrics: of the classifier, for its card; those of the run at the same ``images`` are linked to the model.

    Raises:
        RayganError: the registry refuses.
    """
    tags = {"raygan.labels": _joined(labels)}
    return _register(run, folder, CLASSIFIER_NAME, "classifier", tags, promote, metrics or {})


def serving_classifier(client: MlflowClient) -> RegisteredModel | None:
    """The promoted classifier, if any."""
    return find_model(client, CLASSIFIER_NAME)


def serving_generators(client: MlflowClient) -> dict[str, RegisteredModel]:
    """The promoted generator of each label that has one.

    A conditional generator counts for each of its labels that has no generator of its own. Raises RayganError if MLflow
    doesn't answer.
    """
    found: dict[str, RegisteredModel] = {}
    for model in _all_models(client):
        if model.tags.get("raygan.kind") != "generator" or SERVING_ALIAS not in model.aliases:
            continue
        version = _answer(client.get_model_version_by_alias, model.name, SERVING_ALIAS)
        if version is None:  # the alias has just been removed
            continue
        registered = RegisteredModel(model.name, str(version.version), version.run_id)
        labels = _split(version.tags.get("raygan.labels", model.tags.get("raygan.label", "")))
        for label in labels:
            if len(labels) == 1 or label not in found:
                found[label] = registered
    return found


def _joined(labels: Sequence[str]) -> str:
    """Labels as the value of a tag: with commas between them, or as JSON if that would not tell them apart."""
    plain = all("," not in label and not label.startswith("[") for label in labels)
    return ",".join(labels) if plain else json.dumps(list(labels), ensure_ascii=False)


def _split(value: str) -> list[str]:
    """The labels in a tag's value."""
    if value.startswith("["):
        with suppress(ValueError):
            return [str(label) for label in json.loads(value)]
    return [label for label in value.split(",") if label]


def find_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    """The version ``NAME/VERSION``, or for ``NAME`` the version under the serving alias; None if there is none.

    MLflow's own ``models:/NAME/VERSION`` and ``models:/NAME@ALIAS`` work, too. Raises RayganError if MLflow doesn't
    answer.
    """
    model, _, number = name.removeprefix(MODELS).partition("/")
    if number:
        version = _answer(client.get_model_version, model, number)
    else:
        model, _, alias = model.partition("@")
        version = _answer(client.get_model_version_by_alias, model, alias or SERVING_ALIAS)
    return RegisteredModel(model, str(version.version), version.run_id) if version else None


def _all_models(client: MlflowClient) -> Iterator[MlflowModel]:
    token = None
    while True:
        page = _answer(client.search_registered_models, page_token=token)
        yield from page or ()
        token = page.token if page else None
        if not token:
            return


def _answer(ask: Callable[..., T], *arguments: str, **options: Any) -> T | None:
    """The registry's answer, or None if nothing was found. Raises RayganError if it doesn't answer."""
    try:
        return ask(*arguments, **options)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RayganError(f"MLflow's registry does not answer: {first_line(error)}") from None


def download_model(
    client: MlflowClient, model: RegisteredModel, folder: Path, *, max_megabytes: float | None = None
) -> Path:
    """Download a registered version's JSON and safetensors files into `folder` and return their path.

    Args:
        client: of MLflow.
        model: the version.
        folder: where to write.
        max_megabytes: refuse larger versions, and those with folders inside, before the download.

    Raises:
        RayganError: it can't be downloaded, or is too large.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two small files
    try:
        source = client.get_model_version_download_uri(model.name, model.version)
        files = list_artifacts(artifact_uri=source, tracking_uri=client.tracking_uri)
        if any(file.path.endswith("MLmodel") for file in files):  # the rest is for those who don't have raygan
            source = f"{source.rstrip('/')}/{FILES}"
            files = list_artifacts(artifact_uri=source, tracking_uri=client.tracking_uri)
        if max_megabytes is not None:
            _check_size(files, max_megabytes)
        return Path(download_artifacts(source, dst_path=str(folder), tracking_uri=client.tracking_uri))
    except Exception as error:
        reason = first_line(error)
        raise RayganError(f"cannot download {model.name} version {model.version} from MLflow: {reason}") from None


def keep_beside(client: MlflowClient, model: RegisteredModel, file: Path, folder: str) -> None:
    """Keep a file beside a registered version, in a folder of its MLflow model.

    Raises RayganError if MLflow refuses, or the version was registered before there were MLflow models.
    """
    try:
        model_id = client.get_model_version(model.name, model.version).tags.get(_MODEL_ID)
        if model_id is None:
            raise RayganError("it is no MLflow model: train or register it again")
        client.log_model_artifact(model_id, str(file), folder)
    except Exception as error:  # whatever the artifacts' storage raises
        raise RayganError(f"cannot keep {file.name} beside {model.name}/{model.version}: {first_line(error)}") from None


def _check_size(files: Sequence[FileInfo], max_megabytes: float) -> None:
    if any(file.is_dir for file in files):
        raise RayganError("it has folders inside, so it is no model of raygan's")
    megabytes = sum(file.file_size or 0 for file in files) / 1e6
    if megabytes > max_megabytes:
        raise RayganError(f"its files have {megabytes:.0f} MB; the limit is {max_megabytes:g} MB")


def _register(
    run: Run,
    folder: Path,
    name: str,
    kind: Kind,
    tags: dict[str, str],
    promote: bool,
    metrics: Mapping[str, float],
) -> RegisteredModel:
    client = run.client
    try:
        _ensure_model(client, name, {"raygan.kind": kind, **tags})
        logged, text = _log(run, folder, name, kind, tags, metrics)
        # Not models:/ID, which the registry would look up at MLflow's global address.
        version = client.create_model_version(
            name,
            logged.artifact_location,
            run_id=run.id,
            tags={**tags, _MODEL_ID: logged.model_id},
            description=text,
            model_id=logged.model_id,
        )
        # A server does so itself; a database used directly leaves the model's page without its versions.
        linked = json.dumps([{"name": name, "version": version.version}])
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": linked})
        if promote:
            client.set_registered_model_alias(name, SERVING_ALIAS, version.version)
    except Exception as error:
        reason = first_line(error)
        raise RayganError(f"MLflow did not register the {kind}: {reason}; the same command tries again") from None
    return RegisteredModel(name, str(version.version), run.id)


def _log(
    run: Run, folder: Path, name: str, kind: Kind, tags: dict[str, str], metrics: Mapping[str, float]
) -> tuple[LoggedModel, str]:
    """Log a folder as a model of the run, linked to the run's metrics at that moment; also the model's card."""
    from raygan.tracking.card import card
    from raygan.tracking.flavor import write_model

    client, about = run.client, run.client.get_run(run.id)
    text = card(name, kind, folder, about.data.params, metrics)
    logged = client.create_logged_model(
        about.info.experiment_id,
        name=kind,
        source_run_id=run.id,
        params=about.data.params,
        tags={**tags, "mlflow.note.content": text},
        model_type=f"raygan {kind}",
    )
    model = Model(
        artifact_path=logged.artifact_location, run_id=run.id, model_id=logged.model_id, model_uuid=logged.model_id
    )
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, "model")
        write_model(folder, kind, model, written, text)
        _upload(client, logged.model_id, written)
    client.finalize_logged_model(logged.model_id, "READY")
    step = int(metrics.get("images", 0))
    client.log_outputs(run.id, [LoggedModelOutput(logged.model_id, step)])
    run.spool.put_link(logged.model_id, step)
    return logged, text


def _upload(client: MlflowClient, model_id: str, folder: Path) -> None:
    """Log the folder's files. A server gets retries for a while, since a model is the result of hours of work."""
    patience = _PATIENCE_S if client.tracking_uri.startswith("http") else 0.0
    deadline = time.monotonic() + patience
    while True:
        try:
            client.log_model_artifacts(model_id, str(folder))
            return
        except Exception:  # a server that is down or busy leads to many kinds of errors
            if time.monotonic() >= deadline:
                raise
            time.sleep(5)


def _ensure_model(client: MlflowClient, name: str, tags: dict[str, str]) -> None:
    try:
        client.create_registered_model(name, tags=tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
