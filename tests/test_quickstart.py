"""The quickstart, shortened: drawn faces go through every stage."""

import socket

import pytest

from raygan import tracking
from raygan.errors import ConfigurationError
from raygan.quickstart import quickstart as module
from raygan.quickstart.quickstart import quickstart
from raygan.quickstart.settings import QuickstartSettings


def test_drawn_faces_become_a_registered_generator(ray_cluster, new_storage, monkeypatch, capsys):
    monkeypatch.setattr(module, "DRAWN_FACES", 48)
    settings = QuickstartSettings(storage=str(new_storage), tracking_uri=None, epochs=1, image_size=32, serve=False)
    quickstart(settings)
    shown = capsys.readouterr().out
    assert "mlflow ui --backend-store-uri" in shown
    assert f"RAYGAN_STORAGE={new_storage} serve run serve_config.yaml" in shown
    assert "/v1/sample?label=cat&n=16&seed=7" in shown
    assert list((new_storage / "runs").glob("*/pictures/*.png"))
    assert set(tracking.serving_generators(tracking.connect(settings))) == {"cat"}
    quickstart(settings)  # nothing is trained twice
    assert "already trained" in capsys.readouterr().out


def test_a_port_in_use_is_reported_before_work_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is not available"):
            quickstart(QuickstartSettings(storage=str(tmp_path), port=port))
    assert not list(tmp_path.iterdir())
