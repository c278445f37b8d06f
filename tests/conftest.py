"""What the tests share: one Ray cluster for the whole session, and small data sets with known content."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygan.data.shards import Manifest, ShardFile
from raygan.runtime.settings import StorageSettings
from raygan.settings import load_preset
from raygan.training.settings import TrainSettings
from tests.helpers import CORES

#: For what takes minutes and is tested in parts elsewhere.
takes_long = pytest.mark.skipif(not os.environ.get("RAYGAN_LONG"), reason="takes minutes: set RAYGAN_LONG=1")


#: Fixtures that start Ray.
_NEED_RAY = {"ray_cluster", "drilled"}


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """A shell that starts the tests in the background has them, and the jobs they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ray's workers yield to all other processes by default, and would starve beside the tests of another file.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray Train gives its workers a minute to start, and Ray a process: too little for a slow machine.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
    os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as on a cluster that raygan starts
    # A worker's next report waits for the controller's next look, and trainings of seconds report often.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    # torch's threads would fight over the cores, tiny as everything is here.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.pluginmanager.has_plugin("terminalreporter"):  # not in the processes of `-n 2`, which it reports for
        config.pluginmanager.register(_FailuresAtOnce(config.get_terminal_writer()))


class _FailuresAtOnce:
    """Say at once what failed: a run that is cut off never comes to its summary."""

    def __init__(self, writer: Any):
        self._writer = writer

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            said = getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longreprtext)
            self._writer.line(f"\n{report.nodeid} ({report.when}, {report.duration:.0f} s): {said}")
            self._writer.flush()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, a file's tests run in one process, where they share fixtures."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # or files with many tests would come before those that take long
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Ray, and start with the files where that is, so that the quick ones fill the end.

    The fault tests come first: their Ray nodes go before the session's cluster is up.
    """
    for item in items:
        if _NEED_RAY & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")
    long = {item.path for item in items if item.get_closest_marker("cluster")}
    items.sort(key=lambda item: ("drilled" not in getattr(item, "fixturenames", ()), item.path not in long))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder where the cluster's workers look for installed packages."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
def ray_cluster(site):
    """A local cluster of `CORES` cores."""
    import ray
    from ray._private import parameter

    from raygan.runtime import cluster

    cluster.poll_training_often()  # also where a test starts Ray Train itself
    # Of the object store that tests start, which takes any; what Ray starts has the environment of now.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "of-tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        # Two clusters on a machine need two ports for the agents that take jobs; `ray.init` has no argument for that.
        patch.setattr(parameter, "RayParams", functools.partial(parameter.RayParams, dashboard_agent_listen_port=0))
        context = _start_ray()
    yield context
    ray.shutdown()


def _start_ray(attempts: int = 5):
    """Start the cluster, again if it isn't up within the 30 s that Ray gives it: a busy machine may need longer."""
    import ray

    for attempt in range(1, attempts + 1):
        try:
            return ray.init(address="local", num_cpus=CORES, include_dashboard=True, log_to_driver=False)
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == attempts:
                raise
            ray.shutdown()


@pytest.fixture
def packages(ray_cluster, site):
    """That folder, for packages that are installed during a test."""
    yield site
    for path in site.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def installed(packages, ray_cluster):
    """Variables of a job on the cluster that sees these packages, too."""
    paths = filter(None, (str(packages), os.environ.get("PYTHONPATH")))
    return {"PYTHONPATH": os.pathsep.join(paths), "RAY_ADDRESS": ray_cluster.address_info["gcs_address"]}


@pytest.fixture(scope="session")
def empty_records(tmp_path_factory):
    """MLflow's SQLite file without runs: making its tables takes seconds, copying them nothing."""
    from raygan import tracking

    folder = tmp_path_factory.mktemp("records")
    tracking.connect(StorageSettings(storage=str(folder), tracking_uri=None))
    return folder / "mlflow.db"


@pytest.fixture
def new_storage(tmp_path, empty_records):
    """A storage folder with empty records."""
    folder = tmp_path / "storage"
    folder.mkdir()
    shutil.copy(empty_records, folder)
    return folder


def write_random_shard(
    path: Path, labels: list[str], size: int, split: str, random: np.random.Generator, brightest: int = 255
) -> None:
    """Write a shard of random pixels, with a photo for each label."""
    pixels = random.integers(0, brightest + 1, (len(labels), size * size * 3), dtype=np.uint8)
    columns = {
        "image": pa.array([row.tobytes() for row in pixels], pa.binary(size * size * 3)),
        "label": labels,
        "path": [f"{path.stem}/{i}.png" for i in range(len(labels))],
        "hash": [f"{path.stem}{i}" for i in range(len(labels))],
        "split": [split] * len(labels),
    }
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def write_shards(tmp_path):
    """A function that writes a data set of random photos: two labels, two training shards, one validation."""

    def write(
        per_label: int = 20,
        size: int = 32,
        folder: str = "shards",
        seed: int = 0,
        held_out: int = 3,
        brightest: int = 255,
    ) -> Path:
        root = tmp_path / folder
        root.mkdir()
        random = np.random.default_rng(seed)
        shards = []
        splits = (("a", "train", per_label), ("b", "train", per_label // 2), ("c", "validation", held_out))
        for name, split, count in splits:
            labels = ["cat", "dog"] * count
            write_random_shard(root / f"{name}.parquet", labels, size, split, random, brightest)
            shards.append(ShardFile(file=f"{name}.parquet", split=split, rows={"cat": count, "dog": count}))
        manifest = Manifest(
            image_size=size, classes=["cat", "dog"], shards=shards, fingerprint=f"{seed}-{per_label}", configuration={}
        )
        manifest.write(str(root))
        return root

    return write


@pytest.fixture
def train_settings(new_storage, write_shards):
    """A function that gives settings of a training of seconds; keyword arguments change them."""

    def make(**changes: object) -> TrainSettings:
        values = {
            **load_preset(TrainSettings, "quick"),
            "storage": str(new_storage),
            "tracking_uri": None,
            "image_size": 32,
            "z_dim": 8,
            "width": 4,
            "batch_size": 8,
            "kimg": None,
            "epochs": 2,
            "quality_every": 0,
            "log_every": 0.001,
            "num_workers": 1,
            **changes,
        }
        if "data" not in values:
            values["data"] = str(write_shards())
        return TrainSettings.model_validate(values)

    return make
