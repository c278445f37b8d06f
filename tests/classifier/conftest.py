"""What the classifier's tests share."""

import pytest

from raygan.classifier.settings import ClassifySettings
from raygan.models.gan import NetworkSettings, build_generator, save_generator


@pytest.fixture
def classify_settings(new_storage, write_shards):
    """A function that returns settings of a classification of seconds; keyword arguments change them."""

    def make(**changes: object) -> ClassifySettings:
        values = {"storage": str(new_storage), "tracking_uri": None, "epochs": 2, "batch_size": 8, **changes}
        if "data" not in values:
            values["data"] = str(write_shards(per_label=8))
        return ClassifySettings.model_validate(values)

    return make


@pytest.fixture
def write_generator(tmp_path):
    """A function that writes an untrained generator of one label and returns its folder."""

    def write(label: str, size: int = 32) -> str:
        folder = tmp_path / f"{label}-generator"
        save_generator(folder, build_generator(NetworkSettings(image_size=size, z_dim=4, width=2)), {"label": label})
        return str(folder)

    return write
