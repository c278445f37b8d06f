"""The routes over HTTP: pixels, predictions, formats, mistakes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import zipfile

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from raygan.models.gan import to_uint8
from raygan.models.latents import seeded
from raygan.serve.api import create_app
from raygan.serve.messages import Champions, ModelVersion
from raygan.serve.settings import ServeSettings
from tests.serve.conftest import Running
from tests.serve.local import CAT, CLASSIFIER, NETWORKS, files_of, local_service, make_classifier, make_generator, save
from tests.serve.test_service import Slow, confident_service


def pixels(content):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


def likeness(first, second):
    """Correlation of two pictures' gray levels, from -1 to 1; lossy encodings keep most of it."""
    return np.corrcoef(*(np.asarray(picture, float).mean(-1).ravel() for picture in (first, second)))[0, 1]


def images(http, **query):
    answer = http.get("/v1/sample", params={"label": "cat", "format": "npz", **query})
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


# pixels


def test_samples_are_the_generators_own(http):
    found = images(http, n=4, seed=7)["images"].astype(int)
    latents = torch.cat([torch.randn(1, NETWORKS.z_dim, generator=seeded(7 + i, 0, "sample")) for i in range(4)])
    with torch.no_grad():
        expected = to_uint8(make_generator()(latents)).permute(0, 2, 3, 1).numpy()
    assert abs(found - expected).max() <= 1
    assert np.ptp(found) > 50


def test_a_seed_names_an_image_whatever_n_is(http):
    many = images(http, n=16, seed=100)["images"]
    for i in (0, 7, 15):
        assert np.array_equal(images(http, n=1, seed=100 + i)["images"][0], many[i])
    assert not np.array_equal(many[0], many[1])


