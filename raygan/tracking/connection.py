"""Where MLflow is, and whether it works.

Without an address, records go to a SQLite file in the storage folder and artifacts beside it, so no server is needed.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import shlex
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path

from raygan.addresses import by_proxy, is_remote, join, public, split_query, sqlite_file, sqlite_uri
from raygan.errors import RayganError, first_line, reason
from raygan.runtime.settings import StorageSettings
from raygan.runtime.storage import check_writable

#: Seconds to wait while another job creates MLflow's tables.
_TABLES_S = 60.0

#: By the scheme of the artifacts' address: the package that MLflow needs, and raygan's extra that installs it.
_PACKAGES = {"s3": ("boto3", "s3"), "gs": ("google.cloud.storage", "gs")}


#: By the scheme, the variable that names a server to the libraries that MLflow uses.
_ENDPOINTS = {"s3": "MLFLOW_S3_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


def tracking_uri(settings: StorageSettings) -> str:
    """The MLflow address in use: as set, or the SQLite file in the storage folder."""
    if settings.tracking_uri:
        return settings.tracking_uri
    if is_remote(settings.storage):
        raise RayganError(
            f"--tracking-uri is required with remote storage {public(settings.storage)}: it can't hold a SQLite file"
        )
    return sqlite_uri(f"{os.path.abspath(settings.storage)}/mlflow.db")


def ui_command(settings: StorageSettings) -> str:
    """The command that shows these records in MLflow's user interface."""
    uri = public(tracking_uri(settings))
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def connect(settings: StorageSettings) -> MlflowClient:
    """An MLflow client whose server answers. Raises RayganError within seconds if it doesn't."""
    uri = tracking_uri(settings)
    # With the client's own timeouts and retries, a job would take minutes to end.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports every table that it creates
    # It reports every table that it upgrades, and prints pages of SQL for an error that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    _name_endpoint(settings.storage)
    alone: AbstractContextManager[Any] = nullcontext()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif file := sqlite_file(uri):
        database = Path(file)
        _make_folder(database.parent)
        alone = _alone_with(database)
    try:
        with alone:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(settings.experiment)
            _tidy(uri)
    except Timeout:
        raise RayganError(
            f"another job has been working on the tables of {public(uri)} for {_TABLES_S:.0f} s: run the command again "
            f"once it is done"
        ) from None
    except Exception as error:
        # Stores raise whatever their drivers raise. In any case, what users can change is the address.
        reason = first_line(error).replace(uri, public(uri))
        raise RayganError(f"MLflow at {public(uri)} does not work: {reason}; check --tracking-uri") from None
    _check_reachable(experiment.artifact_location if experiment else artifact_location(settings))
    return client


@contextmanager
def _alone_with(database: Path) -> Iterator[None]:
    """A block in which no other job creates tables; one that fails to create them leaves no database.

    Two jobs at the same time, or a full disk, would leave some of the tables, to which no later try could add the rest.
    """
    with FileLock(f"{database}.lock", timeout=_TABLES_S):
        new = not database.exists()
        try:
            yield
        except BaseException:
            if new:
                database.unlink(missing_ok=True)
            raise


def _tidy(uri: str) -> None:
    """Remove the empty folder that MLflow makes where a SQLite file's path and its URI differ."""
    file, raw = sqlite_file(uri), uri.removeprefix("sqlite:///")
    if file and file != raw:
        with suppress(OSError):
            os.removedirs(os.path.dirname(raw))


