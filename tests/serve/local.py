"""The service without Ray: the same gateway and replicas, called directly.

`local_service` is what `gateway.GatewayDeployment` is, with `LocalCaller`s where that has handles; a test can put
its own caller in between, which dies or waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from raygan.models.gan import Generator, NetworkSettings, build_generator, save_generator
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.serve.api import create_app
from raygan.serve.batching import Stage
from raygan.serve.messages import Champions, ModelVersion, Verdicts
from raygan.serve.metrics import NoMeters
from raygan.serve.middleware import Guard
from raygan.serve.replicas import ClassifierReplica, GeneratorReplica
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)
CAT, DOG, JUDGE = (
    ModelVersion(name, "1") for name in ("raygan-generator-cat", "raygan-generator-dog", "raygan-classifier")
)


def settle(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Give batch norms the statistics of these inputs, without which an untrained network says the same of all."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # an average
    network.train()(inputs)
    return network.eval()(inputs)


def make_generator(seed: int = 0, labels: tuple[str, ...] = ()) -> Generator:
    """An untrained generator whose samples are visibly different."""
    torch.manual_seed(seed)
    generator = build_generator(replace(NETWORKS, labels=labels))
    latents = torch.randn(64, NETWORKS.z_dim + len(labels))[:, :, None, None]
    with torch.no_grad():
        features = settle(generator.blocks, latents)
        generator.exit[0].weight.div_(generator.exit[0](features).std())
    return generator.eval()


def make_classifier(folder: Path, labels: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    """The folder of an untrained classifier whose verdicts differ between images."""
    torch.manual_seed(seed)
    net = build_googlenet(len(labels), auxiliary=False)
    with torch.no_grad():
        samples = make_generator()(torch.randn(64, NETWORKS.z_dim))
        logits = settle(net, samples)
        net.fc.weight.mul_(2 / logits.std(0).mean())
        net.fc.bias.mul_(0).sub_(net(samples).mean(0) - net.fc.bias)
    save_classifier(folder, net, labels=labels, image_size=32, about={})
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class LocalCaller:
    """A caller that calls a replica in this process."""

    def __init__(self, replica: Any):
        self.replica, self.calls = replica, []

    async def prepare(self, model: ModelVersion) -> dict[str, Any]:
        return await self.replica.prepare(model)

    async def call(self, model: ModelVersion, items: list[Any]) -> tuple[list[Any], float]:
        self.calls.append([len(item) for item in items])
        if isinstance(self.replica, GeneratorReplica):
            answer, seconds = await self.replica.sample(model, items)
            cut = answer
        else:
            answer, seconds = await self.replica.classify(model, items)
            cut = answer.probabilities
        answers, start = [], 0
        for item in items:
            part = cut[start : start + len(item)]
            answers.append(part if cut is answer else Verdicts(answer.labels, part))
            start += len(item)
        return answers, seconds


@dataclass
class Local:
    """A service, its application, and the callers that a test may replace."""

    service: Service
    app: Any
    callers: dict[str, LocalCaller]
    missing: list[str] = field(default_factory=list)


async def local_service(
    models: dict[ModelVersion, dict[str, bytes]], champions: Champions, token: str | None = None, **options: Any
) -> Local:
    """A running service of models given by their files."""
    settings = ServeSettings(storage="unused", tracking_uri=None, **{"threads": 2, "access_log": False, **options})

    async def fetch(model: ModelVersion) -> dict[str, bytes]:
        return models[model]

    names = {model.name for model in champions.generators.values()}
    callers = {name: LocalCaller(GeneratorReplica(settings, fetch)) for name in sorted(names)}
    callers["classifier"] = LocalCaller(ClassifierReplica(settings, fetch))
    limits = {
        "batch": settings.batch_images,
        "most": settings.call_images,
        "limit": settings.max_waiting_images,
        "seconds": 30.0,
    }
    meters = NoMeters()
    stages = {name: Stage(name, caller, len, meters, **limits) for name, caller in callers.items()}
    judge = stages.pop("classifier")
    service = Service(stages, judge, meters, most_draws=settings.max_draws)
    await service.refresh(champions)
    local = Local(service, None, callers)
    local.app = Guard(
        create_app(service, settings, lambda: local.missing),
        meters,
        token=token,
        most_bytes=int(settings.max_request_megabytes * 1e6),
        seconds=settings.timeout_seconds,
        access_log=settings.access_log,
    )
    return local


def save(folder: Path, generator: Generator) -> dict[str, bytes]:
    save_generator(folder, generator, {"label": "cat"})
    return files_of(folder)