def test_pixels_do_not_depend_on_simultaneous_requests(running):
    queries = [("cat", n, seed) for seed in range(0, 1000, 100) for n in (1, 3, 16)] + [("dog", 5, 9)] * 4

    def ask(client, query):
        label, n, seed = query
        return client.get("/v1/sample", params={"label": label, "n": n, "seed": seed, "format": "npz"}).content

    with httpx.Client(base_url=running.address, timeout=60) as client:
        alone = [ask(client, query) for query in queries]
    together = [b""] * len(queries)

    def work(start):
        with httpx.Client(base_url=running.address, timeout=60) as client:
            for i in range(start, len(queries), 16):
                together[i] = ask(client, queries[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        first, second = np.load(io.BytesIO(one)), np.load(io.BytesIO(other))
        assert np.array_equal(first["images"], second["images"])
        assert abs(first["probabilities"] - second["probabilities"]).max() < 1e-3


def test_truncation_brings_samples_closer_together(http):
    def spread(truncation):
        return images(http, n=16, seed=3, truncation=truncation)["images"].astype(float).std(0).mean()

    assert spread(0.2) < spread(1.0)
    assert np.array_equal(images(http, seed=3, truncation=1)["images"], images(http, seed=3)["images"])


def test_a_walk_goes_from_one_seed_to_the_other(http):
    for kind in ("webp", "gif"):
        query = {"label": "cat", "seed": 5, "to": 9, "frames": 8, "format": kind}
        answer = http.get("/v1/interpolate", params=query)
        assert answer.status_code == 200
        with Image.open(io.BytesIO(answer.content)) as film:
            assert film.n_frames == 8
            film.seek(0)
            first = np.asarray(film.convert("RGB"))
            film.seek(7)
            last = np.asarray(film.convert("RGB"))
        ends = [images(http, n=1, seed=seed)["images"][0] for seed in (5, 9)]
        assert likeness(first, ends[0]) > max(0.5, likeness(first, ends[1]))
        assert likeness(last, ends[1]) > max(0.5, likeness(last, ends[0]))
    film = http.get("/v1/interpolate", params={"label": "cat", "frames": 8, "bounce": True})
    with Image.open(io.BytesIO(film.content)) as picture:
        assert picture.n_frames == 14


# predictions


def test_confident_samples_are_those_among_the_drawn_that_reach_the_confidence(http):
    everything = images(http, n=64, seed=50)
    of_cat = everything["probabilities"][:, list(everything["labels"]).index("cat")]
    threshold = float(np.quantile(of_cat, 0.7))
    answer = http.get(
        "/v1/sample", params={"label": "cat", "n": 8, "seed": 50, "min_confidence": threshold, "format": "npz"}
    )
    expected = np.flatnonzero(of_cat >= threshold)[:8]
    chosen = np.load(io.BytesIO(answer.content))
    assert np.array_equal(chosen["seeds"], 50 + expected)
    assert np.array_equal(chosen["images"], everything["images"][expected])
    assert answer.headers["X-Raygan-Drawn"] == str(expected[-1] + 1)
    assert answer.headers["X-Raygan-Accepted"] == "8"


def test_a_high_confidence_gives_few_samples_or_a_problem(http):
    of_cat = np.concatenate([images(http, n=64, seed=seed)["probabilities"][:, 0] for seed in range(0, 256, 64)])
    top = np.sort(of_cat)[-2:].mean()
    few = http.get("/v1/sample", params={"label": "cat", "n": 16, "seed": 0, "min_confidence": top})
    assert few.status_code == 200
    assert (few.headers["X-Raygan-Drawn"], few.headers["X-Raygan-Accepted"]) == ("256", "1")
    none = http.get("/v1/sample", params={"label": "cat", "n": 1, "seed": 0, "min_confidence": 1})
    assert none.status_code == 422
    problem = none.json()
    assert problem["field"] == "min_confidence"
    assert (problem["drawn"], problem["accepted"]) == (16, 0)


def test_uploads_get_the_same_predictions_as_samples(http):
    sampled = images(http, n=3, seed=40)
    files = []
    for i, image in enumerate(sampled["images"]):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(("images", (f"{i}.png", buffer.getvalue())))
    answer = http.post("/v1/classify", files=files).json()
    for i, verdict in enumerate(answer["images"]):
        expected = dict(zip(sampled["labels"], sampled["probabilities"][i], strict=True))
        assert verdict["probabilities"] == pytest.approx(expected, abs=1e-3)


def test_a_photo_from_a_phone_is_accepted(http):
    """Many phones write MPO: a JPEG with another picture behind it."""
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    one, two = io.BytesIO(), io.BytesIO()
    photo.save(one, "JPEG", quality=90)
    photo.save(two, "MPO", quality=90, save_all=True, append_images=[photo])
    with Image.open(io.BytesIO(two.getvalue())) as written:
        assert written.format == "MPO"
    files = [("images", ("a.jpg", each.getvalue())) for each in (one, two)]
    first, second = http.post("/v1/classify", files=files).json()["images"]
    assert second["probabilities"] == pytest.approx(first["probabilities"], abs=1e-3)


# formats


def test_every_format_holds_the_same_images(http):
    expected = images(http, n=5, seed=1)["images"]
    query = {"label": "cat", "n": 5, "seed": 1}
    grid = pixels(http.get("/v1/sample", params=query).content)
    assert grid.shape == (2 * 34 - 2, 3 * 34 - 2, 3)
    assert np.array_equal(grid[34:66, 34:66], expected[4])
    document = http.post("/v1/sample", json={**query, "format": "json"}).json()
    assert [entry["seed"] for entry in document["images"]] == [1, 2, 3, 4, 5]
    assert np.array_equal(pixels(base64.b64decode(document["images"][2]["png"])), expected[2])
    assert set(document["images"][0]["probabilities"]) == {"cat", "dog"}
    with zipfile.ZipFile(io.BytesIO(http.get("/v1/sample", params={**query, "format": "zip"}).content)) as archive:
        assert np.array_equal(pixels(archive.read("3.png")), expected[2])
        assert json.loads(archive.read("samples.json"))["images"][2]["seed"] == 3
    for kind in ("webp", "jpeg"):
        picture = pixels(http.get("/v1/sample", params={**query, "format": kind}).content)
        assert picture.shape == grid.shape
        assert likeness(picture, grid) > 0.7


def test_every_answer_names_its_origin(http):
    headers = http.get("/v1/sample", params={"label": "cat", "n": 2, "seed": 7}).headers
    assert headers["X-Raygan-Model"] == "raygan-generator-cat"
    assert headers["X-Raygan-Version"] == "1"
    assert headers["X-Raygan-Seeds"] == "7-8"
    assert [len(shares) for shares in json.loads(headers["X-Raygan-Probabilities"]).values()] == [2, 2]
    models = http.get("/v1/models").json()
    dog = {"name": "raygan-generator-dog", "version": "1", "image_size": 32, "directions": 8}
    assert models["generators"]["dog"] == dog
    assert models["classifier_labels"] == ["cat", "dog"]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
def test_every_number_of_images_fits_its_grid(http, n):
    height, width = pixels(http.get("/v1/sample", params={"label": "cat", "n": n}).content).shape[:2]
    rows, columns = (height + 2) // 34, (width + 2) // 34
    assert rows * columns >= n > (rows - 1) * columns


# versions, caches, negotiation


async def test_a_pinned_version_is_loaded_on_demand(models, tmp_path):
    newer, broken = (ModelVersion(CAT.name, version) for version in "23")
    files = {**models, newer: save(tmp_path / "newer", make_generator(9)), broken: {"generator.json": b"{"}}
    local = await local_service(files, Champions({"cat": newer}, None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:

        async def ask(path="sample", **query):
            return await client.get(f"/v1/{path}", params={"label": "cat", "n": 2, "seed": 5, **query})

        newest, pinned = await ask(), await ask(version=1)
        assert [each.headers["X-Raygan-Version"] for each in (newest, pinned)] == ["2", "1"]
        assert newest.content != pinned.content
        latents = torch.cat([torch.randn(1, NETWORKS.z_dim, generator=seeded(5 + i, 0, "sample")) for i in range(2)])
        with torch.no_grad():
            expected = to_uint8(make_generator(0)(latents)).permute(0, 2, 3, 1).numpy()
        assert abs(pixels(pinned.content)[:, :32].astype(int) - expected[0]).max() <= 1
        line = json.loads((await ask("stream", version=1)).text.splitlines()[1])
        assert abs(pixels(base64.b64decode(line["png"])).astype(int) - expected[1]).max() <= 1
        assert (await client.get("/v1/interpolate?label=cat&version=1")).headers["X-Raygan-Version"] == "1"
        for version, status in (("4", 404), ("3", 409), ("0", 422), ("x", 422), ("-1", 422)):
            answer = await ask(version=version)
            assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (status, "version")
        await local.service.refresh(Champions({"cat": newer}, None))
        assert (await ask(version=1)).content == pinned.content
        posted = await client.post("/v1/sample", json={"label": "cat", "n": 2, "seed": 5, "version": 1})
        assert posted.content == pinned.content


def test_a_client_that_has_the_answer_gets_304_and_head_computes_nothing(running, http):
    asked = running.local.generator.asked
    first = http.get("/v1/sample?label=cat&n=2&seed=771&version=1")
    assert first.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    computed = len(asked)
    for tag in (first.headers["ETag"], f'"other", W/{first.headers["ETag"]}', "*"):
        again = http.get("/v1/sample?label=cat&n=2&seed=771&version=1", headers={"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    for path in ("sample?label=cat&n=2&seed=771&version=1", "interpolate?label=cat&version=1", "stream?label=cat"):
        head = http.head(f"/v1/{path}")
        assert (head.status_code, head.content, head.headers["X-Raygan-Version"]) == (200, b"", "1")
    assert http.head("/v1/sample?label=cat&n=2&seed=771&version=1").headers["ETag"] == first.headers["ETag"]
    assert len(asked) == computed
    assert http.get("/v1/sample?label=cat&n=2&seed=771", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("seed=5&version=1", "public, max-age=31536000, immutable"),
        ("seed=5", "no-cache"),  # until the next champion
        ("version=1", "no-store"),  # the seed is random
        ("seed=5&version=1&format=json", "no-cache"),  # until the next classifier
        ("seed=5&version=1&min_confidence=0.1", "no-cache"),
    ],
)
def test_an_answer_is_kept_as_long_as_it_stays_right(http, query, kept):
    answer = http.get(f"/v1/sample?label=cat&n=2&{query}")
    assert (answer.headers["Cache-Control"], "ETag" in answer.headers) == (kept, "seed" in query)
    kinds = [http.get(f"/v1/sample?label=cat&n=2&{query}&truncation={t}").headers.get("ETag") for t in (0.5, 0.6, 0.6)]
    assert kinds[0] != kinds[1] or kinds[0] is None
    assert kinds[1] == kinds[2]


async def test_a_longer_search_is_another_answer(models):
    tags = set()
    for max_draws in (1, 2):
        local = await local_service(models, Champions({"cat": CAT}, CLASSIFIER), max_draws=max_draws)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
            answer = await client.head("/v1/sample?label=cat&seed=7&min_confidence=0.9")
        tags.add(answer.headers["ETag"])
    assert len(tags) == 2


@pytest.mark.parametrize(("quick_calls", "kept"), [(1, "no-store"), (1000, "no-cache")])
async def test_an_answer_cut_short_by_time_is_not_kept(quick_calls, kept):
    service = confident_service(Slow(quick_calls, {5}), max_draws=2, seconds=1.0)
    app = create_app(service, ServeSettings(storage="x", tracking_uri=None), list)
    query = "label=cat&n=8&seed=40&version=1&min_confidence=0.9"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get(f"/v1/sample?{query}")
    assert (answer.status_code, answer.headers["X-Raygan-Accepted"] < "8") == (200, True)
    assert (answer.headers["Cache-Control"], "ETag" in answer.headers) == (kept, kept == "no-cache")


async def test_an_upload_is_judged_by_the_classifier_for_which_it_was_decoded(models, tmp_path, monkeypatch):
    newer = ModelVersion("raygan-classifier", "2")
    files = {**models, newer: files_of(make_classifier(tmp_path / "newer"))}
    local = await local_service(files, Champions({"cat": CAT}, CLASSIFIER))

    async def decode(*_):
        await local.service.refresh(Champions({"cat": CAT}, newer))
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr("raygan.serve.workers.Decoders.decode", decode)
    judges, classify = [], local.service.classifier.run

    async def note(model, request):
        judges.append(model)
        return await classify(model, request)

    local.service.classifier.run = note
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        answer = (await client.post("/v1/classify", files={"images": ("a.png", b"")})).json()
        assert (judges, answer["classifier"]["version"]) == ([CLASSIFIER], "1")
        assert answer["classifier"]["image_size"] == 32


def test_answers_to_a_token_are_kept_by_their_client_alone(http):
    answer = http.get("/v1/sample?label=cat&n=1&seed=5&version=1", headers={"Authorization": "Bearer x"})
    assert answer.headers["Cache-Control"].startswith("private")


def test_seeds_are_drawn_one_by_one(http):
    expected = [images(http, n=1, seed=seed)["images"][0] for seed in (9, 1, 5)]
    for answer in (
        http.get("/v1/sample?label=cat&format=npz&seeds=9,1,5"),
        http.get("/v1/sample?label=cat&format=npz&seeds=9&seeds=1&seeds=5"),
        http.post("/v1/sample", json={"label": "cat", "format": "npz", "seeds": [9, 1, 5]}),
        # as generated clients write what isn't given
        http.post("/v1/sample", json={"label": "cat", "format": "npz", "seeds": [9, 1, 5], "seed": None}),
    ):
        assert np.array_equal(np.load(io.BytesIO(answer.content))["images"], expected)
        assert answer.headers["X-Raygan-Seeds"] == "9,1,5"
    for wrong in ("seeds=1,,2", "seeds=", "seeds=1,x", "seeds=1&n=4", "seeds=1&seed=2", "seeds=1&min_confidence=0.5"):
        assert http.get(f"/v1/sample?label=cat&{wrong}").status_code == 422


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("application/json;q=0.9, image/*;q=0.8", "application/json"),
        ("image/webp", "image/webp"),
        ("image/jpeg, image/png;q=0.1", "image/jpeg"),
        ("image/avif,image/webp,image/apng,*/*;q=0.8", "image/png"),  # a browser; WebP would lose detail
        ("text/html, application/*;q=0.2, application/json;q=0", "application/zip"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("image/png;q=x", None),
    ],
)
def test_the_format_is_what_the_client_accepts(http, accept, kind):
    request = http.build_request("GET", "/v1/sample?label=cat&n=1&seed=3")
    del request.headers["Accept"]
    if accept:
        request.headers["Accept"] = accept
    answer = http.send(request)
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        (200, kind) if kind else (406, "application/problem+json")
    )
    if kind:
        assert "Accept" in answer.headers["Vary"]
        assert http.get("/v1/sample?label=cat&n=1&format=grid", headers={"Accept": "text/html"}).status_code == 200


def test_json_is_compressed_for_those_who_take_it(http):
    query = "/v1/sample?label=cat&n=8&seed=3&format=json"
    plain, packed = (http.get(query, headers={"Accept-Encoding": coding}) for coding in ("identity", "br, gzip"))
    assert ("Content-Encoding" in plain.headers, packed.headers["Content-Encoding"]) == (False, "gzip")
    assert plain.json() == packed.json()
    assert int(packed.headers["Content-Length"]) < 0.9 * len(plain.content)
    assert plain.headers["ETag"] != packed.headers["ETag"]
    assert "Content-Encoding" not in http.get(query, headers={"Accept-Encoding": "gzip;q=0"}).headers


@pytest.mark.parametrize("path", ["/", "/pages/app.js", "/openapi.json", "/v1/models"])
def test_text_is_compressed_for_those_who_take_it(running, path):
    with httpx.Client(base_url=running.address, timeout=60) as client:
        plain, packed = (client.get(path, headers={"Accept-Encoding": coding}) for coding in ("identity", "gzip"))
    assert "Content-Encoding" not in plain.headers
    assert packed.content == plain.content
    if len(plain.content) > 1000:
        assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == ("gzip", "Accept-Encoding")
        assert int(packed.headers["Content-Length"]) < 0.5 * len(plain.content)


async def test_grids_are_encoded_beside_many_animations(models, monkeypatch):
    go_on, animated = threading.Event(), []

    def animation(*_, **__):
        animated.append(go_on.wait(240))
        return b"GIF"

    monkeypatch.setattr("raygan.serve.encode.animation", animation)
    local = await local_service(models, Champions({"cat": CAT}, None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        walk = "/v1/interpolate?label=cat&frames=2&bounce=true&format=gif"
        asked = [asyncio.ensure_future(client.get(walk)) for _ in range(8)]
        while sum(task.done() for task in asked) < 3:  # one is under way, and four of one client may wait
            await asyncio.sleep(0.01)
        assert (await client.get("/v1/sample?label=cat&n=9&format=grid")).status_code == 200
        assert not animated
        go_on.set()
        answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 3
    assert {answer.headers.get("Retry-After") for answer in answers if answer.status_code == 503} == {"2"}


def test_the_description_names_operations_gives_examples_and_shows_httpx(http):
    described = http.get("/openapi.json").json()
    operations = {
        operation["operationId"]: operation for methods in described["paths"].values() for operation in methods.values()
    }
    assert sorted(operations) == [
        "classify", "healthz", "interpolate", "models", "readyz", "sample", "sample_posted", "stream",
    ]  # fmt: skip
    for name in ("sample", "stream", "interpolate"):
        assert "409" in operations[name]["responses"]
        without = [each["name"] for each in operations[name]["parameters"] if "examples" not in each["schema"]]
        assert without == []
    code = "\n".join(line.strip() for line in described["info"]["description"].splitlines() if line.startswith("    "))
    compile(code, "description", "exec")
    assert ("import httpx" in code, len(code.splitlines())) == (True, 2)


def test_a_stream_has_a_line_per_image(http):
    expected = images(http, n=40, seed=100)
    with http.stream("GET", "/v1/stream?label=cat&n=40&seed=100") as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["seed"] for line in lines] == list(range(100, 140))
    assert np.array_equal(np.stack([pixels(base64.b64decode(line["png"])) for line in lines]), expected["images"])
    assert set(lines[0]["probabilities"]) == {"cat", "dog"}
    assert http.get("/v1/stream?label=bird").status_code == 404
    assert http.get("/v1/stream?label=cat&n=10001").status_code == 422


async def test_other_websites_use_the_api_if_they_are_named(models):
    local = await local_service(
        models,
        Champions({"cat": CAT}, None),
        token="s3cret",  # noqa: S106
        cors_origins=["https://a.example"],
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
            asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
            preflight = await client.options("/v1/sample", headers=asked)
            answer = await client.get("/v1/models", headers={"Origin": origin, "Authorization": "Bearer s3cret"})
            assert preflight.status_code == (200 if allowed else 400)
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        assert "X-Raygan-Seeds" in answer.headers["Access-Control-Expose-Headers"]
        assert (await client.get("/v1/models", headers={"Origin": "https://a.example"})).status_code == 401


# mistakes


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("label=bird", 404, "label: no generator for 'bird'; available: cat, dog"),
        ("label=cat&n=0", 422, "n:"),
        ("label=cat&n=65", 422, "n:"),
        ("label=cat&seed=x", 422, "seed:"),
        ("label=cat&seed=-1", 422, "seed:"),
        ("label=cat&seed=4503599627370496", 422, "seed:"),
        ("label=cat&truncation=0", 422, "truncation:"),
        ("label=cat&truncation=1.5", 422, "truncation:"),
        ("label=cat&truncation=nan", 422, "truncation:"),
        ("label=cat&min_confidence=2", 422, "min_confidence:"),
        ("label=cat&format=tiff", 422, "format:"),
        ("label=cat&sead=3", 422, "sead:"),
        ("n=4", 422, "label:"),
    ],
)
def test_a_problem_names_the_wrong_field(http, query, status, says):
    answer = http.get(f"/v1/sample?{query}")
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert says in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("given", ["seed=1_000", "seed=0x10", "n=1_0", "seed=1.5", "seed=%D9%A1"])
def test_numbers_must_be_written_in_digits(http, given):
    assert http.get(f"/v1/sample?label=cat&{given}").status_code == 422
    name = given.split("=")[0]
    for value in (True, "1_0"):
        answer = http.post("/v1/sample", json={"label": "cat", name: value})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, name)


@pytest.mark.parametrize("path", ["/healthz", "/", "/v1/models", "/v1/sample?n=x"])
def test_head_is_get_without_the_body(http, path):
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    told = [{k: v for k, v in each.headers.items() if k not in ("date", "x-request-id")} for each in (head, get)]
    if get.status_code == 200:  # a problem document names its request
        assert told[0] == told[1]
    assert http.head("/nowhere").status_code == 404
    assert "HEAD" in http.delete("/v1/models").headers["Allow"]


def test_a_trailing_slash_is_not_found(http):
    assert http.get("/v1/models/", follow_redirects=False).status_code == 404


def test_wrong_bodies_and_paths_are_problems_too(http):
    assert "n:" in http.post("/v1/sample", json={"label": "cat", "n": 99}).json()["detail"]
    for answer, status in (
        (http.post("/v1/sample", content=b"{", headers={"Content-Type": "application/json"}), 422),
        (http.get("/nowhere"), 404),
        (http.delete("/v1/sample"), 405),
        (http.get("/pages/../serve_config.yaml"), 404),
        (http.get("/pages/%2e%2e%2fconfig.py"), 404),
        (http.post("/v1/classify"), 422),
    ):
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_a_body_that_is_not_json_is_named(http):
    answer = http.post("/v1/sample", content=b'{"label":', headers={"Content-Type": "application/json"})
    assert answer.json()["errors"] == [{"field": "body", "message": "JSON decode error"}]
    assert answer.json()["detail"] == "body: JSON decode error"
    for unread in ({"json": [1]}, {"content": b'{"label": "cat"}'}, {"data": {"label": "cat"}}):
        message = http.post("/v1/sample", **unread).json()["errors"][0]["message"]
        assert message == "must be a JSON object, sent with Content-Type: application/json"
    text = http.post("/v1/classify", files={"images": (None, "photo.jpg")})
    assert text.json()["detail"] == "images.0: must be a file, as in curl -F images=@photo.jpg"


async def test_without_a_classifier_samples_have_no_predictions(models):
    local = await local_service(models, Champions({"cat": CAT}, None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        plain = await client.get("/v1/sample?label=cat&n=2&seed=1&format=json")
        assert plain.status_code == 200
        assert plain.json()["classifier"] is None
        assert plain.json()["images"][0]["probabilities"] is None
        confident = await client.get("/v1/sample?label=cat&min_confidence=0.5")
        assert (confident.status_code, confident.json()["field"]) == (409, "min_confidence")
        files = {"images": ("a.png", b"\x89PNG")}
        assert (await client.post("/v1/classify", files=files)).status_code == 409


def test_moves_follow_the_directions_that_the_first_layer_passes_on_most(http):
    """SeFa by the book: the left singular vectors of the first layer's matrix."""
    generator = make_generator()
    first = next(module for module in generator.modules() if isinstance(module, torch.nn.ConvTranspose2d))
    vectors = torch.linalg.svd(first.weight.detach().flatten(1).double())[0].T[:3].float()
    vectors *= vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()  # the sign is ours to choose
    latents = torch.randn(1, NETWORKS.z_dim, generator=seeded(7, 0, "sample")) * 0.5 + 3 * vectors[0] - 1.5 * vectors[2]
    with torch.no_grad():
        expected = to_uint8(generator(latents)).permute(0, 2, 3, 1).numpy().astype(int)
    query = "/v1/sample?label=cat&seeds=7&truncation=0.5&format=npz"
    moved = np.load(io.BytesIO(http.get(f"{query}&moves=3,0,-1.5").content))["images"].astype(int)
    assert abs(moved - expected).max() <= 1
    plain = np.load(io.BytesIO(http.get(query).content))["images"].astype(int)
    assert abs(moved - plain).max() > 10
    posted = {"label": "cat", "seeds": [7], "truncation": 0.5, "moves": [3, 0, -1.5], "format": "npz"}
    assert http.post("/v1/sample", json=posted).content == http.get(f"{query}&moves=3,0,-1.5").content
    walk = "/v1/interpolate?label=cat&seed=7&to=8&frames=2&format=gif"
    assert http.get(f"{walk}&moves=3").content != http.get(walk).content
    assert http.get("/v1/models").json()["generators"]["cat"]["directions"] == 8
    for wrong in ("1,1,1,1,1,1,1,1,1", "nan", "11"):
        answer = http.get(f"{query}&moves={wrong}")
        assert (answer.status_code, answer.json()["detail"][:5]) == (422, "moves")


def test_labels_of_any_text_are_served(tmp_path):
    labels = ["a:b", "a,b", "a/b", "a b&c=d#e%2F", "\"quoted\" 'label'", "<b>", "🐱", "قطة", "ü" * 200]
    cat = ModelVersion("raygan-generator-a", "1")
    judge = ModelVersion("raygan-classifier", "1")
    models = {
        cat: save(tmp_path / "cat", make_generator()),
        judge: files_of(make_classifier(tmp_path / "judge", labels=tuple(labels))),
    }
    served = Champions(dict.fromkeys(labels, cat), judge)
    with Running(lambda: local_service(models, served)) as one, httpx.Client(base_url=one.address, timeout=60) as http:
        about = http.get("/v1/models").json()
        assert sorted(about["generators"]) == sorted(labels)
        assert about["classifier_labels"] == labels
        for label in labels:
            picture = http.get("/v1/sample", params={"label": label, "n": 2, "format": "grid"})
            assert picture.status_code == 200, label
            assert len(json.loads(picture.headers["X-Raygan-Probabilities"])[label]) == 2
            archive = http.get("/v1/sample", params={"label": label, "n": 2, "format": "zip"})
            assert len(zipfile.ZipFile(io.BytesIO(archive.content)).namelist()) >= 2
            as_json = http.get("/v1/sample", params={"label": label, "n": 2, "format": "json"}).json()
            assert as_json["label"] == label
        refused = http.get("/v1/sample", params={"label": "🐶", "n": 2})
        assert refused.status_code == 404
        assert "🐱" in refused.json()["detail"]
