"""The service on a real port, from a real registry."""

import io
import json
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from ray import serve

from raygan import tracking
from raygan.config import ServeJobSettings, ServeSettings, load_yaml
from raygan.errors import ConfigurationError, RayganError
from raygan.gan.checkpoint import save_generator
from raygan.gan.networks import Generator, NetworkSettings
from raygan.gan.step import seeded, to_uint8
from raygan.serve import build, run
from tests.conftest import REPOSITORY

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = Generator(NETWORKS).eval()
    with torch.no_grad():
        generator.exit[0].weight.mul_(1000)  # an untrained exit is grey; make every sample visibly different
    return generator


@pytest.fixture(scope="module")
def address(ray_cluster, generator, tmp_path_factory):
    storage = tmp_path_factory.mktemp("service")
    settings = ServeSettings(storage=str(storage), tracking_uri=None)
    save_generator(storage / "generator", generator, {"label": "cat"})
    with tracking.start_run(settings, "trained", job="test", params={}) as run:
        tracking.register_generator(run, storage / "generator", "cat", promote=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(settings.plain()), name="raygan")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read(), answer.headers


def pixels(content):
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_a_grid_holds_the_generators_own_samples(address, generator):
    content, headers = get(f"{address}/v1/sample?label=cat&n=4&seed=7")
    found = pixels(content)
    latents = torch.cat([torch.randn(1, 8, generator=seeded(7, i, "sample")) for i in range(4)])
    with torch.no_grad():
        expected = to_uint8(generator(latents)).permute(0, 2, 3, 1).numpy()
    for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        tile = found[row * 34 : row * 34 + 32, column * 34 : column * 34 + 32].astype(int)
        assert abs(tile - expected[i]).max() <= 1
    assert headers["X-Raygan-Model"] == "raygan-generator-cat"
    assert headers["X-Raygan-Version"] == "1"
    assert headers["X-Raygan-Seed"] == "7"


def test_a_seed_decides_the_pixels(address):
    url = f"{address}/v1/sample?label=cat&n=16&seed="
    assert get(url + "7")[0] == get(url + "7")[0]
    assert not np.array_equal(pixels(get(url + "7")[0]), pixels(get(url + "8")[0]))


@pytest.mark.parametrize("n", [1, 5, 64])
def test_every_allowed_number_of_images_fits_its_grid(address, n):
    height, width = pixels(get(f"{address}/v1/sample?label=cat&n={n}")[0]).shape[:2]
    assert ((height + 2) // 34) * ((width + 2) // 34) >= n


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("label=bird", 404, "there is cat"),
        ("label=cat&n=0", 422, "n:"),
        ("label=cat&n=65", 422, "n:"),
        ("label=cat&seed=x", 422, "seed:"),
        ("label=cat&seed=-1", 422, "seed:"),
        ("n=4", 422, "label:"),
    ],
)
def test_a_wrong_request_is_answered_with_the_parameters_name(address, query, status, says):
    with pytest.raises(urllib.error.HTTPError) as raised:
        get(f"{address}/v1/sample?{query}")
    assert raised.value.code == status
    assert says in json.loads(raised.value.read())["detail"]


def test_models_and_versions_are_listed(address):
    assert json.loads(get(f"{address}/v1/models")[0]) == {"cat": {"name": "raygan-generator-cat", "version": "1"}}


def test_arguments_of_the_service_are_checked(tmp_path):
    with pytest.raises(ConfigurationError, match="did you mean tracking_uri"):
        build({"tracking_url": "x"})
    with pytest.raises(RayganError, match="does not answer"):
        build({"storage": str(tmp_path), "tracking_uri": "http://127.0.0.1:9"})


def test_the_serve_job_says_what_serve_run_would_stumble_over(tmp_path):
    service = tmp_path / "service.yaml"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        service.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}")
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            run(ServeJobSettings(storage=str(tmp_path), tracking_uri=None, service=str(service)))
    with pytest.raises(RayganError, match="no generator with alias champion"):
        run(ServeJobSettings(storage=str(tmp_path), tracking_uri=None, service=str(service)))
    with pytest.raises(ConfigurationError, match="cannot read"):
        run(ServeJobSettings(storage=str(tmp_path), tracking_uri=None, service=str(tmp_path / "none.yaml")))


def test_the_shipped_configuration_is_one_that_ray_serve_takes():
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(load_yaml(str(REPOSITORY / "serve_config.yaml")))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)
    assert [application.import_path for application in config.applications] == ["raygan.serve:build"]
