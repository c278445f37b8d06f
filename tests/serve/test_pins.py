"""Versions that requests pin: found, loaded, kept and forgotten, whatever the champion is."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from raygan.errors import RayganError
from raygan.serve.calls import Busy
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.problems import Problem
from tests.serve.local import CAT, DOG, known, local_service, make_generator, make_service, save


class Loading:
    """A generator's stage that loads versions when the test lets it, and notes which."""

    def __init__(self):
        self.asked, self.gate = [], asyncio.Event()
        self.gate.set()

    async def prepare(self, model):
        self.asked.append(model.version)
        await self.gate.wait()
        return {"image_size": 32, "labels": ["cat"]}


def service_of(generator, exists=known):
    service = make_service(generator, generator, exists=exists)
    service.champions = Champions({"cat": ModelVersion("m", "1000")})
    return service


async def test_versions_least_recently_pinned_are_loaded_again():
    generator = Loading()
    service = service_of(generator)
    for version in [*range(1, 33), 1, 33, 1, 2]:  # the 33rd takes the place of the second
        await service.version("cat", str(version))
    assert generator.asked == [str(version) for version in [*range(1, 34), 2]]


async def test_few_versions_load_at_once_and_all_who_want_one_share_its_load():
    generator = Loading()
    service = service_of(generator)
    generator.gate.clear()
    asked = [asyncio.ensure_future(service.version("cat", version)) for version in ("1", "2", "1", "2")]
    while len(generator.asked) < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(Busy):
        await service.version("cat", "3")
    generator.gate.set()
    assert [model.version for model in await asyncio.gather(*asked)] == ["1", "2", "1", "2"]
    assert generator.asked == ["1", "2"]
    await service.version("cat", "3")


async def test_a_registry_that_does_not_answer_is_503_and_not_404():
    async def away(model):
        raise RayganError("MLflow does not answer")

    with pytest.raises(Problem) as caught:
        await service_of(Loading(), away).version("cat", "1")
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})


async def test_a_version_can_be_pinned_while_the_champion_is_broken(models):
    broken = ModelVersion(CAT.name, "3")
    local = await local_service({**models, broken: {"generator.json": b"{"}}, Champions({"cat": broken}, None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        statuses = [
            (await client.get(f"/v1/sample?label=cat&n=1{version}")).status_code
            for version in ("&version=1", "", "&version=3", "&version=4")
        ]
        assert statuses == [200, 503, 409, 404]
        assert (await client.get("/v1/sample?label=bird&version=1")).status_code == 404


async def test_a_version_that_is_another_labels_champion_is_not_drawn_for_this_one(models, tmp_path):
    cats, dogs = (ModelVersion("m", version) for version in "12")
    files = {
        cats: save(tmp_path / "1", make_generator(labels=("bird", "cat"))),
        dogs: save(tmp_path / "2", make_generator(labels=("bird", "dog"))),
    }
    local = await local_service(files, Champions({"cat": cats, "dog": dogs}, None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        answer = await client.get("/v1/sample?label=cat&version=2")
    assert (answer.status_code, answer.json()["field"]) == (404, "version")


@pytest.mark.parametrize(
    ("query", "head", "get"),
    [
        ("version=2", 200, 200),
        ("version=9", 404, 404),
        ("moves=1,1,1,1,1,1,1,1", 200, 200),
        ("moves=99", 422, 422),
        ("min_confidence=0.5", 409, 409),
    ],
)
async def test_head_and_revalidation_load_nothing_and_know_what_is_wrong(models, tmp_path, query, head, get):
    second = ModelVersion(CAT.name, "2")
    local = await local_service({**models, second: save(tmp_path, make_generator(9))}, Champions({"cat": CAT}, None))
    loaded, prepare = [], local.generator.prepare

    async def note(model):
        loaded.append(model)
        return await prepare(model)

    local.generator.prepare = note
    address = f"/v1/sample?label=cat&n=1&seed=5&{query}"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        short = await client.head(address)
        assert (short.status_code, short.content) == (head, b"")
        if "ETag" in short.headers:
            again = await client.get(address, headers={"If-None-Match": short.headers["ETag"]})
            assert again.status_code == 304
        assert loaded == []
        whole = await client.get(address)
        assert (whole.status_code, whole.headers.get("ETag")) == (get, short.headers.get("ETag"))


async def test_head_knows_that_a_generator_lacks_directions(models, monkeypatch):
    local = await local_service(models, Champions({"cat": CAT, "dog": DOG}, None))
    local.service.described[CAT]["directions"] = 1
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        for path in ("sample", "stream", "interpolate"):
            for ask in (client.head, client.get):
                assert (await ask(f"/v1/{path}?label=cat&moves=1,1")).status_code == 422
