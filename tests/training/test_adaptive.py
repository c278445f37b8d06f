"""Adaptive augmentation: how the share moves, what it changes, and that it resumes."""

import pytest
import torch

from raygan.errors import ConfigurationError
from raygan.models.distributed import Share
from raygan.models.gan import NetworkSettings, to_signed
from raygan.settings import resolve
from raygan.training.adaptive import AdaptiveShare
from raygan.training.augment import DRAWS_PER_IMAGE, augment
from raygan.training.checkpoints import load_training, save_training
from raygan.training.registry import OBJECTIVES, POLICIES
from raygan.training.settings import StepOptions, TrainSettings
from raygan.training.step import GanStep

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)


def photos(number=0, count=4):
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)


def step_of(**changes):
    return GanStep(NETWORKS, StepOptions(**{"batch_size": 4, "n_critic": 1, "precision": "fp32", **changes}))


def weights(step):
    return torch.cat([p.detach().flatten() for p in [*step.critic.parameters(), *step.generator.parameters()]])


def test_the_share_rises_by_what_is_seen_in_four_batches_and_falls_back():
    share = AdaptiveShare(0.6, 250, Share(), torch.device("cpu"))
    seen = []
    for batch in range(20):
        certain = torch.ones(250) if batch < 8 else torch.tensor([1.0, -1.0]).repeat(125)
        share.update(certain, decide=share.decides_after(batch))
        seen.append(round(float(share.state[0]), 6))
    # Four batches are 1,000 images, a hundredth of the way from 0 to 1; certainties below the target count downwards.
    assert seen == [0] * 3 + [0.01] * 4 + [0.02] * 4 + [0.01] * 4 + [0] * 5


def test_a_gate_leaves_an_image_to_each_policy_or_alone():
    images, draws = to_signed(photos()), torch.rand(4, DRAWS_PER_IMAGE)
    for number, policy in enumerate(POLICIES):
        gates = torch.zeros(4, len(POLICIES), dtype=torch.bool)
        gates[[0, 2], number] = True
        changed = augment(images, draws, POLICIES, gates)
        torch.testing.assert_close(changed[[0, 2]], augment(images, draws, [policy])[[0, 2]])
        assert torch.equal(changed[[1, 3]], images[[1, 3]])


def test_a_share_of_the_images_is_changed():
    share = AdaptiveShare(0.6, 4, Share(), torch.device("cpu"))
    draws = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(0))
    for part in (0.0, 0.3, 1.0):
        share.state[0] = part
        assert float(share.gates(draws).float().mean()) == pytest.approx(part, abs=0.01)


def test_a_step_without_a_share_is_one_without_augmentation_and_with_all_of_it_one_with():
    plain, full = step_of(), step_of(augment=list(POLICIES))
    adapting = [step_of(augment=list(POLICIES), augment_target=0.6) for _ in range(2)]
    adapting[1].adaptive.state[0] = 1
    for step in (plain, full, *adapting):
        step.step(photos())
    assert torch.equal(weights(plain), weights(adapting[0]))
    assert torch.equal(weights(full), weights(adapting[1]))
    assert not torch.equal(weights(plain), weights(full))


def test_it_resumes_bit_for_bit_between_two_decisions(tmp_path):
    def steps(step, numbers):
        for number in numbers:
            step.step(photos(number))
        return step

    options = {"augment": ["color"], "augment_target": 0.1, "objective": "r3gan", "critic_lr": 0.01}
    whole = steps(step_of(**options), range(11))
    save_training(tmp_path, steps(step_of(**options), range(6)), {})
    resumed = step_of(**options)
    load_training(tmp_path, resumed)
    steps(resumed, range(6, 11))
    assert float(whole.adaptive.state[0]) > 0
    assert torch.equal(whole.adaptive.state, resumed.adaptive.state)
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_a_critic_that_takes_photos_for_real_is_certain(objective):
    def critic(images):
        return images.mean(dim=(1, 2, 3))

    bright, dark = torch.full((3, 3, 4, 4), 0.5), torch.full((3, 3, 4, 4), -0.5)
    for reals, fakes, certainty in ((bright, dark, 1), (dark, bright, -1)):
        _, terms = OBJECTIVES.load(objective)().critic_loss(critic, reals, fakes, torch.zeros(3, 1, 1, 1), 0.0)
        assert terms["certainty"].tolist() == [certainty] * 3


def test_scores_are_the_critics_of_photos_as_they_are_and_change_nothing():
    step = GanStep(
        NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm="batch"),
        StepOptions(objective="dcgan", batch_size=4, precision="fp32", augment=["color"]),
    )
    step.step(photos())
    before = {name: value.clone() for name, value in step.critic.state_dict().items()}
    found = step.scores(to_signed(photos(1)))
    assert all(torch.equal(before[name], value) for name, value in step.critic.state_dict().items())
    assert step.critic.training
    with torch.no_grad():
        torch.testing.assert_close(found, step.critic.eval()(photos(1) / 127.5 - 1))


def test_without_anything_to_adapt_it_is_refused():
    with pytest.raises(ConfigurationError, match="augment_target adapts augment, which is empty"):
        resolve(TrainSettings, {"data": "shards", "augment_target": 0.6})
