"""Fine-tuning: what a training takes over from another one's networks, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import raygan
from raygan import tracking
from raygan.errors import ConfigurationError
from raygan.models.gan import NetworkSettings, save_generator
from raygan.models.registry import ARCHITECTURES
from raygan.runtime.runs import RunRecord
from raygan.training.build import network_settings
from raygan.training.checkpoints import load_training, save_training
from raygan.training.inherit import Inheritance
from raygan.training.settings import StepOptions
from raygan.training.source import keep_source
from raygan.training.step import GanStep

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4, critic_norm="none")
OPTIONS = StepOptions(batch_size=4, n_critic=1, seed=1)


def new_step(networks=NETWORKS, **changes):
    return GanStep(networks, StepOptions(**{**OPTIONS.plain(), **changes}))


def trained_folder(folder, networks=NETWORKS):
    """A checkpoint after a few steps, of which every network has moved."""
    step = new_step(networks, seed=2)
    size = networks.image_size
    for number in range(3):
        random = torch.Generator().manual_seed(number)
        step.step(torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=random))
    folder.mkdir()
    save_training(folder, step, {"label": "cat", "kimg": 0.012})
    return step


def states(step):
    return {"generator": step.generator, "ema": step.ema.module, "critic": step.critic}


@pytest.mark.parametrize("architecture", ["dcgan", "skip", "residual"])
def test_a_checkpoint_gives_all_networks(architecture, tmp_path):
    networks = replace(NETWORKS, architecture=architecture)
    source, step = trained_folder(tmp_path / "c", networks), new_step(networks)
    found = Inheritance.of(tmp_path / "c", networks)
    found.give(step)
    for name, network in states(step).items():
        for key, value in states(source)[name].state_dict().items():
            assert torch.equal(network.state_dict()[key], value), (name, key)
    assert step.images_seen == 0
    said = "takes the generator and its EMA and the critic; re-initializes nothing; the optimizers start fresh"
    assert found.account(networks) == said


def test_the_inherited_average_goes_on_also_when_it_is_resumed(tmp_path):
    """At a rate of almost zero, the average of a generator that is 1 apart from it moves by the ramp's share."""
    source = new_step(seed=2)
    with torch.no_grad():
        for parameter in source.ema.module.parameters():
            parameter.add_(1.0)
    (tmp_path / "c").mkdir()
    save_training(tmp_path / "c", source, {"kimg": 1000})
    rates = {"generator_lr": 1e-12, "critic_lr": 1e-12, "ema_kimg": 10.0, "ema_ramp": 0.05}
    straight, resumed = new_step(**rates), new_step(**rates)
    Inheritance.of(tmp_path / "c", NETWORKS).give(straight)
    reals = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    straight.step(reals[0])
    # Its ramp begins at one half-life of the source's, 10,000 images: four images are 0.008 of 0.05 of that.
    for mean, raw in zip(straight.ema.module.parameters(), straight.generator.parameters(), strict=True):
        torch.testing.assert_close(mean - raw, torch.full_like(raw, 0.5**0.008), rtol=1e-4, atol=1e-5)
    (tmp_path / "r").mkdir()
    save_training(tmp_path / "r", straight, {})
    load_training(tmp_path / "r", resumed)
    for step in (straight, resumed):
        step.step(reals[1])
        step.step(reals[2])
    pairs = zip(straight.ema.module.parameters(), resumed.ema.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_registered_generator_gives_its_average_and_no_critic(tmp_path):
    source, step = trained_folder(tmp_path / "c"), new_step()
    before = {key: value.clone() for key, value in step.critic.state_dict().items()}
    save_generator(tmp_path / "g", source.ema.module, {})
    found = Inheritance.of(tmp_path / "g", NETWORKS)
    found.give(step)
    for key, value in source.ema.module.state_dict().items():
        assert torch.equal(step.generator.state_dict()[key], value)
    assert all(torch.equal(step.critic.state_dict()[key], value) for key, value in before.items())
    assert "re-initializes the critic" in found.account(NETWORKS)


@pytest.mark.parametrize("architecture", ["dcgan", "skip", "residual"])
def test_networks_grow_a_stage_next_to_the_image(architecture, tmp_path):
    """What the networks do far from the image stays: the coarse stages are the same functions."""
    small = replace(NETWORKS, architecture=architecture)
    large = replace(small, image_size=64, width=2)
    source, step = trained_folder(tmp_path / "c", small), new_step(large)
    found = Inheritance.of(tmp_path / "c", large)
    found.give(step)
    kept = [key for key in source.generator.state_dict() if not key.startswith("exit.")]
    assert set(kept) <= set(found.generator)
    for key in kept:
        assert torch.equal(step.generator.state_dict()[key], source.generator.state_dict()[key])
    stack, layers = ARCHITECTURES.load(architecture).growth
    coarse = getattr(source.critic, stack)[layers:]
    grown = getattr(step.critic, stack)[2 * layers :]
    channels = next(coarse.parameters()).shape[1]
    images = torch.rand(2, channels, 16, 16)
    assert torch.equal(coarse(images), grown(images))
    assert "takes the generator and the critic; re-initializes the generator's" in found.account(large)
    assert found.account(large).endswith("; the optimizers start fresh, and so does the EMA")
    step.step(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    assert torch.equal(next(step.ema.module.parameters()), next(step.generator.parameters()))
    with pytest.raises(ConfigurationError, match=f"--freeze-critic: growing re-initializes the critic's .*{stack}.0"):
        found.check_frozen(large, 1)


def test_frozen_stages_of_the_critic_stay_and_the_others_learn(tmp_path):
    trained_folder(tmp_path / "c")
    step = new_step(freeze_critic=2)
    found = Inheritance.of(tmp_path / "c", NETWORKS)
    found.check_frozen(NETWORKS, 2)
    found.give(step)
    before = {key: value.clone() for key, value in step.critic.state_dict().items()}
    for _ in range(2):
        step.step(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    moved = {key for key, value in step.critic.state_dict().items() if not torch.equal(value, before[key])}
    # The last bias cancels between reals and fakes, so it may stay.
    assert moved | {"exit.bias"} == {key for key in before if key.startswith(("blocks.2.", "exit."))}
    with pytest.raises(ConfigurationError, match="--freeze-critic: this critic has only 3 stages, not 4"):
        new_step(freeze_critic=4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "skip"}, "architecture dcgan, not skip: give --architecture dcgan"),
        ({"z_dim": 9}, "z_dim 8, not 9: give --z-dim 8"),
        ({"width": 8}, "width 4, not 8: give --width 4"),
        ({"critic_norm": "instance"}, "critic_norm none, not instance"),
        ({"labels": ("cat", "dog")}, "draw one label, not cat, dog: leave --conditional out"),
        ({"image_size": 128}, "are 32 px: --image-size can be 32 or 64, not 128"),
        ({"image_size": 64}, "a stage grows at half the width: give --width 2, not 4"),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes, says, tmp_path):
    trained_folder(tmp_path / "c")
    with pytest.raises(ConfigurationError, match=says) as raised:
        Inheritance.of(tmp_path / "c", replace(NETWORKS, **changes))
    assert str(raised.value).startswith("--begin-from: ")
    assert "\n" not in str(raised.value)


def test_networks_of_several_labels_are_given_to_the_same_labels_alone(tmp_path):
    save_generator(tmp_path / "g", new_step(replace(NETWORKS, labels=("cat", "dog"))).ema.module, {})
    for labels, new in ((("cat", "lion"), "cat, lion"), ((), "one label")):
        says = f"draw cat, dog, not {new}: train with --conditional on shards of cat, dog alone"
        with pytest.raises(ConfigurationError, match=says):
            Inheritance.of(tmp_path / "g", replace(NETWORKS, labels=labels))


def test_a_size_that_growing_cannot_reach_is_refused(tmp_path):
    """From 128 to 256 px, the widest stages have as many channels as before."""
    step = new_step(replace(NETWORKS, image_size=128, width=2))
    save_generator(tmp_path / "g", step.ema.module, {})
    with pytest.raises(ConfigurationError, match="growing doesn't reach 256 px from these networks"):
        Inheritance.of(tmp_path / "g", replace(NETWORKS, image_size=256, width=1))


def test_a_source_is_a_run_a_model_or_a_folder(train_settings, tmp_path):
    settings = train_settings(label="cat", critic_norm="none", begin_from="nobody")

    def keep(name, resumed=False, **changes):
        changed = settings.model_copy(update={"begin_from": name, **changes})
        run = RunRecord("run", str(tmp_path / "run"), {}, resumed=resumed)
        return keep_source(changed, network_settings(changed, ()), run)

    def kept():
        return {path.name for path in (tmp_path / "run" / "begun_from").iterdir()}

    with pytest.raises(ConfigurationError, match="--begin-from: 'nobody' is neither a registered model"):
        keep("nobody")
    run = Path(settings.storage, "runs", "earlier")
    run.mkdir(parents=True)
    source = trained_folder(run / "checkpoint_1")
    shutil.copytree(run / "checkpoint_1", run / "checkpoint_2")
    (run / "checkpoint_2" / "training.safetensors").unlink()  # as a full disk leaves it
    said = keep("earlier")
    assert "checkpoint_1: takes the generator and its EMA and the critic" in said
    assert kept() == {"generator.json", "generator.safetensors", "training.json", "training.safetensors"}
    assert keep("earlier", resumed=True) is None
    assert keep(str(run / "checkpoint_1")) == said
    save_generator(tmp_path / "g", source.ema.module, {"label": "dog"})
    with tracking.start_run(settings, "r", job="test", params={}) as log:
        tracking.register_generator(log, tmp_path / "g", "dog", labels=["dog"], promote=True)
    for name in ("raygan-generator-dog", "models:/raygan-generator-dog/1"):
        # What a command that ended before the run began took from elsewhere is gone, its critic included.
        assert "raygan-generator-dog/1: takes the generator and its EMA; re-initializes the critic" in keep(name)
        assert kept() == {"generator.json", "generator.safetensors"}
    with pytest.raises(ConfigurationError, match="--freeze-critic: a registered generator has no critic"):
        keep("raygan-generator-dog/1", freeze_critic=1)


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_begins_with_another_ones_weights(train_settings, tmp_path, capsys, monkeypatch):
    """At a rate of almost zero, it also ends with them: on time by the clock, however rarely it logs."""
    for name in ("RAY_ENABLE_AUTO_CONNECT", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "0")  # as `raygan.train` does
    source = trained_folder(tmp_path / "c")
    rates = {"generator_lr": 1e-12, "critic_lr": 1e-12}
    rarely = {"log_every": 1000.0, "snapshot_every": 1000.0, "checkpoint_every": 1000.0}
    clock = {"num_workers": 2, "epochs": 1_000_000, "minutes": 0.05, **rarely}
    settings = train_settings(label="cat", critic_norm="none", begin_from=str(tmp_path / "c"), **rates, **clock)
    result = raygan.train(**settings.plain())  # as from a notebook
    assert result.last_metrics["minutes"] >= 0.05
    assert result.last_metrics["images"] < 1_000_000  # the first log would have been then
    assert raygan.load_generator(result.checkpoint, storage=settings.storage).sample([0]).shape == (1, 32, 32, 3)
    assert f"begins with {tmp_path / 'c'}: takes the generator" in capsys.readouterr().out
    step = new_step()
    Inheritance.of(Path(result.checkpoint), NETWORKS).give(step)
    for key, value in source.critic.state_dict().items():
        torch.testing.assert_close(step.critic.state_dict()[key], value, atol=1e-6, rtol=1e-6)
    about = json.loads(Path(result.checkpoint, "generator.json").read_text())["about"]
    assert about["kimg"] == result.metrics["images"] / 1000  # from nothing, not from the other one's 0.012
