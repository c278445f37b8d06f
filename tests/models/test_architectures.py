"""Each architecture at each size and under each objective, exported, served, and against torch's own layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from raygan.models.fuse import fast_network
from raygan.models.gan import NetworkSettings, build_critic, build_generator, load_generator, save_generator
from raygan.models.layers import DownConvolution, UpConvolution
from raygan.models.registry import ARCHITECTURES
from raygan.serve.executor import is_batch_invariant
from raygan.training.registry import OBJECTIVES
from raygan.training.settings import StepOptions
from raygan.training.step import GanStep

NEW = ["skip", "residual"]


def networks(architecture, size=32, **changes):
    values = {"z_dim": 8, "width": 4, "critic_norm": "none", **changes}
    return NetworkSettings(image_size=size, architecture=architecture, **values)


def step_of(architecture, size=32, width=4, **changes):
    options = {"batch_size": 4, "n_critic": 1, "penalty_every": 2, "precision": "fp32", **changes}
    return GanStep(networks(architecture, size, width=width), StepOptions(**options))


def photos(size=32, count=4):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", NEW)
@pytest.mark.parametrize("size", [64, 128, 256])
def test_it_trains_at_every_size(architecture, size):
    step = step_of(architecture, size, width=2, objective="r3gan")
    before = [p.clone() for p in [*step.generator.parameters(), *step.critic.parameters()]]
    step.step(photos(size))  # the first leaves alone what is before a layer of zeros
    terms = step.step(photos(size))
    assert all(torch.isfinite(value) for value in terms.values())
    after = [*step.generator.parameters(), *step.critic.parameters()]
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # so narrow a network may have a ReLU that is always 0
    images = step.sample(torch.randn(2, 8))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1


@pytest.mark.parametrize("architecture", NEW)
@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_its_critic_learns_under_every_objective(architecture, objective):
    step = step_of(architecture, objective=objective, n_critic=100, critic_lr=1e-3)
    bright = torch.full((4, 3, 32, 32), 230, dtype=torch.uint8)
    losses = [float(step.step(bright)["critic_loss"]) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5]) / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_its_conditional_networks_use_the_class_of_each_image(architecture):
    settings = networks(architecture, labels=("cat", "dog"))
    generator, critic = build_generator(settings).eval(), build_critic(settings)
    latents, mixed = torch.randn(4, 8), torch.tensor([0, 1, 1, 0])
    cats, dogs = (generator(latents, torch.full((4,), number)) for number in (0, 1))
    assert not torch.allclose(cats, dogs)
    picked = torch.stack([cats[0], dogs[1], dogs[2], cats[3]])
    torch.testing.assert_close(generator(latents, mixed), picked)
    as_cats, as_dogs = (critic(picked, torch.full((4,), number)) for number in (0, 1))
    torch.testing.assert_close(critic(picked, mixed), torch.where(mixed == 1, as_dogs, as_cats))
    for network, argument in ((generator, latents), (critic, picked)):
        with pytest.raises(ValueError, match="needs classes"):
            network(argument)


@pytest.mark.parametrize(
    ("architecture", "norm"), [("dcgan", "instance"), *((name, "none") for name in ARCHITECTURES.names())]
)
def test_its_critic_scores_each_image_alone(architecture, norm):
    critic, images = build_critic(networks(architecture, critic_norm=norm)), torch.randn(6, 3, 32, 32)
    alone = torch.cat([critic(image[None]) for image in images])
    torch.testing.assert_close(critic(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_it_draws_the_same_once_saved_loaded_and_made_fast_in_any_batch(architecture, tmp_path):
    generator = build_generator(networks(architecture, 64))
    with torch.no_grad():
        generator(torch.randn(16, 8))  # gives batch norms statistics
    save_generator(tmp_path, generator, {})
    loaded, _ = load_generator(tmp_path)
    latents = torch.randn(9, 8)
    fast = fast_network(loaded, [latents[:1]], torch.device("cpu"))
    kinds = {type(module).__name__ for module in fast.modules()}
    assert not kinds & {"Conv2d", "ConvTranspose2d", "UpConvolution", "BatchNorm2d"}
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.testing.assert_close(fast(latents), generator.eval()(latents), rtol=1e-4, atol=1e-5)
            assert is_batch_invariant(fast, [latents], 9)
    finally:
        torch.set_num_threads(threads)


def test_a_bottleneck_begins_as_the_identity():
    """At first, the residual critic is its resampling and 1x1 convolutions, so it is linear in the image."""
    critic, images = build_critic(networks("residual")), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(critic(images[:1] + 2 * images[1:]), critic(images[:1]) + 2 * critic(images[1:]))


def test_a_penalty_in_bfloat16_survives_images_as_kernels():
    """With torch's own second derivative of a convolution, oneDNN divides by zero here and the process dies."""
    step = step_of("residual", 64, width=24, objective="r3gan", precision="bf16", batch_size=32)
    assert torch.isfinite(step.step(photos(64, 32))["r1"])


def test_up_is_nearest_neighbors_and_a_convolution():
    layer, images = UpConvolution(5, 7), torch.randn(2, 5, 6, 8)
    kernels = layer.learned.weight.flip(2, 3).transpose(0, 1)  # a transposed convolution turns its kernels around
    doubled = functional.interpolate(images, scale_factor=2, mode="nearest")
    wanted = functional.conv2d(doubled, kernels, layer.learned.bias, padding=1)
    torch.testing.assert_close(layer(images), wanted)
    torch.testing.assert_close(layer.plain()(images), wanted)


def test_down_is_a_convolution_and_the_mean_of_2x2_px():
    layer, images = DownConvolution(5, 7), torch.randn(2, 5, 6, 8)
    full = functional.conv2d(images, layer.learned.weight, layer.learned.bias, padding=1)
    torch.testing.assert_close(layer(images), functional.avg_pool2d(full, 2))


@pytest.mark.parametrize("layer", [UpConvolution(4, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1)], ids=["ours", "torch's"])
def test_an_even_image_gets_no_checkerboard(layer):
    with torch.no_grad():
        inside = layer(torch.ones(1, 4, 8, 8))[..., 2:-2, 2:-2]
    even = inside.std() < 1e-6
    assert even == isinstance(layer, UpConvolution)
