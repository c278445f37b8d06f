"""Registering trained models: as MLflow models of their runs (`raygan.tracking.flavor`), and as registered versions."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException

from raygan.errors import RayganError, first_line
from raygan.tracking.models import CLASSIFIER_NAME, LABELS, SERVING_ALIAS, RegisteredModel, generator_name, joined
from raygan.tracking.runs import Run

if TYPE_CHECKING:
    from raygan.tracking.flavor import Kind

#: Tag of a version: the logged model behind it.
_MODEL_ID = "raygan.model_id"

#: Seconds for which an upload is retried while the server is down or busy.
_PATIENCE_S = 60.0


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
    tags = {"raygan.label": label, LABELS: joined(labels)}
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
    tags = {LABELS: joined(labels)}
    return _register(run, folder, CLASSIFIER_NAME, "classifier", tags, promote, metrics or {})


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
        # The labels are the version's: a registered model's tags have room for 5,000 characters in some databases.
        _ensure_model(client, name, {"raygan.kind": kind, **{tag: text for tag, text in tags.items() if tag != LABELS}})
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
    from mlflow.models import Model  # slow to import, as are the networks

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
