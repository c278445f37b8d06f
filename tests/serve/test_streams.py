"""Streams over HTTP: a line per image, how many at once, and how they end."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from raygan.serve.api import create_app
from raygan.serve.calls import NotLoaded
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.settings import ServeSettings
from tests.serve.local import CAT, CLASSIFIER, local_service, make_generator, save


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=240)


class Watched:
    """A generator's stage that calls `before` with the number of the request, and then answers."""

    def __init__(self, stage, before):
        self.prepare, self._stage, self._before, self.count = stage.prepare, stage, before, 0

    async def run(self, model, request):
        self.count += 1
        await self._before(self.count)
        return await self._stage.run(model, request)


def lines_of(answer):
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_no_more_streams_than_the_limit_are_drawn_however_close_they_come(models, monkeypatch):
    monkeypatch.setattr("raygan.serve.draw._MAX_STREAMS", 2)
    local = await local_service(models, Champions({"cat": CAT}, None))
    go_on = asyncio.Event()

    async def wait(_):
        await go_on.wait()

    local.service.generator = Watched(local.generator, wait)
    async with client_of(local.app) as client:
        asked = [asyncio.ensure_future(client.get("/v1/stream?label=cat&n=20&seed=0")) for _ in range(5)]
        while sum(task.done() for task in asked) < 3:
            await asyncio.sleep(0.01)
        go_on.set()
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503]
        for answer in answers:
            if answer.status_code == 503:
                assert (answer.json()["status"], answer.headers["Retry-After"]) == (503, "10")
            else:
                assert [line["seed"] for line in lines_of(answer)] == list(range(20))
        assert (await client.get("/v1/stream?label=bird")).status_code == 404
        for _ in range(3):  # neither answers nor problems keep a place
            assert (await client.get("/v1/stream?label=cat&n=1")).status_code == 200


async def test_a_stream_that_can_not_go_on_ends_with_a_problem(models):
    local = await local_service(models, Champions({"cat": CAT}, None))

    async def fail(count):
        if count == 2:
            raise NotLoaded("no memory")

    local.service.generator = Watched(local.generator, fail)
    async with client_of(local.app) as client:
        answer = await client.get("/v1/stream?label=cat&n=40", headers={"X-Request-ID": "mine"})
    *images, problem = lines_of(answer)
    assert len(images) == 16
    assert (problem["status"], problem["request_id"]) == (503, "mine")


@pytest.mark.parametrize("pinned", [False, True])
async def test_a_stream_with_moves_goes_on_though_its_version_is_no_longer_in_force(
    models, tmp_path, pinned, monkeypatch
):
    monkeypatch.setattr("raygan.serve.pins._MAX_PINS", 1)
    second, third = (ModelVersion(CAT.name, version) for version in "23")
    files = {**models, second: save(tmp_path / "2", make_generator(9)), third: save(tmp_path / "3", make_generator(8))}
    local = await local_service(files, Champions({"cat": third if pinned else CAT}, None))

    async def roll_out(count):
        if count != 2:
            return
        if pinned:
            await local.service.version("cat", "2")
        else:
            for _ in range(2):  # the second finds that nobody wants the first version any more
                await local.service.refresh(Champions({"cat": second}, None))
        assert not local.service.directions(CAT)  # forgotten

    local.service.generator = Watched(local.generator, roll_out)
    async with client_of(local.app) as client:
        query = "label=cat&n=40&seed=0&moves=2,1" + ("&version=1" if pinned else "")
        answer = await client.get(f"/v1/stream?{query}")
    assert [line.get("seed") for line in lines_of(answer)] == list(range(40))


def test_a_stream_ends_when_its_client_goes(running, http):
    """The generator waits with its second part until the client has left."""
    left, drawn = asyncio.Event(), []

    async def wait(count):
        drawn.append(count)
        if count == 2:
            await left.wait()

    service, plain = running.local.service, running.local.generator
    service.generator = Watched(plain, wait)
    try:
        with http.stream("GET", "/v1/stream?label=cat&n=10000&seed=0") as answer:
            next(answer.iter_lines())

        async def go_on():
            await asyncio.sleep(0.5)  # for the server to hear of it
            left.set()
            await asyncio.sleep(1)
            return max(drawn)

        assert running.call(go_on()) < 10  # of 625
    finally:
        service.generator = plain


async def test_where_answers_are_buffered_a_stream_fits_what_may_wait_to_be_read(models):
    local = await local_service(models, Champions({"cat": CAT}, CLASSIFIER))
    settings = ServeSettings(storage="x", tracking_uri=None, max_sending_megabytes=32)
    async with client_of(create_app(local.service, settings, list, buffered=True)) as client:
        refused = await client.get("/v1/stream?label=cat&n=10000")
        assert (refused.status_code, refused.json()["field"]) == (422, "n")
        most = int(refused.json()["detail"].split("at most ")[1].split()[0])
        answer = await client.get(f"/v1/stream?label=cat&n={min(most, 64)}")
        assert answer.status_code == 200
        longest = max(map(len, answer.content.splitlines(keepends=True)))
    assert longest * most * 8 <= 32e6  # eight streams at once
