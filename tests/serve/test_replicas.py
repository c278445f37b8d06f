"""Replicas: which form of a network they serve, and which versions they hold."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raygan.errors import RayganError
from raygan.models.fuse import fast_classifier, fast_network
from raygan.models.gan import to_uint8
from raygan.models.googlenet import Classifier, build_googlenet, load_classifier, to_input
from raygan.models.latents import latents_of
from raygan.serve.calls import NotLoaded
from raygan.serve.messages import Champions, ClassifyRequest, ModelVersion, SampleRequest
from raygan.serve.model_store import write_files
from raygan.serve.precision import MAX_BF16_SHIFT, probability_shift
from raygan.serve.rehearsal import rehearse
from raygan.serve.replicas import Replica, latents_for
from raygan.serve.settings import ServeSettings
from tests.helpers import wait_until
from tests.serve.local import CAT, CLASSIFIER, DOG, NETWORKS, local_service, make_generator, save

CPU = torch.device("cpu")


def lit_from(shares):
    """Noisy images (n, 3, 32, 32) lit from the left (share 0) to the right (share 1): learnable in seconds."""
    across = torch.linspace(-1, 1, 32)
    light = (2 * shares - 1)[:, None] * across
    noise = torch.randn(len(shares), 3, 32, 32) * 0.3
    return ((light[:, None, None, :] * 0.6 + noise).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


@pytest.fixture(scope="module")
def trained():
    """A GoogLeNet trained for a few steps: its probabilities mean something, and some lie between 0 and 1."""
    torch.manual_seed(0)
    net = build_googlenet(2, auxiliary=False).train()
    optimizer = torch.optim.Adam(net.parameters(), 3e-4)
    torch.set_num_threads(1)  # threads would wait for each other on few cores
    for _ in range(12):
        labels = torch.randint(0, 2, (24,))
        logits = net(to_input(lit_from(labels.float() * 0.6 + 0.2), 32))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average over the next batches: 12 steps are too few for a moving one
    with torch.no_grad():
        for _ in range(4):
            net(to_input(lit_from(torch.rand(64)), 32))
    return Classifier(net, ("left", "right"), 32, {})


@pytest.mark.parametrize("bf16", [False, True])
def test_folding_layout_and_precision_move_no_probability_by_a_hundredth(trained, bf16):
    torch.manual_seed(1)
    images = lit_from(torch.linspace(0, 1, 64))
    plain = trained.probabilities(images)
    fast = fast_classifier(trained, CPU, bf16=bf16).probabilities(images)
    assert plain.std() > 0.1  # it tells the images apart
    assert ((plain > 0.2) & (plain < 0.8)).any()  # and is not always certain
    # Emulated bfloat16 is never served; where it is native, a replica rejects it if it is too coarse.
    assert (fast - plain).abs().max() < (0.03 if bf16 else 0.01)
    assert torch.equal(trained.probabilities(images), plain)  # the original is unchanged


def test_a_folded_generator_draws_the_same_images():
    generator = make_generator()
    latents = torch.randn(16, 8)
    fast = fast_network(generator, [latents], CPU)
    with torch.no_grad():
        assert (fast(latents) - generator(latents)).abs().max() < 1e-4
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    with pytest.raises(ValueError, match="evaluation mode"):
        fast_network(make_generator().train(), [latents], CPU)


def test_the_shift_between_two_forms_of_a_classifier_is_measured(trained):
    assert probability_shift(trained, trained, CPU) == 0
    moved = copy.deepcopy(trained)
    moved.net.fc.bias[0] += 0.02
    # A logit that moves by d moves p by at most d / 4, at p = 1/2, which the blends come close to.
    assert 0.004 < probability_shift(trained, moved, CPU) < 0.0051
    # Saturated everywhere except between the blobs: only the blends can tell.
    steep = copy.deepcopy(trained)
    steep.net.fc.weight *= 20
    steep.net.fc.bias *= 20
    rounded = copy.deepcopy(steep)
    for parameter in rounded.net.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    assert probability_shift(steep, rounded, CPU) > MAX_BF16_SHIFT
    sure = copy.deepcopy(trained)
    sure.net.fc.bias[0] += 100
    assert probability_shift(sure, sure, CPU) == 1


async def test_a_replica_that_has_reserved_no_gpu_leaves_it_alone(models, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    async def fetch(model):
        return models[model]

    replica = Replica(ServeSettings(storage="x", tracking_uri=None, threads=1), fetch)
    drawn, _ = await replica.draw(CAT, SampleRequest("cat", (7,)))
    assert drawn.images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("shift", "native", "invariant", "coarse", "padded"),
    [
        (0.02, True, False, False, False),
        (0.001, True, False, True, True),
        (0.001, True, True, True, False),
        (0, False, False, False, False),
    ],
)
async def test_bfloat16_is_used_if_it_is_native_and_exact_enough(
    models, tmp_path, monkeypatch, shift, native, invariant, coarse, padded
):
    """And batches are padded to one shape if its rows depend on the rest of their batch."""
    monkeypatch.setattr("raygan.serve.replicas.computes_bf16", lambda device: native)
    monkeypatch.setattr("raygan.serve.replicas.probability_shift", lambda *_: shift)
    monkeypatch.setattr("raygan.serve.replicas.is_batch_invariant", lambda *_: invariant)
    made = []

    def executor(compute, threads, **options):
        made.append((compute, options))
        return SimpleNamespace(**options)

    monkeypatch.setattr("raygan.serve.replicas.Executor", executor)

    async def fetch(model):
        return models[model]

    await Replica(ServeSettings(storage="x", tracking_uri=None, threads=1), fetch).prepare(CLASSIFIER)
    compute, options = made[0]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    original = load_classifier(write_files(models[CLASSIFIER], tmp_path))
    exact = fast_classifier(original, CPU, bf16=False).probabilities(images)
    assert options["padded"] == padded
    assert torch.equal(compute(images), exact) == (not coarse)


def test_truncation_and_walks_are_points_in_latent_space():
    plain = latents_for(SampleRequest("", (3, 4)), 8)
    assert torch.equal(plain[1], latents_for(SampleRequest("", (4,)), 8)[0])
    assert torch.allclose(latents_for(SampleRequest("", (3, 4), 0.5), 8), plain / 2)
    walk = latents_for(SampleRequest("", (3, 3, 3), 1.0, (4, 4, 4), (0.0, 0.5, 1.0)), 8)
    assert torch.allclose(walk[[0, 2]], plain, atol=1e-5)


async def test_a_conditional_generator_serves_each_of_its_labels(models, tmp_path):
    generator = make_generator(labels=("cat", "dog"))
    both = ModelVersion("raygan-generator-all", "1")
    champions = Champions({"cat": both, "dog": both, "bird": both}, None)
    local = await local_service({**models, both: save(tmp_path, generator)}, champions)
    cat, dog = [await local.service.sample(label, 2, 5) for label in ("cat", "dog")]
    assert list(local.service.champions.generators) == ["cat", "dog"]  # it draws no bird, whatever the registry says
    assert not local.service.is_loading()
    with torch.no_grad():
        expected = to_uint8(generator(latents_of((5, 6), NETWORKS.z_dim), torch.tensor([1, 1])))
    assert np.abs(dog.images.astype(int) - expected.permute(0, 2, 3, 1).numpy()).max() <= 1
    assert not np.array_equal(cat.images, dog.images)


async def test_a_replica_keeps_the_versions_last_used_and_fetches_others_again(tmp_path):
    versions = [ModelVersion(CAT.name, str(i)) for i in range(1, 5)]
    files = {version: save(tmp_path / version.version, make_generator(i)) for i, version in enumerate(versions)}
    fetched = []

    async def fetch(model):
        fetched.append(model)
        return files[model]

    replica = Replica(ServeSettings(storage="x", tracking_uri=None, threads=1, loaded_versions=2), fetch)
    for version in [*versions, *versions[2:]]:
        await replica.prepare(version)
    assert fetched == versions  # the last two were still there
    drawn, _ = await replica.draw(versions[0], SampleRequest("cat", (1,)))
    assert (drawn.images.shape, drawn.predictions) == ((1, 32, 32, 3), None)
    assert fetched == [*versions, versions[0]]
    with pytest.raises(NotLoaded):
        await replica.draw(ModelVersion(CAT.name, "99"), SampleRequest("cat", (1,)))
    files[versions[1]] = {}
    with pytest.raises(RayganError):
        await replica.prepare(versions[1])


async def test_versions_last_used_long_ago_make_room_for_others_if_memory_is_short(models, monkeypatch):
    fetched, finished, free = [], [], [10**9]
    monkeypatch.setattr("raygan.serve.replicas.free_memory", lambda: free[0])

    async def fetch(model):
        fetched.append(model)
        return models[model]

    async def finish(model, tried):
        finished.append((model, tried))

    replica = Replica(ServeSettings(storage="x", tracking_uri=None, threads=1), fetch, finish)
    await replica.prepare(DOG)
    await replica.prepare(CAT)
    needed = 6 * sum(map(len, models[CLASSIFIER].values()))
    free[0] = needed // 2  # more than cat and dog would free
    with pytest.raises(RayganError, match="MB are free"):
        await replica.prepare(CLASSIFIER)
    for model in (DOG, CAT):
        await replica.prepare(model)
    assert fetched == [DOG, CAT, CLASSIFIER]  # they stayed
    assert finished[2:] == [(CLASSIFIER, False)]  # it isn't the version's fault
    free[0] = needed - 1
    await replica.prepare(CLASSIFIER)
    await replica.prepare(CAT)
    free[0] = needed
    await replica.prepare(DOG)
    assert fetched[3:] == [CLASSIFIER, DOG]  # only the one that was used last before the others went


async def test_a_judge_sees_the_images_that_are_answered(models):
    async def fetch(model):
        return models[model]

    replica = Replica(ServeSettings(storage="x", tracking_uri=None, threads=1), fetch)
    drawn, _ = await replica.draw(CAT, SampleRequest("cat", (1, 2, 3), judge=CLASSIFIER))
    predictions, _ = await replica.classify(CLASSIFIER, ClassifyRequest(drawn.images))
    assert predictions.probabilities.std() > 0.01  # it tells the images apart
    assert abs(drawn.predictions.probabilities - predictions.probabilities).max() < 1e-3


async def test_a_version_that_fails_its_rehearsal_is_not_loaded_and_costs_the_others_nothing(tmp_path):
    files = {CAT: save(tmp_path / "cat", make_generator(0)), DOG: save(tmp_path / "dog", make_generator(1))}
    finished = []

    async def fetch(model):
        return files[model]

    async def finish(model, tried):
        finished.append((model, tried))

    settings = ServeSettings(storage="unused", tracking_uri=None, threads=1)
    replica = Replica(settings, fetch, finish)
    await replica.prepare(CAT)
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    replica.rehearse = lambda files, settings: rehearse(files, settings, suicide)
    with pytest.raises(RayganError, match="ended by SIGKILL"):
        await replica.prepare(DOG)
    assert finished == [(CAT, True)]  # so the model store hands the other out a few times more, then never
    drawn, _ = await replica.draw(CAT, SampleRequest("cat", (7,)))
    assert drawn.images.shape == (1, 32, 32, 3)


async def test_the_files_of_a_version_that_can_not_be_loaded_do_not_stay():
    class Watched(dict):
        """Files that can be watched."""

    watched = []

    async def fetch(model):
        files = Watched({"generator.json": b"{"})
        watched.append(weakref.ref(files))
        return files

    def refuse(files, settings):
        raise RayganError("damaged")

    gc.disable()  # what only the collector would find can be megabytes for hours
    try:
        for refusing in (refuse, None):
            replica = Replica(ServeSettings(), fetch)
            replica.rehearse = refusing
            with pytest.raises(RayganError):
                await replica.prepare(CAT)
            wait_until(lambda: watched[-1]() is None, "the files are gone", 30)
    finally:
        gc.enable()


async def test_what_a_rehearsal_has_found_out_is_not_tried_again(models, monkeypatch):
    def try_again(*_):
        raise AssertionError("tried again")

    async def fetch(model):
        return models[model]

    monkeypatch.setattr("raygan.serve.replicas.is_batch_invariant", try_again)
    replica = Replica(ServeSettings(storage="x", tracking_uri=None, threads=1), fetch)
    for found, model in ((True, CAT), (False, DOG)):
        replica.rehearse = lambda files, settings, found=found: found
        assert (await replica.prepare(model))["padded"] == found


def test_a_rehearsal_loads_what_a_replica_would_and_says_why_it_can_not(tmp_path):
    settings = ServeSettings(storage="unused", tracking_uri=None, threads=1)
    files = save(tmp_path / "cat", make_generator(0))
    assert isinstance(rehearse(files, settings), bool)
    with pytest.raises(RayganError, match="no such thing"):
        rehearse(files, settings, [sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_a_rehearsals_command_line_holds_no_setting(tmp_path):
    """Everybody on the machine can read it, and a database's address may hold a password."""
    settings = ServeSettings(storage="unused", tracking_uri="postgresql://user:s3cret@host/db", threads=1)
    code = "import json, sys; sys.stdin.read(); print(json.dumps({'padded': 's3cret' in str(sys.argv[1:])}))"
    assert not rehearse(save(tmp_path / "cat", make_generator(0)), settings, [sys.executable, "-c", code])
