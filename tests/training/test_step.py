"""The step alone: draws, EMA, precision, learning rates, and one step against a written-out reference."""

import pytest
import torch

from raygan.models.distributed import Share
from raygan.models.gan import NetworkSettings, to_signed, to_uint8
from raygan.training.registry import OBJECTIVES
from raygan.training.settings import StepOptions
from raygan.training.step import GanStep

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)


def reals(count=6, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def options(**changes):
    return StepOptions(**{"batch_size": 6, "n_critic": 2, "beta2": 0.9, "precision": "fp32", **changes})


def weights(step):
    return torch.cat([p.detach().flatten() for p in [*step.generator.parameters(), *step.critic.parameters()]])


def test_steps_are_a_function_of_seed_and_batch_number():
    runs = [GanStep(NETWORKS, options(seed=seed)) for seed in (3, 3, 4)]
    for run in runs:
        torch.manual_seed(id(run))  # the global random state must not matter
        for number in range(4):
            run.step(reals(seed=number))
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_the_generator_steps_after_every_n_critic_critic_steps():
    step = GanStep(NETWORKS, options(n_critic=3))
    stepped = []
    for _ in range(6):
        before = next(step.generator.parameters()).clone()
        terms = step.step(reals())
        stepped.append(not torch.equal(before, next(step.generator.parameters())))
        assert ("generator_loss" in terms) == stepped[-1]
    assert stepped == [False, False, True, False, False, True]


def test_a_batch_of_another_size_begins_with_an_image_that_was_not_seen():
    step = GanStep(NETWORKS, options(batch_size=6))
    step.images_seen = 9  # three batches of three
    assert step.batches == 2
    step.step(reals())
    assert step.batches == 3


def test_the_penalty_is_taken_every_so_many_steps():
    step = GanStep(NETWORKS, options(penalty_every=3))
    taken = ["gradient_penalty" in step.step(reals()) for _ in range(6)]
    assert taken == [True, False, False, True, False, False]


def test_shares_cover_the_batch_once_whatever_its_size():
    for count in (5, 6, 7, 64):
        for world in (1, 2, 3, 5):
            rows = [i for rank in range(world) for i in range(count)[Share(rank, world).rows(count)]]
            assert rows == list(range(count))


def test_ema_follows_its_half_life_in_images():
    """Without a ramp, the average is halfway to constant weights after one half-life of images."""
    chosen = options(ema_kimg=0.12, ema_ramp=0.0, n_critic=1, batch_size=6)
    step = GanStep(NETWORKS, chosen)
    step.ema.update_parameters(step.generator)  # torch copies the weights in the first update
    start = [p.clone() for p in step.ema.module.parameters()]
    with torch.no_grad():
        for parameter in step.generator.parameters():
            parameter.add_(1.0)
    for _ in range(20):  # 20 updates of 6 images are 120 images
        step.ema.update_parameters(step.generator)
    for old, new in zip(start, step.ema.module.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.5), rtol=1e-4, atol=1e-5)


def test_without_an_ema_users_get_the_generator():
    step = GanStep(NETWORKS, options(ema_kimg=0, n_critic=1))
    for number in range(3):
        step.step(reals(seed=number))
    assert all(map(torch.equal, step.ema.module.state_dict().values(), step.generator.state_dict().values()))


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_bfloat16_steps_nearly_as_float32_does(objective):
    """Rounding to 8 bits moves a gradient by about a hundredth of its length, even through a penalty."""
    gradients = []
    for precision in ("fp32", "bf16"):
        step = GanStep(NETWORKS, options(objective=objective, precision=precision, batch_size=32, n_critic=1))
        step.step(reals(32))
        networks = step.critic, step.generator
        gradients.append(torch.cat([p.grad.flatten() for network in networks for p in network.parameters()]))
        assert gradients[-1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()
    assert not torch.equal(*gradients)


def test_ema_ramp_shortens_the_half_life_of_a_young_generator():
    chosen = options(ema_kimg=1000, ema_ramp=0.5, n_critic=1, batch_size=6)
    step = GanStep(NETWORKS, chosen)
    for _ in range(10):
        step.ema.update_parameters(step.generator)
    before = [p.clone() for p in step.ema.module.parameters()]
    step.images_seen = 60
    with torch.no_grad():
        for parameter in step.generator.parameters():
            parameter.add_(1.0)
    step.ema.update_parameters(step.generator)
    expected = 1 - 0.5 ** (6 / (60 * 0.5))
    for old, new in zip(before, step.ema.module.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, expected), rtol=1e-3, atol=1e-5)


