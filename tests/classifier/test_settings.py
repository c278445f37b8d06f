"""Settings that contradict each other."""

import pytest
from pydantic import ValidationError

from raygan.classifier.settings import ClassifySettings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generated_images": 5}, "generated_images is for generated images"),
        ({"model": ["x"]}, "model is for generated images"),
        ({"real_fraction": 0, "real_images": 5}, "real_images is for real photos"),
        ({"batch_size": 2, "num_workers": 4}, "smaller than num_workers"),
    ],
)
def test_settings_without_effect_are_refused(changes, says):
    with pytest.raises(ValidationError, match=says):
        ClassifySettings.model_validate({"data": "shards", "storage": "s", "tracking_uri": None, **changes})
