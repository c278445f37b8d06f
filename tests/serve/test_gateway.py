"""Names that the gateway derives from labels."""

from __future__ import annotations

from raygan.serve.gateway import generator_deployment
from raygan.serve.headers import walk_headers
from raygan.serve.messages import ModelVersion


def test_names_in_any_script_fit_headers_and_deployments():
    names = [f"raygan-generator-{label}" for label in ("cat", "猫", "狗", "c\u00e4t")]
    assert [walk_headers(ModelVersion(name, "1"), 0, 1)["X-Raygan-Model"].isascii() for name in names] == [True] * 4
    deployments = [generator_deployment(name) for name in names]
    assert deployments[0] == "generator-cat"
    assert len(set(deployments)) == 4
