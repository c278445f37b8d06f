"""What the tests of searches share."""

import pytest

from raygan.tuning.settings import TuneSettings
from tests.helpers import CORES


@pytest.fixture
def search_settings(train_settings, write_shards):
    """A function that returns settings of a search of seconds; keyword arguments change them."""

    def make(**changes):
        data = str(write_shards(per_label=40, folder="search"))
        values = train_settings(data=data, num_workers=1, quality_every=None, quality_samples=16).model_dump()
        values |= {
            "name": "search",
            "trials": 2,
            "concurrent": 1,
            "trial_kimg": 0.08,
            "judgements": 2,
            "cpus_per_worker": CORES,  # all of them: KID is measured by the worker
            "space": ["generator_lr=1e-4..1e-3", "z_dim=4,8"],
            **changes,
        }
        return TuneSettings.model_validate(values)

    return make
