"""The parts behind the routes, each alone: lanes, stages, the guard, folding, encoding, latents, versions."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import io
import json
import threading
from collections import Counter
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from raygan.errors import ConfigurationError, RayganError
from raygan.models.fuse import fast_classifier, fast_network
from raygan.models.gan import to_uint8
from raygan.models.googlenet import Classifier, build_googlenet, to_input
from raygan.models.latents import latents_of
from raygan.serve import encode
from raygan.serve.api import _in_header
from raygan.serve.auth import check_token
from raygan.serve.batching import Busy, Died, Stage
from raygan.serve.executor import Lanes, steady
from raygan.serve.gateway import generator_deployment
from raygan.serve.messages import Champions, Draws, ModelVersion
from raygan.serve.metrics import NoMeters
from raygan.serve.middleware import SECURITY_HEADERS, Guard
from raygan.serve.model_store import Registry
from raygan.serve.replicas import _BF16_SHIFT, ClassifierReplica, _shift, points_of
from raygan.serve.service import Service
from raygan.serve.settings import ServeSettings
from tests.serve.local import CAT, DOG, JUDGE, NETWORKS, local_service, make_generator, save

CPU = torch.device("cpu")


# ---------------------------------------------------------------- networks


def lit_from(shares):
    """Noisy images (n, 3, 32, 32) lit from the left (share 0) to the right (1): something to learn in seconds."""
    across = torch.linspace(-1, 1, 32)
    light = (2 * shares - 1)[:, None] * across
    noise = torch.randn(len(shares), 3, 32, 32) * 0.3
    return ((light[:, None, None, :] * 0.6 + noise).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


@pytest.fixture(scope="module")
def trained():
    """A GoogLeNet that was trained for a few steps: its probabilities mean something and lie between 0 and 1 too."""
    torch.manual_seed(0)
    net = build_googlenet(2, auxiliary=False).train()
    optimizer = torch.optim.Adam(net.parameters(), 3e-4)
    torch.set_num_threads(1)  # several threads wait for each other where cores are scarce
    for _ in range(12):
        labels = torch.randint(0, 2, (24,))
        logits = net(to_input(lit_from(labels.float() * 0.6 + 0.2), 32))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average over the next batches, since 12 steps are few for a moving one
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
    assert plain.std() > 0.1  # it tells them apart
    assert ((plain > 0.2) & (plain < 0.8)).any()  # and isn't always sure
    # Emulated bfloat16 is never served with; where it is native, a replica that finds it too coarse doesn't either.
    assert (fast - plain).abs().max() < (0.03 if bf16 else 0.01)
    assert torch.equal(trained.probabilities(images), plain)  # the one given is as it was


def test_a_folded_generator_draws_the_same_images():
    generator = make_generator()
    latents = torch.randn(16, 8)
    fast = fast_network(generator, [latents], CPU)
    with torch.no_grad():
        assert (fast(latents) - generator(latents)).abs().max() < 1e-4
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    with pytest.raises(ValueError, match="evaluation mode"):
        fast_network(make_generator().train(), [latents], CPU)


def test_the_shift_between_two_forms_of_a_classifier_is_what_it_is(trained):
    assert _shift(trained, trained, CPU) == 0
    moved = copy.deepcopy(trained)
    moved.net.fc.bias[0] += 0.02
    # A logit that moves by d moves p by at most d / 4, where p is a half, which the blends come close to.
    assert 0.004 < _shift(trained, moved, CPU) < 0.0051
    # Saturated everywhere but between the blobs: only the blends can tell.
    steep = copy.deepcopy(trained)
    steep.net.fc.weight *= 20
    steep.net.fc.bias *= 20
    rounded = copy.deepcopy(steep)
    for parameter in rounded.net.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    assert _shift(steep, rounded, CPU) > _BF16_SHIFT
    sure = copy.deepcopy(trained)
    sure.net.fc.bias[0] += 100
    assert _shift(sure, sure, CPU) == 1


@pytest.mark.parametrize(
    ("shift", "native", "even", "coarse", "one_shape"),
    [
        (0.02, True, False, False, False),
        (0.001, True, False, True, True),
        (0.001, True, True, True, False),
        (0, False, False, False, False),
    ],
)
def test_bfloat16_is_taken_where_it_is_native_and_exact_enough(
    models, monkeypatch, shift, native, even, coarse, one_shape
):
    """And batches have one shape where rows of a network in it depend on their company."""
    monkeypatch.setattr("raygan.serve.replicas.computes_bf16", lambda device: native)
    monkeypatch.setattr("raygan.serve.replicas._shift", lambda *_: shift)
    monkeypatch.setattr("raygan.serve.replicas.steady", lambda *_: even)
    replica = ClassifierReplica(ServeSettings(storage="x", tracking_uri=None, threads=1), None)
    made = []
    monkeypatch.setattr(replica, "_lanes", lambda compute, *, padded: made.append((compute, padded)))
    loaded = replica._load_files(models[JUDGE])
    compute, padded = made[0]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    exact = fast_classifier(loaded.model, CPU, bf16=False).probabilities(images)
    assert padded == one_shape
    assert torch.equal(compute(images), exact) == (not coarse)


# ---------------------------------------------------------------- lanes


@pytest.mark.parametrize("padded", [False, True])
async def test_lanes_answer_each_call_with_its_own_rows(padded):
    sizes = []

    def compute(rows, others):
        sizes.append(len(rows))
        return rows * 2 + others

    lanes = Lanes(compute, threads=2, batch=8, padded=padded)
    inputs = [(torch.rand(n, 3), torch.rand(n, 3)) for n in (1, 20, 3, 8, 2)]
    answers = await asyncio.gather(*(lanes.run(*pair) for pair in inputs))
    for (rows, others), answer in zip(inputs, answers, strict=True):
        assert torch.equal(answer, rows * 2 + others)
    assert max(sizes) <= 8
    if padded:
        assert set(sizes) == {8}
    lanes.close()


async def test_lanes_share_what_comes_together_and_each_takes_half_of_what_has_waited():
    sizes, gate = [], threading.Event()

    def compute(rows):
        sizes.append(len(rows))
        gate.wait(10)
        return rows

    lanes = Lanes(compute, threads=2, batch=16, padded=False)

    async def begun(*calls):
        sizes.clear()
        asked = [asyncio.ensure_future(lanes.run(torch.rand(n, 1))) for n in calls]
        await asyncio.sleep(0.05)
        return asked

    first = await begun(*[1] * 12)  # twelve requests of one message
    assert sizes == [6, 6]
    second = await begun(10)
    assert sizes == []
    gate.set()
    await asyncio.gather(*first, *second)
    assert sizes == [10]  # what has waited isn't cut: the other lane has the next message
    for calls, expected in (([5], [4, 1]), ([16], [8, 8]), ([1, 1, 1], [3])):
        await asyncio.gather(*await begun(*calls))
        assert sizes == expected
    lanes.close()


async def test_rows_of_different_shapes_and_rows_that_want_to_be_alone_are_not_joined():
    seen = []

    def compute(rows):
        seen.append(tuple(rows.shape))
        return rows.flatten(1).sum(1)

    lanes = Lanes(compute, threads=1, batch=8, padded=False)
    await asyncio.gather(
        lanes.run(torch.rand(1, 2)), lanes.run(torch.rand(1, 2)), lanes.run(torch.rand(1, 2)),
        lanes.run(torch.rand(1, 3)), lanes.run(torch.rand(1, 2), alone=True), lanes.run(torch.rand(1, 2)),
    )  # fmt: skip
    assert seen == [(3, 2), (1, 3), (1, 2), (1, 2)]
    lanes.close()


async def test_an_error_in_a_lane_reaches_its_calls_and_no_others():
    def compute(rows):
        if (rows < 0).any():
            raise ValueError("negative")
        return rows

    lanes = Lanes(compute, threads=1, batch=1, padded=False)
    good, bad, after = await asyncio.gather(
        lanes.run(torch.ones(1, 1)), lanes.run(-torch.ones(1, 1)), lanes.run(torch.ones(1, 1)), return_exceptions=True
    )
    assert torch.equal(good, after)
    assert isinstance(bad, ValueError)
    lanes.close()


async def test_lanes_finish_what_was_asked_of_them_and_leave_out_what_nobody_waits_for():
    seen, go_on = [], threading.Event()

    def compute(rows):
        go_on.wait(5)
        seen.append(int(rows[0, 0]))
        return rows

    lanes = Lanes(compute, threads=1, batch=1, padded=False)
    asked = [asyncio.ensure_future(lanes.run(torch.full((1, 1), float(i)))) for i in range(4)]
    await asyncio.sleep(0.01)
    asked[2].cancel()
    await asyncio.sleep(0.01)
    lanes.close()
    go_on.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [int(answer[0, 0]) for i, answer in enumerate(answers) if i != 2] == [0, 1, 3]
    assert seen == [0, 1, 3]
    with pytest.raises(RuntimeError):  # the threads have ended
        await lanes.run(torch.ones(1, 1))


def test_steadiness_is_found_by_trying():
    rows = torch.rand(16, 4)
    assert steady(lambda x: x * 2, [rows], 16)
    assert not steady(lambda x: x - x.mean(0), [rows], 16)


# ---------------------------------------------------------------- what is drawn


def test_truncation_and_walks_are_places_in_latent_space():
    plain = points_of(Draws("", (3, 4)), 8)
    assert torch.equal(plain[1], points_of(Draws("", (4,)), 8)[0])
    assert torch.allclose(points_of(Draws("", (3, 4), 0.5), 8), plain / 2)
    walk = points_of(Draws("", (3, 3, 3), 1.0, (4, 4, 4), (0.0, 0.5, 1.0)), 8)
    assert torch.allclose(walk[[0, 2]], plain, atol=1e-5)


async def test_a_conditional_generator_serves_each_of_its_labels(models, tmp_path):
    generator = make_generator(labels=("cat", "dog"))
    both = ModelVersion("raygan-generator-all", "1")
    champions = Champions({"cat": both, "dog": both, "bird": both}, None)
    local = await local_service({**models, both: save(tmp_path, generator)}, champions)
    cat, dog = [await local.service.sample(label, 2, 5) for label in ("cat", "dog")]
    assert list(local.service.champions.generators) == ["cat", "dog"]  # it draws no bird, whatever the registry says
    with torch.no_grad():
        expected = to_uint8(generator(latents_of((5, 6), NETWORKS.z_dim), torch.tensor([1, 1])))
    assert np.abs(dog.images.astype(int) - expected.permute(0, 2, 3, 1).numpy()).max() <= 1
    assert not np.array_equal(cat.images, dog.images)


# ---------------------------------------------------------------- stages


class Answering:
    """A caller that answers numbers with themselves, after what a test asks of it."""

    def __init__(self, *, deaths=0, poison=None):
        self.deaths, self.poison, self.calls, self.gate = deaths, poison, [], asyncio.Event()
        self.gate.set()

    async def prepare(self, model):
        return {}

    async def call(self, model, items):
        self.calls.append((model, list(items)))
        await self.gate.wait()
        if self.deaths:
            self.deaths -= 1
            raise Died("killed")
        if self.poison in items:
            raise ValueError("poison")
        return [item * 10 for item in items], 0.0


def stage(caller, **limits):
    return Stage(
        "test", caller, lambda item: 1, NoMeters(), **{"batch": 1, "most": 8, "limit": 100, "seconds": 30.0, **limits}
    )


async def test_what_waits_goes_in_one_call():
    caller = Answering()
    caller.gate.clear()
    queue = stage(caller, batch=3)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(12)]
    await asyncio.sleep(0.01)
    # A second call is under way for one replica as soon as a batch is waiting.
    assert [items for _, items in caller.calls] == [[0], [1, 2, 3]]
    caller.gate.set()
    assert await asyncio.gather(*asked) == [10 * i for i in range(12)]
    assert [len(items) for _, items in caller.calls] == [1, 3, 8]


async def test_versions_are_not_mixed_in_a_call():
    caller = Answering()
    caller.gate.clear()
    queue = stage(caller)
    newer = ModelVersion(CAT.name, "2")
    asked = [asyncio.ensure_future(queue.run(model, 1)) for model in (CAT, CAT, CAT, CAT, newer, newer)]
    await asyncio.sleep(0.01)
    caller.gate.set()
    await asyncio.gather(*asked)
    assert [(model.version, len(items)) for model, items in caller.calls] == [("1", 1), ("1", 1), ("1", 2), ("2", 2)]


async def test_a_call_whose_replica_died_is_made_again():
    caller = Answering(deaths=3)
    assert await stage(caller).run(CAT, 4) == 40
    assert len(caller.calls) == 4


async def test_a_call_that_hangs_is_given_up():
    caller = Answering()
    caller.gate.clear()
    with pytest.raises(Died):
        await stage(caller, seconds=0.05).run(CAT, 4)
    assert len(caller.calls) == 1


async def test_a_request_that_is_given_up_leaves_its_neighbours_their_call():
    """Serve knows by the context which request a call belongs to."""
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")
    seen = []

    class Looking(Answering):
        async def call(self, model, items):
            seen.append(whose.get())
            return await super().call(model, items)

    whose.set("a request's")
    assert await stage(Looking()).run(CAT, 1) == 10
    assert seen == ["nobody's"]


async def test_one_request_cannot_spoil_its_neighbours():
    caller = Answering(poison=5)
    caller.gate.clear()
    queue = stage(caller)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(8)]
    await asyncio.sleep(0.01)
    caller.gate.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answer for i, answer in enumerate(answers) if i != 5] == [0, 10, 20, 30, 40, 60, 70]
    assert isinstance(answers[5], ValueError)


async def test_a_full_queue_is_said_and_requests_that_were_given_up_are_not_computed():
    caller = Answering()
    caller.gate.clear()
    queue = stage(caller, limit=3)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(5)]
    await asyncio.sleep(0.01)
    with pytest.raises(Busy):
        await queue.run(CAT, 9)
    for task in asked[3:]:
        task.cancel()
    await asyncio.sleep(0.01)
    caller.gate.set()
    await asyncio.gather(*asked[:3])
    assert sorted(i for _, items in caller.calls for i in items) == [0, 1, 2]


class Recording:
    """Meters that a test can look at."""

    def __init__(self):
        self.counts, self.values = Counter(), {}

    def count(self, name, amount=1, **tags):
        self.counts[(name, *tags.values())] += amount

    def observe(self, name, value, **tags):
        self.values.setdefault((name, *tags.values()), []).append(value)


async def test_the_queue_is_told_as_it_is_and_what_was_given_up_does_not_count():
    caller, meters = Answering(), Recording()
    caller.gate.clear()
    queue = Stage("test", caller, lambda item: 1, meters, batch=1, most=8, limit=3, seconds=30.0)
    asked = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(5)]
    await asyncio.sleep(0.01)
    assert meters.values["waiting_images", "test"][-1] == 3
    for task in asked[2:]:
        task.cancel()
    await asyncio.sleep(0.01)
    assert meters.values["waiting_images", "test"][-1] == 0
    again = [asyncio.ensure_future(queue.run(CAT, i)) for i in range(3)]  # there is room for them
    await asyncio.sleep(0.01)
    caller.gate.set()
    assert await asyncio.gather(*asked[:2], *again) == [0, 10, 0, 10, 20]
    assert meters.values["waiting_images", "test"][-1] == 0


# ---------------------------------------------------------------- the guard


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_token_is_asked_for_where_one_is_set(models):
    local = await local_service(models, Champions({"cat": CAT}, None), token="s3cret")  # noqa: S106
    async with client_of(local.app) as client:
        for given in (None, b"Bearer wrong", b"Basic s3cret", b"Bearer \xc3\xa9"):
            headers = {"Authorization": given} if given else {}
            answer = await client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer s3cret"})).status_code == 200
        assert [(await client.get(path)).status_code for path in ("/", "/healthz", "/readyz", "/pages/app.js")] == [
            200
        ] * 4


async def test_an_endless_body_is_too_large_whatever_the_route_makes_of_it(models):
    """FastAPI answers 400 to whatever happens while it reads JSON."""
    local = await local_service(models, Champions({"cat": CAT}, None), max_request_megabytes=0.01)

    async def body():
        for _ in range(100):
            yield b" " * 1000

    async with client_of(local.app) as client:
        answer = await client.post("/v1/sample", content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_names_in_any_script_fit_headers_and_deployments():
    names = [f"raygan-generator-{label}" for label in ("cat", "猫", "狗", "c\u00e4t")]
    assert [_in_header(name).isascii() for name in names] == [True] * 4
    deployments = [generator_deployment(name) for name in names]
    assert deployments[0] == "generator-cat"
    assert len(set(deployments)) == 4


def test_the_world_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("RAYGAN_TOKEN", raising=False)
    settings = ServeSettings(storage="x", tracking_uri=None)
    for host in ("127.0.0.1", "localhost", "::1"):
        check_token(settings, host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104
        with pytest.raises(ConfigurationError, match="give a token"):
            check_token(settings, host)
    check_token(settings.model_copy(update={"public": True}), "0.0.0.0")  # noqa: S104
    (tmp_path / "token").write_text("abc\n")
    check_token(settings.model_copy(update={"token_file": str(tmp_path / "token")}), "0.0.0.0")  # noqa: S104
    monkeypatch.setenv("RAYGAN_TOKEN", "abc")
    check_token(settings, "0.0.0.0")  # noqa: S104
    with pytest.raises(ConfigurationError, match="cannot read"):
        check_token(settings.model_copy(update={"token_file": str(tmp_path / "none")}), "127.0.0.1")


async def test_answers_bear_security_headers_an_id_and_a_line_in_the_log(models, capfd):
    local = await local_service(models, Champions({"cat": CAT}, None), access_log=True)
    async with client_of(local.app) as client:
        page = await client.get("/", headers={"X-Request-ID": "mine-1"})
        assert page.headers["X-Request-ID"] == "mine-1"
        assert SECURITY_HEADERS.items() <= dict(page.headers.multi_items()).items() | {
            (name, page.headers[name]) for name in SECURITY_HEADERS
        }
        assert "Access-Control-Allow-Origin" not in page.headers
        odd = await client.get("/v1/sample?label=cat&n=1", headers={"X-Request-ID": "a b\t<script>"})
        assert "<" not in odd.headers["X-Request-ID"]
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert (lines[0]["id"], lines[0]["path"], lines[0]["status"]) == ("mine-1", "/", 200)
    assert lines[1]["milliseconds"] > 0
    assert lines[0]["client"] == "127.0.0.1"


async def test_slow_full_and_broken_services_answer_without_internals():
    async def slow(scope, receive, send):
        await asyncio.sleep(5)

    async def full(scope, receive, send):
        raise Busy(7)

    async def broken(scope, receive, send):
        raise RuntimeError("/secret/path")

    for app, status, after in ((slow, 503, "2"), (full, 503, "7"), (broken, 500, None)):
        guard = Guard(app, NoMeters(), token=None, most_bytes=10, seconds=0.05, access_log=False)
        async with client_of(guard) as client:
            answer = await client.get("/")
        assert (answer.status_code, answer.headers.get("Retry-After")) == (status, after)
        assert "secret" not in answer.text


async def test_a_body_of_parameters_is_small_and_so_is_the_answer_to_one_that_is_wrong(models):
    local = await local_service(models, Champions({"cat": CAT}, None))
    async with client_of(local.app) as client:
        huge = await client.post("/v1/sample", json={f"key{i}": i for i in range(200_000)})
        assert (huge.status_code, len(huge.content) < 1000) == (413, True)
        wrong = await client.post("/v1/sample", json={f"{i}" * 200: i for i in range(50)})
        assert (wrong.status_code, len(wrong.json()["errors"])) == (422, 10)
        assert len(wrong.content) < 5000
        assert wrong.json()["detail"].endswith("; and 41 more")  # the label is missing too


async def test_requests_under_way_are_limited_but_not_those_of_operators(monkeypatch):
    monkeypatch.setattr("raygan.serve.middleware.MOST_REQUESTS", 2)
    go_on = asyncio.Event()

    async def waiting(scope, receive, send):
        if scope["path"] != "/healthz":
            await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    meters = Recording()
    guard = Guard(waiting, meters, token=None, most_bytes=10, seconds=5, access_log=False)
    async with client_of(guard) as client:
        asked = [asyncio.ensure_future(client.get("/v1/sample")) for _ in range(2)]
        await asyncio.sleep(0.05)
        third = await client.get("/v1/sample")
        assert (third.status_code, third.headers["Retry-After"]) == (503, "1")
        assert meters.counts["rejected", "gateway"] == 1
        assert (await client.get("/healthz")).status_code == 200
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]
        assert (await client.get("/v1/sample")).status_code == 200


@pytest.mark.parametrize(("has_proxies", "status", "says"), [(True, "499", []), (False, "503", [503])])
async def test_what_is_cancelled_was_left_behind_proxies_and_is_told_to_come_again_elsewhere(has_proxies, status, says):
    async def waiting(scope, receive, send):
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message.get("status"))

    meters, sent = Recording(), []
    options = {"token": None, "most_bytes": 10, "seconds": 5, "access_log": False, "has_proxies": has_proxies}
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    task = asyncio.ensure_future(Guard(waiting, meters, **options)(scope, None, send))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), sent[:1]) == (has_proxies, says)
    assert meters.counts["requests", "other", status] == 1


async def test_a_body_that_does_not_come_in_time_is_the_clients_doing(models):
    local = await local_service(models, Champions({"cat": CAT}, None), timeout_seconds=0.3)

    async def body():
        yield b'{"label":'
        await asyncio.sleep(2)

    async with client_of(local.app) as client:
        answer = await client.post("/v1/sample", content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 408


async def test_what_is_not_ready_is_told_to_those_who_may_know(models):
    local = await local_service(models, Champions({"cat": CAT}, None), token="s3cret")  # noqa: S106
    local.missing.append("raygan-generator-cat version 3")
    async with client_of(local.app) as client:
        asked = [await client.get("/readyz", headers=h) for h in ({}, {"Authorization": "Bearer s3cret"})]
    assert [answer.status_code for answer in asked] == [503, 503]
    assert ["cat version 3" in answer.text for answer in asked] == [False, True]


# ---------------------------------------------------------------- versions


async def test_a_new_version_is_taken_over_and_a_broken_one_is_not(models, tmp_path):
    newer, broken = ModelVersion(CAT.name, "2"), ModelVersion(CAT.name, "3")
    files = {**models, newer: save(tmp_path / "newer", make_generator(9)), broken: {"generator.json": b"{"}}
    local = await local_service(files, Champions({"cat": CAT}, JUDGE))
    before = await local.service.sample("cat", 2, 5)
    for version, expected in ((newer, "2"), (broken, "2"), (CAT, "1")):
        wanted = Champions({"cat": version}, JUDGE)
        await local.service.refresh(wanted)
        samples = await local.service.sample("cat", 2, 5)
        assert samples.model.version == expected
        assert not local.service.not_served(wanted)  # an older version stands in for the broken one
        assert np.array_equal(samples.images, before.images) == (expected == "1")


async def test_a_broken_champion_that_nothing_stands_in_for_is_missing(models):
    broken = ModelVersion(CAT.name, "3")
    wanted = Champions({"cat": broken}, None)
    local = await local_service({**models, broken: {"generator.json": b"{"}}, wanted)
    assert local.service.not_served(wanted) == [broken]


class Preparing:
    """A stage whose versions load when the test lets them, or never."""

    def __init__(self, *broken):
        self.broken, self.asked, self.gate = broken, [], asyncio.Event()
        self.gate.set()

    async def prepare(self, model):
        self.asked.append(model)
        await self.gate.wait()
        if model in self.broken:
            raise RayganError("damaged")
        return {"image_size": 32}


async def test_a_deployment_without_a_replica_keeps_no_other_label_waiting(monkeypatch):
    monkeypatch.setattr("raygan.serve.service._PREPARE_SECONDS", 0.2)
    cat, dog, judge = Preparing(), Preparing(), Preparing()
    cat.gate.clear()
    service = Service({CAT.name: cat, DOG.name: dog}, judge, NoMeters(), most_draws=1)
    wanted = Champions({"cat": CAT, "dog": DOG}, JUDGE)
    looking = asyncio.ensure_future(service.refresh(wanted))
    await asyncio.sleep(0.05)
    assert service.champions == Champions({"dog": DOG}, JUDGE)  # before the other's time is up
    await asyncio.wait_for(looking, 5)
    assert service.not_served(wanted) == [CAT]
    cat.gate.set()
    await asyncio.sleep(0.01)
    await service.refresh(wanted)
    assert service.champions.generators == {"cat": CAT, "dog": DOG}
    assert cat.asked == [CAT]  # the load went on and was not begun again


async def test_a_gateway_that_restarts_finds_what_stood_in_for_a_broken_champion():
    broken, broken_judge = ModelVersion(CAT.name, "2"), ModelVersion(JUDGE.name, "2")

    async def restarted(proven):
        stages = Preparing(broken), Preparing(broken_judge)
        service = Service({CAT.name: stages[0]}, stages[1], NoMeters(), most_draws=1)
        await service.refresh(Champions({"cat": broken}, broken_judge, proven=proven))
        return service.champions

    assert await restarted(None) == Champions()
    assert await restarted(Champions({"cat": CAT, "dog": DOG}, JUDGE)) == Champions({"cat": CAT}, JUDGE)


async def test_a_label_whose_alias_is_gone_is_served_no_more(models):
    local = await local_service(models, Champions({"cat": CAT, "dog": DOG}, JUDGE))
    await local.service.refresh(Champions({"dog": DOG}, None))
    assert local.service.champions == Champions({"dog": DOG}, None)
    assert list(local.service.described) == [DOG]


def test_the_registry_remembers_what_was_served(monkeypatch):
    answers = [Champions({"cat": CAT, "dog": DOG}, JUDGE)]
    registry = object.__new__(Registry)
    registry._last, registry._proven = None, Champions()
    monkeypatch.setattr(registry, "_ask", lambda: answers[-1])
    assert registry.champions().proven == Champions()
    registry.confirm(Champions({"cat": CAT}, JUDGE))
    registry.confirm(Champions({"dog": DOG}, None))  # of a gateway that came when the others couldn't be loaded
    assert registry.champions() == replace(answers[0], proven=answers[0])
    answers.append(Champions({"cat": ModelVersion(CAT.name, "2")}, None))
    assert registry.champions() == replace(answers[1], proven=Champions({"cat": CAT}, None))


async def test_a_replica_keeps_two_versions_and_fetches_others_again(models, tmp_path):
    versions = [ModelVersion(CAT.name, str(i)) for i in range(1, 5)]
    files = {version: save(tmp_path / version.version, make_generator(i)) for i, version in enumerate(versions)}
    local = await local_service(files, Champions({"cat": versions[0]}))
    replica = local.callers[CAT.name].replica
    for version in versions:
        await replica.prepare(version)
    assert list(replica._versions) == versions[2:]
    pixels, _ = await replica.sample(versions[0], [Draws("cat", (1,))])
    assert pixels.shape == (1, 32, 32, 3)
    with pytest.raises(KeyError):
        await replica.sample(ModelVersion(CAT.name, "99"), [Draws("cat", (1,))])
    files[versions[1]] = {}
    with pytest.raises(RayganError):
        await replica.prepare(versions[1])


# ---------------------------------------------------------------- encoding


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (7, 200)])
def test_our_png_is_what_pillow_reads(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    content = encode.png(picture)
    with Image.open(io.BytesIO(content)) as read:
        read.verify()
    with Image.open(io.BytesIO(content)) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(read), picture)
    assert encode.png(picture) == content
