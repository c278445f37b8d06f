"""The service without Ray: the same gateway and replicas, called directly.

`local_service` mirrors `gateway.GatewayDeployment`, with `LocalStage`s in place of handles.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from raygan.models.gan import Generator, NetworkSettings, build_generator, save_generator
from raygan.models.googlenet import build_googlenet, save_classifier
from raygan.serve.api import create_app
from raygan.serve.cors import with_cors
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.middleware import GatewayMiddleware
from raygan.serve.replicas import Replica
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)
CAT, DOG, CLASSIFIER = (
    ModelVersion(name, "1") for name in ("raygan-generator-cat", "raygan-generator-dog", "raygan-classifier")
)


def settle(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Give batch norms the statistics of these inputs; without them an untrained network answers the same to all."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # an average
    network.train()(inputs)
    return network.eval()(inputs)


def make_generator(seed: int = 0, labels: tuple[str, ...] = ()) -> Generator:
    """An untrained generator whose samples differ visibly."""
    torch.manual_seed(seed)
    generator = build_generator(replace(NETWORKS, labels=labels))
    latents = torch.randn(64, NETWORKS.z_dim + len(labels))[:, :, None, None]
    with torch.no_grad():
        features = settle(generator.blocks, latents)
        generator.exit[0].weight.div_(generator.exit[0](features).std())
    return generator.eval()


def make_classifier(folder: Path, labels: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    """The folder of an untrained classifier whose predictions differ between images."""
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


class NoMetrics:
    """Metrics that record nothing."""

    def count(self, name, amount=1, **tags):
        pass

    def observe(self, name, value, **tags):
        pass


async def known(model):
    """An `Exists` that knows every version."""
    return True


def make_service(generator: Any, classifier: Any = None, **options: Any) -> Service:
    """A service of these stages. options: changes to those of `Service`."""
    return Service(generator, classifier, NoMetrics(), **{"max_draws": 1, "seconds": 60.0, "exists": known, **options})


class RecordingMetrics:
    """Metrics that a test can look at."""

    def __init__(self):
        self.counts, self.values = Counter(), {}

    def count(self, name, amount=1, **tags):
        self.counts[(name, *tags.values())] += amount

    def observe(self, name, value, **tags):
        self.values.setdefault((name, *tags.values()), []).append(value)


class LocalStage:
    """A stage of a replica in this process: one of its methods."""

    def __init__(self, replica: Replica, method: str):
        self.prepare, self._method, self.asked = replica.prepare, getattr(replica, method), []

    async def run(self, model: ModelVersion, request: Any) -> Any:
        self.asked.append(request)
        answer, _ = await self._method(model, request)
        return answer


@dataclass
class Local:
    """A service, its application, and its generator's stage."""

    service: Service
    app: Any
    generator: LocalStage
    missing: list[str] = field(default_factory=list)


async def local_service(
    models: dict[ModelVersion, dict[str, bytes]], champions: Champions, token: str | None = None, **options: Any
) -> Local:
    """A running service of models given by their files. options: further settings."""
    settings = ServeSettings(storage="unused", tracking_uri=None, **{"threads": 2, "access_log": False, **options})

    async def fetch(model: ModelVersion) -> dict[str, bytes]:
        return models[model]

    replica = Replica(settings, fetch)
    stages = LocalStage(replica, "draw"), LocalStage(replica, "classify")

    async def exists(model: ModelVersion) -> bool:
        return model in models

    service = make_service(*stages, max_draws=settings.max_draws, seconds=settings.timeout_seconds, exists=exists)
    await service.refresh(champions)
    while service.is_loading():  # on a busy machine: what did not load in time is found by a later refresh
        await asyncio.sleep(0.1)
        await service.refresh(champions)
    local = Local(service, None, stages[0])
    app = GatewayMiddleware(
        create_app(service, settings, lambda: local.missing),
        service.metrics,
        token=token,
        max_bytes=int(settings.max_request_megabytes * 1e6),
        seconds=settings.timeout_seconds,
        access_log=settings.access_log,
    )
    local.app = with_cors(app, settings.cors_origins)
    return local


def save(folder: Path, generator: Generator) -> dict[str, bytes]:
    save_generator(folder, generator, {"label": "cat"})
    return files_of(folder)


def make_certificate(folder: Path) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1 that has signed itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "raygan's tests")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    addresses = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = builder.add_extension(addresses, critical=False).sign(key, SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")
