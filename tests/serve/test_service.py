"""The service: versions in force, and samples with a minimum confidence."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from raygan.errors import RayganError
from raygan.serve.calls import Busy
from raygan.serve.messages import Champions, ClassifyRequest, Drawn, ModelVersion, Predictions
from raygan.serve.problems import Problem
from tests.serve.local import CAT, CLASSIFIER, DOG, local_service, make_generator, make_service, save


async def test_a_new_version_takes_over_and_a_broken_one_does_not(models, tmp_path):
    newer, broken = ModelVersion(CAT.name, "2"), ModelVersion(CAT.name, "3")
    files = {**models, newer: save(tmp_path / "newer", make_generator(9)), broken: {"generator.json": b"{"}}
    local = await local_service(files, Champions({"cat": CAT}, CLASSIFIER))
    before = await local.service.sample("cat", 2, 5)
    for version, expected in ((newer, "2"), (broken, "2"), (CAT, "1")):
        wanted = Champions({"cat": version}, CLASSIFIER)
        await local.service.refresh(wanted)
        samples = await local.service.sample("cat", 2, 5)
        assert samples.model.version == expected
        assert not local.service.not_served(wanted)  # an older version stands in for the broken one
        assert np.array_equal(samples.images, before.images) == (expected == "1")


async def test_a_broken_champion_without_a_stand_in_is_missing_and_takes_nothing_else_away(models):
    broken = ModelVersion(CAT.name, "3")
    wanted = Champions({"cat": broken, "dog": DOG}, None)
    local = await local_service({**models, broken: {"generator.json": b"{"}}, wanted)
    assert local.service.not_served(wanted) == [broken]
    assert not local.service.is_loading()  # it failed, and nobody needs to wait for it
    assert not local.service.serves_nothing()
    await local.service.sample("dog", 1, 5)
    with pytest.raises(Problem) as caught:
        await local.service.sample("cat", 1, 5)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
    await local.service.refresh(Champions({"cat": broken}, None))
    assert local.service.serves_nothing()


async def test_what_is_not_loaded_yet_is_503_and_what_the_registry_lacks_is_404_or_409():
    def statuses():
        found = []
        for ask in (
            lambda: service.champion("cat"),
            service.current_classifier,
            lambda: service.champion("bird"),
        ):
            with pytest.raises(Problem) as caught:
                ask()
            found.append(caught.value.status)
        return found

    service = make_service(Preparing(CAT), Preparing(CLASSIFIER))
    assert service.is_loading()
    assert statuses() == [503, 503, 503]  # the registry has not answered
    await service.refresh(Champions({"cat": CAT}, CLASSIFIER))
    assert statuses() == [503, 503, 404]
    await service.refresh(Champions({}, None))
    assert statuses() == [404, 409, 404]


class Preparing:
    """A stage whose versions load at once, fail to (broken), or load when the test lets them (slow)."""

    def __init__(self, *broken, slow=()):
        self.broken, self.slow, self.asked, self.gate = broken, slow, [], asyncio.Event()

    async def prepare(self, model):
        self.asked.append(model)
        if model in self.slow:
            await self.gate.wait()
        if model in self.broken:
            raise RayganError("damaged")
        return {"image_size": 32}


async def test_a_version_that_loads_slowly_delays_no_other_label(monkeypatch):
    monkeypatch.setattr("raygan.serve.versions.PREPARE_SECONDS", 0.2)
    generator = Preparing(slow=[CAT])
    service = make_service(generator, Preparing())
    wanted = Champions({"cat": CAT, "dog": DOG}, CLASSIFIER)
    refreshing = asyncio.ensure_future(service.refresh(wanted))
    await asyncio.sleep(0.05)
    assert service.champions == Champions({"dog": DOG}, CLASSIFIER)  # before the other's time is up
    await asyncio.wait_for(refreshing, 240)
    assert service.not_served(wanted) == [CAT]
    generator.gate.set()
    await asyncio.sleep(0.01)
    await service.refresh(wanted)
    assert service.champions.generators == {"cat": CAT, "dog": DOG}
    assert generator.asked.count(CAT) == 1  # the load went on and was not started again


async def test_a_load_that_fails_by_a_time_limit_of_its_own_is_tried_again(monkeypatch):
    class Late(Preparing):
        async def prepare(self, model):
            await super().prepare(model)
            if len(self.asked) == 1:
                raise TimeoutError("the artifact store")
            return {"image_size": 32}

    monkeypatch.setattr("raygan.serve.backoff._RETRY_SECONDS", 0.0)
    generator = Late()
    service = make_service(generator, Preparing())
    for _ in range(2):
        await service.refresh(Champions({"cat": CAT}, None))
    assert (service.champions.generators, len(generator.asked)) == ({"cat": CAT}, 2)


async def test_a_restarted_gateway_finds_the_stand_in_for_a_broken_champion():
    broken, broken_classifier = ModelVersion(CAT.name, "2"), ModelVersion(CLASSIFIER.name, "2")

    async def restarted(proven):
        service = make_service(Preparing(broken), Preparing(broken_classifier))
        await service.refresh(Champions({"cat": broken}, broken_classifier, proven=proven))
        return service.champions

    assert await restarted(None) == Champions()
    assert await restarted(Champions({"cat": CAT, "dog": DOG}, CLASSIFIER)) == Champions({"cat": CAT}, CLASSIFIER)


async def test_a_label_is_served_from_its_registration_until_it_loses_its_alias(models):
    local = await local_service(models, Champions({"cat": CAT}, CLASSIFIER))
    await local.service.refresh(Champions({"cat": CAT, "dog": DOG}, CLASSIFIER))
    assert (await local.service.sample("dog", 1, 5)).model == DOG
    await local.service.refresh(Champions({"dog": DOG}, None))
    assert local.service.champions == Champions({"dog": DOG}, None)
    assert list(local.service.described) == [DOG]


class Drawing:
    """A generator's stage: image i of a request is filled with the value i. classifier: the judge's stage."""

    def __init__(self, classifier):
        self.classifier = classifier

    async def run(self, model, request):
        images = np.stack([np.full((4, 4, 3), i, np.uint8) for i in range(len(request))])
        return Drawn(images, await self.classifier.run(request.judge, ClassifyRequest(images)))


def confident_service(classifier, **options):
    """A service of cats with this classifier's stage."""
    service = make_service(Drawing(classifier), classifier, **options)
    service.champions = Champions({"cat": CAT}, CLASSIFIER)
    service.described[CLASSIFIER] = {"labels": ["cat", "dog"]}
    return service


