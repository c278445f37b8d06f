"""Early stopping."""

from raygan.classifier.worker import Best


def test_the_best_epoch_has_the_lowest_loss_and_patience_ends():
    best = Best()
    for nll, accuracy, since in ((0.5, 0.8, 0), (0.6, 0.9, 1), (0.4, 0.7, 0), (0.45, 0.95, 1), (0.41, 0.9, 2)):
        best.update({"validation_nll": nll, "validation_accuracy": accuracy})
        assert best.epochs_since == since
    assert (best.nll, best.accuracy) == (0.4, 0.7)
    assert best.is_stale(2)
    assert not best.is_stale(3)
    assert not best.is_stale(0)  # never ends
