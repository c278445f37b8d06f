"""Where MLflow is, and whether it works.

Without an address, records go to a SQLite file in the storage folder and artifacts beside it, so no server is needed.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient

from raygan.addresses import is_remote, join, public, split_query
from raygan.errors import RayganError, first_line
from raygan.runtime.settings import StorageSettings

#: Seconds to wait while another job creates MLflow's tables.
_TABLES_S = 60.0

#: By the scheme of the artifacts' address: the package that MLflow needs, and raygan's extra that installs it.
_PACKAGES = {"s3": ("boto3", "s3"), "gs": ("google.cloud.storage", "gs")}


def tracking_uri(settings: StorageSettings) -> str:
    """The MLflow address in use: as set, or the SQLite file in the storage folder."""
    if settings.tracking_uri:
        return settings.tracking_uri
    if is_remote(settings.storage):
        raise RayganError(
            f"--tracking-uri is required with remote storage {public(settings.storage)}: it can't hold a SQLite file"
        )
    return f"sqlite:///{os.path.abspath(settings.storage)}/mlflow.db"


def ui_command(settings: StorageSettings) -> str:
    """The command that shows these records in MLflow's user interface."""
    uri = public(tracking_uri(settings))
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


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
    elif uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        _make_folder(database.parent)
        # Two jobs that create the tables at the same time would leave them incomplete.
        alone = FileLock(f"{database}.lock", timeout=_TABLES_S)
    try:
        with alone:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(settings.experiment)
    except Exception as error:
        # Stores raise whatever their drivers raise. In any case, what users can change is the address.
        reason = first_line(error).replace(uri, public(uri))
        raise RayganError(f"MLflow at {public(uri)} does not work: {reason}; check --tracking-uri") from None
    _check_reachable(experiment.artifact_location if experiment else artifact_location(settings))
    return client


def artifact_location(settings: StorageSettings) -> str | None:
    """Where artifacts of a new experiment go; None if a server decides.

    By default a database would put them in the job's working directory.
    """
    if tracking_uri(settings).startswith(("http://", "https://")):
        return None
    place, _ = split_query(join(settings.storage, "artifacts"))  # MLflow would append to the query
    return place if is_remote(place) else Path(place).absolute().as_uri()


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
    if address.startswith("s3://") and endpoint:
        whole = endpoint if "://" in endpoint else f"{query.get('scheme', 'https')}://{endpoint}"
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", whole)


def _check_server(uri: str) -> None:
    """Ask the server once, since MLflow's own client would retry for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()  # noqa: S310 (http or https, checked)
    except urllib.error.HTTPError:
        pass  # it answers; a server behind a proxy may not have /health
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RayganError(
            f"MLflow at {public(uri)} does not answer ({reason}): start it, correct --tracking-uri or "
            f"MLFLOW_TRACKING_URI, or unset it to record in a local file"
        ) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RayganError(f"--storage: cannot write to {folder}: {error.strerror}") from None
