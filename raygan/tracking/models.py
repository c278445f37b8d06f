"""MLflow's model registry: trained models and their versions, and the alias that says which version is served."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel as MlflowModel
from mlflow.exceptions import MlflowException

from raygan.errors import RayganError, first_line
from raygan.tracking.runs import Run

T = TypeVar("T")

#: Registry alias of the version that the service uses.
SERVING_ALIAS = "champion"

#: The registered model's name for the classifier of all labels.
CLASSIFIER_NAME = "raygan-classifier"

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
    """The registered model's name for a label's generator."""
    return f"raygan-generator-{label}"


def register_generator(
    run: Run, folder: Path, label: str, *, labels: list[str], promote: bool = False
) -> RegisteredModel:
    """Log a generator folder as the run's artifact and register it as a new version.

    Args:
        run: the open run.
        folder: with generator.json and the weights.
        label: names the registered model.
        labels: what the generator can draw; several if it is conditional.
        promote: point the serving alias at the new version, without a reason on record.

    Raises:
        RayganError: the registry refuses.
    """
    tags = {"raygan.label": label, "raygan.labels": ",".join(labels)}
    return _register(run, folder, generator_name(label), "generator", tags, promote)


def register_classifier(run: Run, folder: Path, labels: Sequence[str], *, promote: bool = False) -> RegisteredModel:
    """Log a classifier folder as the run's artifact and register it as a new version.

    Args:
        run: the open run.
        folder: with classifier.json and the weights.
        labels: in the order of the classifier's outputs.
        promote: point the serving alias at the new version, without a reason on record.

    Raises:
        RayganError: the registry refuses.
    """
    return _register(run, folder, CLASSIFIER_NAME, "classifier", {"raygan.labels": ",".join(labels)}, promote)


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
        labels = version.tags.get("raygan.labels", model.tags.get("raygan.label", "")).split(",")
        for label in filter(None, labels):
            if len(labels) == 1 or label not in found:
                found[label] = registered
    return found


def find_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    """The version ``NAME/VERSION``, or for ``NAME`` the version under the serving alias; None if there is none.

    Raises RayganError if MLflow doesn't answer.
    """
    model, _, number = name.partition("/")
    if number:
        version = _answer(client.get_model_version, model, number)
    else:
        version = _answer(client.get_model_version_by_alias, model, SERVING_ALIAS)
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
    """Download a registered version into `folder` and return the path of its files.

    Args:
        client: of MLflow.
        model: the version.
        folder: where to write.
        max_megabytes: refuse larger versions, and those with folders inside, before the download.

    Raises:
        RayganError: it can't be downloaded, or is too large.
    """
    from mlflow.artifacts import download_artifacts

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # two small files
    try:
        source = client.get_model_version_download_uri(model.name, model.version)
        if max_megabytes is not None:
            _check_size(source, client.tracking_uri, max_megabytes)
        return Path(download_artifacts(source, dst_path=str(folder), tracking_uri=client.tracking_uri))
    except Exception as error:
        reason = first_line(error)
        raise RayganError(f"cannot download {model.name} version {model.version} from MLflow: {reason}") from None


def _check_size(source: str, tracking_uri: str, max_megabytes: float) -> None:
    from mlflow.artifacts import list_artifacts

    files = list_artifacts(artifact_uri=source, tracking_uri=tracking_uri)
    if any(file.is_dir for file in files):
        raise RayganError("it has folders inside, so it is no model of raygan's")
    megabytes = sum(file.file_size or 0 for file in files) / 1e6
    if megabytes > max_megabytes:
        raise RayganError(f"its files have {megabytes:.0f} MB; the limit is {max_megabytes:g} MB")


def _register(run: Run, folder: Path, name: str, kind: str, tags: dict[str, str], promote: bool) -> RegisteredModel:
    try:
        _upload(run, folder, kind)
        _ensure_model(run.client, name, {"raygan.kind": kind, **tags})
        source = f"{run.client.get_run(run.id).info.artifact_uri}/{kind}"
        version = run.client.create_model_version(name, source, run_id=run.id, tags=tags)
        if promote:
            run.client.set_registered_model_alias(name, SERVING_ALIAS, version.version)
    except Exception as error:
        reason = first_line(error)
        raise RayganError(f"MLflow did not register the {kind}: {reason}; the same command tries again") from None
    return RegisteredModel(name, str(version.version), run.id)


def _upload(run: Run, folder: Path, kind: str) -> None:
    """Log the folder's files. A server gets retries for a while, since a model is the result of hours of work."""
    patience = _PATIENCE_S if run.client.tracking_uri.startswith("http") else 0.0
    deadline = time.monotonic() + patience
    while True:
        try:
            run.client.log_artifacts(run.id, str(folder), kind)
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
