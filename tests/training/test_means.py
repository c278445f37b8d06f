"""Means of terms between two logs."""

import pytest
import torch

from raygan.training.means import Means


def test_a_terms_mean_counts_the_batches_that_had_it():
    means = Means(batch_size=4)
    means.add({"critic_loss": torch.tensor(8.0), "penalty": torch.tensor(2.0)})
    means.add({"critic_loss": torch.tensor(16.0)})
    assert means.batches == 2
    assert means.take(1, {"seconds": 3.0}) == pytest.approx({"critic_loss": 3.0, "penalty": 0.5, "seconds": 3.0})
    means.add({"critic_loss": torch.tensor(4.0)})
    assert means.batches == 1
    assert means.take(1, {}) == {"critic_loss": 1.0}
