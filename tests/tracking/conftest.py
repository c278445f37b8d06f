"""What the tests of MLflow share: a storage with empty records."""

from __future__ import annotations

import pytest

from raygan.runtime.settings import StorageSettings


@pytest.fixture
def settings(new_storage):
    return StorageSettings(storage=str(new_storage), tracking_uri=None)
