"""Checkpoints: steps resume bit for bit, damaged files are named, nothing is unpickled."""

import json

import pytest
import torch

from raygan.errors import RayganError
from raygan.models.gan import NetworkSettings, build_generator, load_generator, save_generator
from raygan.training.checkpoints import checkpoint_bytes, load_training, save_training
from raygan.training.settings import StepOptions
from raygan.training.step import GanStep

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)
OPTIONS = StepOptions(batch_size=4, n_critic=2, augment=["color", "cutout"], mirror=True, precision="fp32")


def batch(number):
    return torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)


def everything(step):
    return [*step.generator.state_dict().values(), *step.critic.state_dict().values(), *step.ema.state_dict().values()]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_resumes_bit_for_bit(tmp_path, channels_last):
    whole, first, resumed = (GanStep(NETWORKS, OPTIONS, channels_last=channels_last) for _ in range(3))
    for number in range(7):
        whole.step(batch(number))
    for number in range(3):
        first.step(batch(number))
    save_training(tmp_path, first, {})
    load_training(tmp_path, resumed)
    assert resumed.images_seen == 12
    for number in range(3, 7):
        resumed.step(batch(number))
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


def test_a_checkpoint_of_an_older_version_keeps_the_draws_it_began_with(tmp_path):
    whole, first, resumed = (GanStep(NETWORKS, OPTIONS) for _ in range(3))
    for step, batches in ((whole, 4), (first, 2)):
        step.use_draws("serial")
        for number in range(batches):
            step.step(batch(number))
    save_training(tmp_path, first, {})
    file = tmp_path / "training.json"
    described = json.loads(file.read_text())
    assert described["step"].pop("draws") == "serial"
    file.write_text(json.dumps(described))
    load_training(tmp_path, resumed)
    for number in (2, 3):
        resumed.step(batch(number))
    assert resumed.draws == "serial"
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


@pytest.mark.parametrize("counts", ["images", "batches"])
def test_another_batch_size_changes_no_images_seen(tmp_path, counts):
    """Also from checkpoints that count batches, as they once did. The average moves by images."""
    options = OPTIONS.model_copy(update={"ema_kimg": 1.0, "ema_ramp": 0.5})
    first = GanStep(NETWORKS, options)
    for number in range(6):
        first.step(batch(number))
    save_training(tmp_path, first, {})
    path = tmp_path / "training.json"
    saved = json.loads(path.read_text())
    assert saved.pop("images") == 24
    path.write_text(json.dumps({**saved, counts: {"images": 24, "batches": 6}[counts]}))
    resumed = GanStep(NETWORKS, options.model_copy(update={"batch_size": 2}))
    load_training(tmp_path, resumed)
    assert resumed.images_seen == 24
    before = [value.clone() for value in resumed.ema.module.parameters()]
    resumed.step(batch(6)[:2])
    resumed.step(batch(7)[:2])
    assert resumed.images_seen == 28
    keep = 0.5 ** (4 / (24 * 0.5))  # 4 images in an update, a half-life of half of the 24 images before it
    for old, new, average in zip(before, resumed.generator.parameters(), resumed.ema.module.parameters(), strict=True):
        torch.testing.assert_close(average, keep * old + (1 - keep) * new.detach(), rtol=1e-5, atol=1e-6)


def test_a_generator_comes_back_with_its_pixels_and_its_about(tmp_path):
    generator = build_generator(NETWORKS).eval()
    save_generator(tmp_path, generator, {"label": "cat"})
    loaded, about = load_generator(tmp_path)
    latents = torch.randn(2, 8)
    assert torch.equal(generator(latents), loaded(latents))
    assert about == {"label": "cat"}
    assert not loaded.training
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def truncate(folder):
    path = folder / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def remove(folder):
    (folder / "generator.safetensors").unlink()


def change(**values):
    def damage(folder):
        path = folder / "generator.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "truncated"),
        (remove, "missing"),
        (change(version=99), "version 99"),
        (change(about=None), "its `about` is no object"),
        (change(networks={"width": "x"}), "can.t build"),
        (change(networks=NetworkSettings(image_size=32, z_dim=8, width=5).to_dict()), "does not fit"),
        (lambda folder: (folder / "generator.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "generator.json").unlink(), "not a checkpoint folder"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, damage, says):
    save_generator(tmp_path, build_generator(NETWORKS), {})
    damage(tmp_path)
    with pytest.raises(RayganError, match=says) as raised:
        load_generator(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    save_training(tmp_path, GanStep(NETWORKS, OPTIONS), {})
    other = GanStep(NetworkSettings(image_size=32, z_dim=9, width=4), OPTIONS)
    with pytest.raises(RayganError, match="other networks"):
        load_training(tmp_path, other)


@pytest.mark.parametrize(("before", "now"), [(0, 1), (2, 0)])
def test_a_run_is_not_resumed_with_other_frozen_stages(tmp_path, before, now):
    """The optimizer would take the moments of other parameters, of other shapes, and the process would die."""
    saved, resumed = (GanStep(NETWORKS, OPTIONS.model_copy(update={"freeze_critic": each})) for each in (before, now))
    saved.step(batch(0))
    save_training(tmp_path, saved, {})
    with pytest.raises(RayganError, match=f"--freeze-critic: the run was trained with {before}: resume it with that"):
        load_training(tmp_path, resumed)


def test_the_size_of_a_checkpoint_is_known_beforehand(tmp_path):
    networks = NetworkSettings(image_size=64, z_dim=64, width=16)
    step = GanStep(networks, OPTIONS)
    for _ in range(OPTIONS.n_critic):  # then the generator has taken a step, too
        step.step(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    save_training(tmp_path, step, {})
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == pytest.approx(checkpoint_bytes(networks), rel=0.1)
