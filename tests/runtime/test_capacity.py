"""Where workers run is said, and a cluster with too few GPUs never trains on cores in silence."""

from __future__ import annotations

import pytest
import ray._private.state
import torch
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from raygan.errors import ConfigurationError
from raygan.runtime import capacity
from raygan.runtime.settings import WorkerOptions


@pytest.fixture
def nodes(monkeypatch):
    """A function that gives Ray live nodes, and groups of nodes that could be started as (resources, at most)."""

    def have(*live, groups=()):
        monkeypatch.setattr(ray, "nodes", lambda: [{"Resources": each, "Alive": True} for each in live])
        made = [NodeGroupConfig(resources=each, max_count=most) for each, most in groups]
        config = ClusterConfig(node_group_configs=made) if groups else None
        monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)

    return have


def eight(count):
    return [{"CPU": 64.0, "GPU": 8.0}] * count


@pytest.mark.parametrize(
    ("live", "options", "said"),
    [
        ([{"CPU": 4.0}], {}, "training with 1 worker of 1 CPU; this cluster has no GPU"),
        (eight(1), {}, "training with 1 worker of 1 CPU, 1 GPU"),
        (eight(1), {"gpu": False, "num_workers": 2}, "training with 2 workers of 1 CPU, without a GPU"),
        (eight(7), {"num_workers": "1:64"}, "training with 1 to 64 workers of 1 CPU, 1 GPU"),
    ],
)
def test_where_workers_run_is_said(nodes, capsys, live, options, said):
    nodes(*live)
    resources = capacity.place(WorkerOptions(**options))
    assert capsys.readouterr().out == said + "\n"
    assert ("GPU" in resources) == ("GPU" in said and "without" not in said and "no GPU" not in said)


def test_too_few_gpus_are_an_error_with_ways_out(nodes):
    nodes(*eight(7))
    with pytest.raises(ConfigurationError) as raised:
        capacity.place(WorkerOptions(num_workers=64))
    assert str(raised.value) == (
        "64 workers need a GPU each, and this cluster has 56: ask for 56 or fewer, ask for a range such as 1:64, "
        "which adapts to the cluster, or compute on cores with --no-gpu"
    )
    assert capacity.place(WorkerOptions(num_workers=64, gpu=False)) == {"CPU": 1.0}


def test_gpus_that_the_cluster_could_start_count(nodes, capsys):
    nodes({"CPU": 4.0}, groups=[({"CPU": 64, "GPU": 8}, 8), ({"CPU": 64}, 100)])
    assert capacity.place(WorkerOptions(num_workers=64)) == {"CPU": 1.0, "GPU": 1}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "waiting for nodes: there is room for 0 of 64 workers with 1 CPU, 1 GPU each"
    with pytest.raises(ConfigurationError, match="this cluster has 64"):
        capacity.place(WorkerOptions(num_workers=65))
    nodes({"CPU": 4.0}, groups=[({"CPU": 64, "GPU": 8}, -1)])  # as many as it takes
    assert "GPU" in capacity.place(WorkerOptions(num_workers=6500))


def test_workers_that_never_fit_are_an_error(nodes):
    nodes({"CPU": 4.0}, groups=[({"CPU": 4}, 3)])
    assert capacity.place(WorkerOptions(num_workers=12)) == {"CPU": 1.0}
    with pytest.raises(ConfigurationError, match=r"13 workers with 1 CPU each do not fit .* room for 12"):
        capacity.place(WorkerOptions(num_workers=13))
    nodes(*eight(1))
    with pytest.raises(ConfigurationError, match="1 workers with 65 CPU, 1 GPU each do not fit"):
        capacity.place(WorkerOptions(cpus_per_worker=65))


def test_what_no_node_has_is_named_with_the_flag_that_changes_it(nodes):
    nodes({"CPU": 2.0})
    with pytest.raises(ConfigurationError, match="the largest has 2: give --cpus-per-worker 2 or less"):
        capacity.place(WorkerOptions(cpus_per_worker=3))
    with pytest.raises(ConfigurationError, match="there is no GPU: leave --gpu out"):
        capacity.place(WorkerOptions(gpu=True))


def test_tasks_share_gpus_where_there_are_any(nodes):
    nodes({"CPU": 4.0})
    assert capacity.gpu_share() == 0
    nodes({"CPU": 4.0}, *eight(1))
    assert 0 < capacity.gpu_share() < 1


@pytest.mark.parametrize(
    ("connected", "reserved", "device"), [(True, [3], "cuda"), (True, [], "cpu"), (False, [3], "cpu")]
)
def test_a_process_computes_on_the_gpu_that_it_reserved(monkeypatch, connected, reserved, device):
    monkeypatch.setattr(ray, "is_initialized", lambda: connected)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # Ray hides GPUs from nobody
    assert capacity.own_device().type == device


def test_a_reserved_gpu_that_torch_cannot_use_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [capacity.own_device().type for _ in range(2)] == ["cpu", "cpu"]
    assert capsys.readouterr().err.count("a GPU is reserved") == 1