def test_the_first_critic_step_equals_adam_on_the_written_out_loss():
    """The reference shares only the networks and the documented draws with the step."""
    step = GanStep(NETWORKS, options(mirror=False))
    critic, generator = step.critic, step.generator
    draws = step.critic_draws.of(0)
    latents, mix = draws["latents"], draws["mix"][:, :, None, None]
    x = reals().float() / 127.5 - 1
    with torch.no_grad():
        fakes = generator(latents)
    between = ((1 - mix) * x + mix * fakes).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1) ** 2
    loss = critic(fakes).mean() - critic(x).mean() + 10 * penalty.mean()
    gradients = torch.autograd.grad(loss, list(critic.parameters()))
    terms = step.step(reals())
    assert terms["critic_loss"].item() / 6 == pytest.approx(loss.item(), rel=1e-4)
    for parameter, gradient in zip(critic.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_both_optimizers_get_their_share_of_the_learning_rate():
    chosen = options(warmup_kimg=0.06, decay=0.5, critic_lr=1e-3, generator_lr=2e-3)
    step = GanStep(NETWORKS, chosen, total_kimg=0.24)
    step.step(reals())
    assert step.critic_optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert step.generator_optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_the_layout_in_memory_changes_only_rounding(objective):
    changes = {"objective": objective, "augment": ["color", "translation", "cutout"], "mirror": True}
    networks = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm="none")
    plain, last = (GanStep(networks, options(**changes), float64=True, channels_last=each) for each in (False, True))
    for number in range(2):
        plain.step(reals(seed=number))
        last.step(reals(seed=number))
    assert next(last.critic.parameters()).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in last.critic.parameters()]),
        torch.cat([p.grad.flatten() for p in plain.critic.parameters()]),
        rtol=1e-6,
        atol=1e-9,
    )


def test_settings_are_recorded_with_what_was_decided_for_the_run():
    step = GanStep(NETWORKS, options(sync_batch_norm=True), total_kimg=0.24)
    recorded = step.settings()
    assert recorded == {
        **options(sync_batch_norm=True).plain(),
        "precision": "fp32",
        "total_kimg": 0.24,
        "draws": "philox",
    }
    assert set(StepOptions.model_fields) < set(recorded)


def test_clipping_shortens_long_gradients_only():
    """Adam hides a gradient's length, so the test looks at the gradient that Adam is given."""
    found = {}
    for limit in (0.0, 1e-3, 1e6):
        step = GanStep(NETWORKS, options(clip_gradient=limit))
        terms = step.step(reals())
        lengths = torch.stack([p.grad.norm() for p in step.critic.parameters()])
        found[limit] = (float(terms["critic_gradient"]) / 6, float(lengths.norm()))
    assert found[0.0][1] == pytest.approx(found[0.0][0], rel=1e-4)
    assert found[1e6] == pytest.approx(found[0.0], rel=1e-5)
    assert found[1e-3][1] == pytest.approx(1e-3, rel=1e-3)
    assert found[1e-3][0] == pytest.approx(found[0.0][0], rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_frozen_stages_leave_gradients_and_their_norm_to_the_others(objective):
    norm = "batch" if OBJECTIVES.load(objective).allows_batch_norm else "instance"
    networks = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm=norm)
    whole, frozen = (GanStep(networks, options(objective=objective, freeze_critic=each)) for each in (0, 2))
    terms = [step.step(reals()) for step in (whole, frozen)]
    found = dict(frozen.critic.named_parameters())
    for name, parameter in whole.critic.named_parameters():
        if name.startswith(("blocks.0.", "blocks.1.")):
            assert found[name].grad is None
        else:
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms[1]["critic_loss"], terms[0]["critic_loss"])
    for number in (1, 2):  # after a generator step, too
        terms = frozen.step(reals(seed=number))
        lengths = torch.stack([each.grad.norm() for each in found.values() if each.grad is not None])
        assert float(terms["critic_gradient"]) / 6 == pytest.approx(float(lengths.norm()), rel=1e-4)


def test_a_conditional_step_learns_classes_from_reals():
    """Cats are dark and dogs are bright; the critic must learn to prefer each under its own label."""
    networks = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm="none", labels=("cat", "dog"))
    step = GanStep(networks, options(n_critic=100, critic_lr=3e-3, penalty_weight=0.1))
    dark, bright = (torch.full((3, 3, 32, 32), value, dtype=torch.uint8) for value in (30, 220))
    for _ in range(60):
        step.step(torch.cat([dark, bright]), torch.tensor([0, 0, 0, 1, 1, 1]))
    images = to_signed(torch.cat([dark[:1], bright[:1]]))
    with torch.no_grad():
        as_cats, as_dogs = step.critic(images, torch.tensor([0, 0])), step.critic(images, torch.tensor([1, 1]))
    assert as_cats[0] > as_cats[1]
    assert as_dogs[1] > as_dogs[0]


def test_pixels_survive_the_way_to_floats_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    signed = to_signed(pixels)
    assert signed.min() == -1
    assert signed.max() == 1
    assert torch.equal(to_uint8(signed), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_every_objective_teaches_the_critic_to_tell_reals_from_fakes(objective):
    """Reals are bright and an untrained generator's images are gray, so the critic's loss must fall."""
    norm = "batch" if OBJECTIVES.load(objective).allows_batch_norm else "none"
    networks = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm=norm)
    step = GanStep(networks, options(objective=objective, n_critic=100, critic_lr=1e-3))
    bright = torch.full((6, 3, 32, 32), 230, dtype=torch.uint8)
    losses = [step.step(bright)["critic_loss"].item() for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