def check_records(settings: StorageSettings) -> tuple[MlflowClient, str]:
    """Check that a run can be recorded, artifacts included; creates the experiment if it doesn't exist.

    Returns:
        A client, and the experiment's id.

    Raises:
        RayganError: MLflow doesn't answer, the experiment was deleted, or artifacts can't be written.
    """
    client = connect(settings)
    try:
        experiment = client.get_experiment_by_name(settings.experiment) or _create_experiment(client, settings)
    except MlflowException as error:
        raise RayganError(f"--experiment: MLflow refuses {settings.experiment!r}: {first_line(error)}") from None
    if experiment.lifecycle_stage == "deleted":
        raise RayganError(
            f"--experiment: {settings.experiment} was deleted in MLflow at {public(client.tracking_uri)}: give another "
            f"name, or restore it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    location = experiment.artifact_location
    try:
        if urllib.parse.urlsplit(location).scheme in ("", "file"):
            check_writable(local_file_uri_to_path(location))
        else:
            _check_upload(client, location)
    except Exception as error:  # clients of object stores raise anything
        reason = first_line(error)
        raise RayganError(
            f"MLflow keeps artifacts in {public(location)}, where nothing can be written: {reason}"
        ) from None
    return client, str(experiment.experiment_id)


def _create_experiment(client: MlflowClient, settings: StorageSettings) -> Experiment:
    try:
        number = client.create_experiment(settings.experiment, artifact_location=artifact_location(settings))
        return client.get_experiment(number)
    except MlflowException as error:
        there = client.get_experiment_by_name(settings.experiment)  # another job may have just created it
        if there is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return there


def _check_upload(client: MlflowClient, location: str) -> None:
    store = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, ".writable")
        probe.touch()
        store.log_artifact(str(probe))
    with suppress(Exception):  # not every store deletes
        store.delete_artifacts(probe.name)


def artifact_location(settings: StorageSettings) -> str | None:
    """Where artifacts of a new experiment go; None if a server decides.

    By default a database would put them in the job's working directory.
    """
    if tracking_uri(settings).startswith(("http://", "https://")):
        return None
    place, _ = split_query(join(settings.storage, "artifacts"))  # MLflow would append to the query
    if is_remote(place):
        return place.replace("gs://anonymous@", "gs://")  # pyarrow's word for no credentials
    return Path(place).absolute().as_uri()


def _check_reachable(location: str | None) -> None:
    """Raise RayganError if MLflow lacks a package that it needs for artifacts there."""
    module, extra = _PACKAGES.get((location or "").partition("://")[0], (None, ""))
    if module is not None and not _is_installed(module):
        raise RayganError(
            f"MLflow keeps artifacts in {public(location or '')} and needs {module} for that: "
            f"pip install 'raygan[{extra}]', or let an MLflow server keep them (--tracking-uri)"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent package
        return False


def _name_endpoint(address: str) -> None:
    """Tell MLflow which server a storage address names. MLflow reads it from the environment only."""
    query = dict(urllib.parse.parse_qsl(split_query(address)[1].removeprefix("?")))
    endpoint = query.get("endpoint_override")
    variable = _ENDPOINTS.get(address.partition("://")[0])
    if variable and endpoint:
        whole = endpoint if "://" in endpoint else f"{query.get('scheme', 'https')}://{endpoint}"
        os.environ.setdefault(variable, whole)


def _check_server(uri: str) -> None:
    """Ask the server once, since MLflow's own client would retry for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()  # noqa: S310 (http or https, checked)
    except urllib.error.HTTPError as error:
        if error.code >= 500 and by_proxy(uri):
            raise _no_answer(uri, error) from None
        # Otherwise it answers; a server behind a proxy of its own may not have /health.
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last where another protocol is spoken
        raise _no_answer(uri, getattr(error, "reason", str(error).strip())) from None


def await_server(settings: StorageSettings, patience_s: float) -> None:
    """Return once MLflow's server answers, or after this time in any case; at once if there is none but a database."""
    uri, deadline, said = tracking_uri(settings), time.monotonic() + patience_s, False
    while uri.startswith(("http://", "https://")) and time.monotonic() < deadline:
        try:
            _check_server(uri)
            return
        except RayganError as error:
            if not said:
                print(f"waiting for {patience_s / 60:.0f} minutes at most: {error}", file=sys.stderr, flush=True)
            said = True
            time.sleep(5)


def _no_answer(uri: str, reason: object) -> RayganError:
    advice = (
        by_proxy(uri)
        or "start it, correct --tracking-uri or MLFLOW_TRACKING_URI, or unset it to record in a local file"
    )
    return RayganError(f"MLflow at {public(uri)} does not answer ({reason}): {advice}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RayganError(
            f"--storage: cannot write to {folder}: {reason(error)}: name another folder, or set RAYGAN_STORAGE"
        ) from None