class Rounding:
    """A classifier's stage that gives other probabilities to images that are alone, and notes which those are."""

    def __init__(self, together, alone):
        self.together, self.alone, self.asked_alone = together, alone, []

    async def run(self, model, request):
        if not request.alone:
            return Predictions(("cat",), np.array(self.together, np.float64)[:, None])
        self.asked_alone += request.images[:, 0, 0, 0].tolist()
        return Predictions(("cat",), np.full((len(request), 1), self.alone, np.float64))


async def test_an_image_that_rounding_could_accept_is_classified_again_alone():
    classifier = Rounding([0.5 - 1e-7, 0.4], 0.5)
    samples = await confident_service(classifier, max_draws=1).sample("cat", 2, 7, min_confidence=0.5)
    assert samples.seeds == [7]
    assert classifier.asked_alone == [0]


@pytest.mark.parametrize("share", [0.9995, 0.99999])
async def test_a_clear_prediction_is_not_made_again(share):
    classifier = Rounding([share, 1 - 1e-8], 1.0)
    samples = await confident_service(classifier, max_draws=1).sample("cat", 2, 7, min_confidence=1.0)
    assert samples.seeds == [8]
    assert classifier.asked_alone == [1]


class Certain:
    """A classifier's stage that can't decide between 1 and almost 1, and counts its verdicts."""

    def __init__(self):
        self.verdicts = 0

    async def run(self, model, request):
        self.verdicts += len(request)
        await asyncio.sleep(0)
        return Predictions(("cat",), np.full((len(request), 1), 1 - 1e-7, np.float64))


async def test_a_search_is_bounded_before_it_begins():
    classifier = Certain()
    service = confident_service(classifier, max_draws=64)
    with pytest.raises(Problem, match="none of the 256 samples"):
        await service.sample("cat", 64, 7, min_confidence=1.0)
    assert classifier.verdicts == 2 * 256  # each once in a batch and once alone
    searches = [service.sample("cat", 64, 7, min_confidence=1.0) for _ in range(40)]
    ends = [type(end) for end in await asyncio.gather(*searches, return_exceptions=True)]
    assert (ends.count(Problem), ends.count(Busy)) == (16, 24)
    with pytest.raises(Problem):  # nothing stays reserved
        await service.sample("cat", 64, 7, min_confidence=1.0)


class Slow:
    """A classifier's stage that answers its first calls at once, and no others in time. cats: images of cats."""

    def __init__(self, quick_calls, cats):
        self.quick_calls, self.cats = quick_calls, cats

    async def run(self, model, request):
        self.quick_calls -= 1
        if self.quick_calls < 0:
            await asyncio.sleep(10)
        shares = [[i in self.cats, i not in self.cats] for i in range(len(request))]
        return Predictions(("cat", "dog"), np.array(shares, np.float32))


async def test_samples_found_in_time_are_answered():
    service = confident_service(Slow(1, {5}), max_draws=16, seconds=1.0)
    found = await service.sample("cat", 8, 40, min_confidence=0.9)
    assert (found.seeds, found.drawn, found.accepted) == ([45], 8, 1)


@pytest.mark.parametrize("quick_calls", [0, 1])
async def test_without_a_sample_in_time_clients_are_told_to_try_again(quick_calls):
    """Neither a round without a cat nor none says what further rounds would have found."""
    service = confident_service(Slow(quick_calls, set()), max_draws=16, seconds=0.3)
    with pytest.raises(Problem, match="in time") as caught:
        await service.sample("cat", 8, 40, min_confidence=0.9)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "2")
