"""Exports of registered models; `tests/models` checks what the files compute."""

from __future__ import annotations

import pytest

from raygan import tracking
from raygan.errors import ConfigurationError, RayganError
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.sampling.export import export
from raygan.sampling.settings import ExportSettings


def test_a_registered_generator_is_exported_and_kept_beside_its_version(new_storage, tmp_path):
    def settings(model, **changes):
        values = {"model": model, "output": str(tmp_path / "cat.onnx"), "storage": str(new_storage), **changes}
        return ExportSettings(tracking_uri=None, **values)

    save_generator(tmp_path / "g", build_generator(NetworkSettings(image_size=32, z_dim=4, width=2)), {"label": "cat"})
    with tracking.start_run(settings("x"), "r", job="test", params={}) as run:
        model = tracking.register_generator(run, tmp_path / "g", "cat", labels=["cat"], promote=True)
    for name in ("nobody", "raygan-generator-cat/9"):
        with pytest.raises(ConfigurationError, match=f"--model: '{name}' is neither a model's folder nor a registered"):
            export(settings(name))
    with pytest.raises(ConfigurationError, match="--log: only a registered model has a place in MLflow"):
        export(settings(str(tmp_path / "g"), log=True))
    with pytest.raises(RayganError, match="cannot write /"):
        export(settings(str(tmp_path / "g"), output="/"))
    assert not (tmp_path / "cat.onnx").exists()
    found = export(settings("raygan-generator-cat", log=True))
    assert found.model == "raygan-generator-cat/1"
    place = run.client.get_model_version(model.name, model.version).source.removeprefix("file://")
    with open(f"{place}/onnx/cat.onnx", "rb") as kept:
        assert kept.read() == (tmp_path / "cat.onnx").read_bytes()
