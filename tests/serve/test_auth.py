"""When a token is required."""

from __future__ import annotations

import pytest

from raygan.errors import ConfigurationError
from raygan.serve.auth import check_token, read_token
from raygan.serve.settings import ServeSettings


def test_a_port_open_to_other_machines_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("RAYGAN_TOKEN", raising=False)
    settings = ServeSettings(storage="x", tracking_uri=None)
    for host in ("127.0.0.1", "localhost", "::1"):
        check_token(settings, host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104
        with pytest.raises(ConfigurationError, match="give a token"):
            check_token(settings, host)
    check_token(settings.model_copy(update={"public": True}), "0.0.0.0")  # noqa: S104
    (tmp_path / "token").write_text("abc\n")
    check_token(settings.model_copy(update={"token_file": str(tmp_path / "token")}), "0.0.0.0")  # noqa: S104
    monkeypatch.setenv("RAYGAN_TOKEN", "abc")
    check_token(settings, "0.0.0.0")  # noqa: S104
    with pytest.raises(ConfigurationError, match="cannot read"):
        check_token(settings.model_copy(update={"token_file": str(tmp_path / "none")}), "127.0.0.1")


def test_a_line_break_after_the_token_is_no_part_of_it(tmp_path, monkeypatch):
    """Secrets made from files have one, and no header can."""
    settings = ServeSettings(storage="x", tracking_uri=None)
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAYGAN_TOKEN", "abc\n")
    assert read_token(settings) == "abc"
    assert read_token(settings.model_copy(update={"token_file": str(tmp_path / "token")})) == "abc"
    monkeypatch.setenv("RAYGAN_TOKEN", " \n")
    with pytest.raises(ConfigurationError, match="give a token"):
        check_token(settings, "0.0.0.0")  # noqa: S104
