"""The bearer token and where it comes from. Not a setting, so no configuration or log ever shows it."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from raygan.errors import ConfigurationError
from raygan.serve.settings import ServeSettings


def read_token(settings: ServeSettings) -> str | None:
    """The bearer token from `token_file`, else from RAYGAN_TOKEN; None if neither is set.

    Raises:
        ConfigurationError: the file is unreadable or empty.
    """
    if settings.token_file is None:
        return os.environ.get("RAYGAN_TOKEN", "").strip() or None
    try:
        token = Path(settings.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"token_file: cannot read {settings.token_file}: {error}") from None
    if not token:
        raise ConfigurationError(f"token_file: {settings.token_file} is empty")
    return token


def check_token(settings: ServeSettings, host: str) -> None:
    """Raise ConfigurationError if the port is open to other machines without a token or `public: true`."""
    if read_token(settings) is None and not settings.public and not _is_loopback(host):
        raise ConfigurationError(
            f"token_file: {host} is open to other machines: give a token (token_file or RAYGAN_TOKEN), bind to "
            f"127.0.0.1, or set public: true"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
