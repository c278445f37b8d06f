"""The classifier's step: its pictures, its rate, its resumption, and what it is started from."""

from __future__ import annotations

import http.client
import urllib.error
from dataclasses import replace

import pytest
import torch

from raygan.classifier.step import ClassifierFit, FitSettings, flip_and_shift, imagenet_start
from raygan.errors import RayganError
from raygan.models.googlenet import build_googlenet


@pytest.fixture(autouse=True)
def one_thread():
    """Small steps on several threads are mostly waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL = FitSettings(batch_size=4)


def images(count=4, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_flips_and_shifts_are_those_drawn():
    picture = images(1)
    padded = torch.nn.functional.pad(picture.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    # Draws of 0 are a flip and the farthest shifts to one side, of nearly 1 no flip and the other side.
    shown = flip_and_shift(picture, torch.tensor([[0.9, 0.0, 0.0]]), reach=2, mirror=True)
    assert torch.equal(shown, padded[:, :, :32, :32])
    shown = flip_and_shift(picture, torch.tensor([[0.0, 0.99, 0.5]]), reach=2, mirror=True)
    assert torch.equal(shown, padded[:, :, 4:, 2:-2].flip(3))
    still = flip_and_shift(picture, torch.tensor([[0.0, 0.5, 0.5]]), reach=2, mirror=False)
    assert torch.equal(still, picture)


def test_the_rate_rises_and_falls_to_zero():
    fit = ClassifierFit(2, FitSettings(batch_size=4, warmup=0.1), batches=100)
    rates = [fit.rate(batch) for batch in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == max(rates) == 1
    assert rates[100] == 0
    assert rates[55] == pytest.approx(0.5)


def test_what_users_get_is_a_moving_average_whose_half_life_grows():
    fit = ClassifierFit(2, FitSettings(batch_size=4, ema_ramp=0.5), batches=8)
    targets = torch.tensor([0, 1, 0, 1])
    seen = [fit.net.fc.weight.detach().clone()]
    for number in range(8):
        fit.step(images(seed=number), targets)
        seen.append(fit.net.fc.weight.detach().clone())
    # Updated every 4 batches: the first time with a half-life of 2 batches, the second with one of 4.
    first = seen[0] / 4 + seen[4] * 3 / 4
    torch.testing.assert_close(fit.ema.fc.weight, (first + seen[8]) / 2)
    assert fit.ema.fc.weight.ne(fit.net.fc.weight).any()
    for batches in (3, 6):
        fit = ClassifierFit(2, FitSettings(batch_size=4, ema_ramp=0.5), batches)
        seen = [fit.net.fc.weight.detach().clone()]
        for number in range(batches):
            fit.step(images(seed=number), targets)
            seen.append(fit.net.fc.weight.detach().clone())
        # And at the end: 3 batches of a half-life of 1.5, or after the fourth 2 more of one of 3.
        first = seen[0] / 4 + seen[min(batches, 4)] * 3 / 4
        left = 1 if batches == 3 else 0.5 ** (2 / 3)
        torch.testing.assert_close(fit.ema.fc.weight, first * left + seen[-1] * (1 - left))
    alone = ClassifierFit(2, FitSettings(batch_size=4, ema_ramp=0), batches=8)
    assert alone.ema is alone.net


def test_a_fit_that_was_put_away_goes_on_as_if_it_had_not_been():
    targets = torch.tensor([0, 1, 0, 1])
    whole, first, second = (ClassifierFit(2, SMALL, batches=9) for _ in range(3))
    for number in range(8):
        whole.step(images(seed=number), targets)
    for number in range(5):
        first.step(images(seed=number), targets)
    second.load_state(first.state(), 5)
    for number in range(5, 8):
        second.step(images(seed=number), targets)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    alone = ClassifierFit(2, replace(SMALL, ema_ramp=0), batches=9)
    alone.step(images(), targets)
    second.load_state(alone.state(), 1)  # which has no average: it begins at the network
    for name, value in alone.net.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    with pytest.raises(RayganError, match="other labels"):
        ClassifierFit(3, SMALL, batches=3).load_state(first.state(), 1)


def test_a_start_from_imagenet_leaves_only_the_last_layers_new(tmp_path):
    imagenet = build_googlenet(1000)
    torch.save(imagenet.state_dict(), tmp_path / "imagenet.pth")
    start = imagenet_start(str(tmp_path / "imagenet.pth"), auxiliary=True)
    fit = ClassifierFit(2, SMALL, batches=1, start=start)
    assert torch.equal(fit.net.inception5b.branch1.conv.weight, imagenet.inception5b.branch1.conv.weight)
    assert fit.net.fc.out_features == 2
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(RayganError, match="does not hold GoogLeNet"):
        imagenet_start(str(tmp_path / "other.pth"), auxiliary=True)
    with pytest.raises(RayganError, match="does not hold GoogLeNet"):
        imagenet_start(str(tmp_path / "none.pth"), auxiliary=True)
    wrong_shape = {**imagenet.state_dict(), "conv1.conv.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(wrong_shape, tmp_path / "shape.pth")
    with pytest.raises(RayganError, match="does not hold GoogLeNet"):
        imagenet_start(str(tmp_path / "shape.pth"), auxiliary=True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (urllib.error.URLError("Name or service not known"), "not known"),
        (http.client.IncompleteRead(b"half"), "IncompleteRead"),
        (RuntimeError('invalid hash value (expected "a", got "b")'), "invalid hash"),
    ],
)
def test_a_download_that_fails_is_said(monkeypatch, error, says):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RayganError, match=rf"can't be downloaded .*{says}.*give the path"):
        imagenet_start(None, auxiliary=True)
