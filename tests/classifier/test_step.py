"""The classifier's step: augmentation, learning rate, moving average, resumption."""

import pytest
import torch

from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierStep, flip_and_shift
from raygan.errors import RayganError
from raygan.models.weights import load_tensors, save_tensors

SMALL = ClassifierOptions(batch_size=4)

TARGETS = torch.tensor([0, 1, 0, 1])


@pytest.fixture(autouse=True)
def one_thread():
    """In steps this small, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count=4, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_flips_and_shifts_follow_the_draws():
    picture = images(1)
    padded = torch.nn.functional.pad(picture.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    # A draw of 0 flips, or shifts farthest to one side; a draw near 1 doesn't flip, or shifts to the other side.
    shown = flip_and_shift(picture, torch.tensor([[0.9, 0.0, 0.0]]), reach=2, mirror=True)
    assert torch.equal(shown, padded[:, :, :32, :32])
    shown = flip_and_shift(picture, torch.tensor([[0.0, 0.99, 0.5]]), reach=2, mirror=True)
    assert torch.equal(shown, padded[:, :, 4:, 2:-2].flip(3))
    still = flip_and_shift(picture, torch.tensor([[0.0, 0.5, 0.5]]), reach=2, mirror=False)
    assert torch.equal(still, picture)


def test_the_learning_rate_rises_and_falls_to_zero():
    step = ClassifierStep(2, ClassifierOptions(batch_size=4, warmup=0.1), total=400)
    rates = [step.rate(images) for images in range(0, 401, 4)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == max(rates) == 1
    assert rates[100] == 0
    assert rates[55] == pytest.approx(0.5)
    resumed = ClassifierStep(2, ClassifierOptions(batch_size=40, warmup=0.1), total=400)
    assert resumed.rate(220) == pytest.approx(0.5)  # of the same images, whatever the size of batches
    resumed.images_seen = 220
    assert resumed.batches == 6  # batch 5 begins with images 200 to 219, whose random numbers are used up


def test_the_half_life_of_the_moving_average_grows():
    step = ClassifierStep(2, ClassifierOptions(batch_size=4, ema_ramp=0.5), total=32)
    seen = [step.net.fc.weight.detach().clone()]
    for number in range(8):
        step.step(images(seed=number), TARGETS)
        seen.append(step.net.fc.weight.detach().clone())
    # Updated every 4 batches: the first time with a half-life of 2 batches, the second time with 4.
    first = seen[0] / 4 + seen[4] * 3 / 4
    torch.testing.assert_close(step.ema.fc.weight, (first + seen[8]) / 2)
    assert step.ema.fc.weight.ne(step.net.fc.weight).any()
    for batches in (3, 6):
        step = ClassifierStep(2, ClassifierOptions(batch_size=4, ema_ramp=0.5), 4 * batches)
        seen = [step.net.fc.weight.detach().clone()]
        for number in range(batches):
            step.step(images(seed=number), TARGETS)
            seen.append(step.net.fc.weight.detach().clone())
        # Also updated at the end: over 3 batches with a half-life of 1.5, or over the last 2 with one of 3.
        first = seen[0] / 4 + seen[min(batches, 4)] * 3 / 4
        left = 1 if batches == 3 else 0.5 ** (2 / 3)
        torch.testing.assert_close(step.ema.fc.weight, first * left + seen[-1] * (1 - left))
    alone = ClassifierStep(2, ClassifierOptions(batch_size=4, ema_ramp=0), total=32)
    assert alone.ema is alone.net


def test_a_resumed_step_continues_as_if_uninterrupted(tmp_path):
    whole, first, second = (ClassifierStep(2, SMALL, total=36) for _ in range(3))
    for number in range(8):
        whole.step(images(seed=number), TARGETS)
    for number in range(5):
        first.step(images(seed=number), TARGETS)
    second.load_state(first.state(), 20)
    for number in range(5, 8):
        second.step(images(seed=number), TARGETS)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    again = ClassifierStep(2, SMALL, total=36)
    save_tensors(tmp_path / "fit.safetensors", first.state())  # a file forgets the weights' layout
    again.load_state(load_tensors(tmp_path / "fit.safetensors"), 20)
    for number in range(5, 8):
        again.step(images(seed=number), TARGETS)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name
    alone = ClassifierStep(2, SMALL.model_copy(update={"ema_ramp": 0.0}), total=36)
    alone.step(images(), TARGETS)
    second.load_state(alone.state(), 4)  # without an average: it starts at the network
    for name, value in alone.net.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    with pytest.raises(RayganError, match="other labels"):
        ClassifierStep(3, SMALL, total=12).load_state(first.state(), 4)
