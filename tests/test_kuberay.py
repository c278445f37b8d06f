"""The Kubernetes files are valid for the jobs, Ray, KubeRay and Kubernetes. Nothing here talks to a cluster."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from raygan.cli import parse
from raygan.serve.metrics import RayMetrics
from raygan.training.settings import TrainSettings
from raygan.tuning.settings import TuneSettings

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "jobs" / "kuberay"


def read(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def clusters() -> dict[str, dict]:
    """Each file's cluster."""
    found = {name: read(name)["spec"]["rayClusterSpec"] for name in ("rayjob-train.yaml", "rayjob-tune.yaml")}
    return {**found, "rayservice.yaml": read("rayservice.yaml")["spec"]["rayClusterConfig"]}


def fields(required, **others):
    """The schema of an object with exactly these fields."""
    return {"type": "object", "properties": others, "required": required.split(), "additionalProperties": False}


TEXT, COUNT, SWITCH, OBJECT = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "boolean"},
    {"type": "object"},
)
#: Parameters of `ray start`: Kubernetes has numbers as text, too.
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": PARAMETERS, "template": OBJECT}
SIZES = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), COUNT)
CLUSTER = fields(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=SWITCH,
    headGroupSpec=fields("rayStartParams template", **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": fields("groupName minReplicas maxReplicas rayStartParams template", groupName=TEXT, **SIZES, **GROUP),
    },
)
#: Names and types of the fields we use in KubeRay 1.5 (API ray.io/v1).
KUBERAY = {
    "RayJob": fields(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": fields("serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
}


def test_alerts_and_dashboard_ask_for_metrics_that_the_service_has():
    alerts = [rule for group in read("alerts.yaml")["spec"]["groups"] for rule in group["rules"]]
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    asked = [rule["expr"] for rule in alerts] + [target["expr"] for panel in panels for target in panel["targets"]]
    used = set(re.findall(r"ray_(raygan_\w+)", " ".join(asked)))
    metrics = [metric for kind in (RayMetrics().counters, RayMetrics().values) for metric in kind.values()]
    known = {metric.info["name"]: set(metric.info["tag_keys"]) for metric in metrics}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert names == known.keys()  # and none is left out
    for expression in asked:
        tags = set().union(
            *(known[re.sub(r"_(bucket|sum|count)$", "", name)] for name in re.findall(r"ray_(raygan_\w+)", expression))
        )
        grouped = ",".join(re.findall(r"by \(([^)]*)\)", expression))
        matched = re.findall(r"(\w+)[!=]=?~?\"", expression)
        assert {word.strip() for word in grouped.split(",") if word} - {"le"} | set(matched) <= tags
    for rule in alerts:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "warn")


@pytest.mark.parametrize("file", ["rayjob-train.yaml", "rayjob-tune.yaml", "rayservice.yaml"])
def test_resources_and_pods_match_the_schemas_of_kuberay_and_kubernetes(file):
    resource = read(file)
    assert resource["apiVersion"] == "ray.io/v1"
    Draft202012Validator(KUBERAY[resource["kind"]]).validate(resource["spec"])
    cluster = clusters()[file]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_shared_resources_match_the_schemas_of_kubernetes():
    for resource in yaml.safe_load_all((FOLDER / "shared.yaml").read_text()):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("file", "settings"), [("rayjob-train.yaml", TrainSettings), ("rayjob-tune.yaml", TuneSettings)]
)
def test_a_ray_job_passes_flags_that_the_job_knows(file, settings):
    python, script, *flags = shlex.split(read(file)["spec"]["entrypoint"])
    assert python == "python"
    assert (REPOSITORY / Path(script).relative_to("/home/ray/raygan")).is_file()
    chosen, _ = parse(settings, flags, doc=None)
    assert chosen.data.startswith("/raygan/")
    workers = clusters()[file]["workerGroupSpecs"][0]
    # By default a search uses the cores present at its start, so the cluster would never grow.
    most = chosen.concurrent if isinstance(chosen, TuneSettings) else chosen.most_workers
    assert most == workers["maxReplicas"]


def test_ray_serve_accepts_the_service_and_it_requires_a_token():
    served = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(served)
    local = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    variables, known = (each["controller_options"]["runtime_env"]["env_vars"] for each in (served, local))
    assert variables.keys() == known.keys()
    assert {name for name in known if variables[name] != known[name]} <= {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"  # a load balancer needs longer
    }
    assert served["applications"][0]["import_path"] == local["applications"][0]["import_path"]
    names = [[each["name"] for each in one["applications"][0]["deployments"]] for one in (served, local)]
    assert names[0] == names[1] == ["Gateway", "Models"]
    secret = clusters()["rayservice.yaml"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"][-1]
    assert secret["name"] == "RAYGAN_TOKEN"  # without it the service refuses to open its port to other machines


@pytest.mark.parametrize("file", ["rayjob-train.yaml", "rayjob-tune.yaml", "rayservice.yaml"])
def test_every_pod_has_the_image_the_storage_and_the_right_version_of_ray(file):
    cluster = clusters()[file]
    least = re.search(r'"ray\[.*\]>=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())[1]
    assert numbers(cluster["rayVersion"]) >= numbers(least)
    assert f"FROM rayproject/ray:{cluster['rayVersion']}-" in (FOLDER / "Dockerfile").read_text()
    assert cluster["authOptions"] == {"mode": "token"}
    claims = [each["metadata"]["name"] for each in yaml.safe_load_all((FOLDER / "shared.yaml").read_text())]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 2
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        values = {each["name"]: each.get("value") for each in container["env"]}
        assert values["RAYGAN_STORAGE"] == container["volumeMounts"][0]["mountPath"]
        assert not values["MLFLOW_TRACKING_URI"].startswith("sqlite")
        assert pod["volumes"][0]["name"] == container["volumeMounts"][0]["name"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] in claims
        assert container["image"] == "YOUR-REGISTRY/raygan"
