"""MLflow's model registry: trained models and their versions, and the alias that says which version is served."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import FileInfo
from mlflow.entities.model_registry import RegisteredModel as MlflowModel
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH

from raygan.addresses import slug
from raygan.errors import ConfigurationError, RayganError, first_line

T = TypeVar("T")

#: Registry alias of the version that the service uses.
SERVING_ALIAS = "champion"

#: How users name a registered version, in words.
NAMES = f"NAME for the version under {SERVING_ALIAS!r}, or NAME/VERSION"

#: The registered model's name for the classifier of all labels.
CLASSIFIER_NAME = "raygan-classifier"

#: Tag of a version: the labels that it draws or tells apart.
LABELS = "raygan.labels"

#: What MLflow puts before the names of registered models.
MODELS = "models:/"

#: Where the JSON and safetensors files are in an MLflow model.
FILES = "artifacts"


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
        labels = _split(version.tags.get(LABELS, model.tags.get("raygan.label", "")))
        for label in labels:
            if len(labels) == 1 or label not in found:
                found[label] = registered
    return found


def check_labels(labels: Sequence[str]) -> None:
    """Raise ConfigurationError if these labels are too long together to be recorded with one model."""
    length = len(joined(labels))
    if length > MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH:
        raise ConfigurationError(
            f"--data: its {len(labels):,} labels have {length:,} characters together, and MLflow's registry keeps "
            f"{MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH:,} with a model: prepare shards of fewer labels"
        )


def joined(labels: Sequence[str]) -> str:
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


def _check_size(files: Sequence[FileInfo], max_megabytes: float) -> None:
    if any(file.is_dir for file in files):
        raise RayganError("it has folders inside, so it isn't one of raygan's models")
    megabytes = sum(file.file_size or 0 for file in files) / 1e6
    if megabytes > max_megabytes:
        raise RayganError(f"its files have {megabytes:.0f} MB; the limit is {max_megabytes:g} MB")
