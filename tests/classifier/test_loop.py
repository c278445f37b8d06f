"""The classifier's training loop."""

from raygan.classifier.loop import ClassifierLoop
from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierStep
from raygan.data.photos import Photos


def test_training_settles_when_the_learning_rate_has_fallen_below_half():
    step = ClassifierStep(2, ClassifierOptions(warmup=0.2), batches=100)
    nothing = Photos((), ())
    loop = ClassifierLoop(step, nothing, nothing, lambda images: None)
    settling = []
    for step.batches_done in range(100):
        if loop.is_settling:
            settling.append(step.batches_done)
    # The rate rises to 1 over 20 batches and falls to 0 over 80.
    assert settling == list(range(61, 100))
