"""Response headers: those that protect the page, and those that say where images come from, with their description."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from raygan.serve.encode import WITH_VERDICTS, Format
from raygan.serve.messages import ModelVersion, Samples

#: Maximum length of the header with probabilities; the formats with verdicts hold all of them.
_MAX_CHARACTERS = 4000

#: Headers of every answer.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def header_schema(meaning: str, *, kind: str = "string", required: bool = True) -> dict[str, Any]:
    """A header's OpenAPI description."""
    return {"description": meaning, "schema": {"type": kind}, "required": required}


_MODEL_HEADERS = {
    "X-Raygan-Model": header_schema("the generator's registered model; non-ASCII characters are percent-encoded"),
    "X-Raygan-Version": header_schema("the generator's version"),
}

STREAM_HEADERS = {**_MODEL_HEADERS, "X-Raygan-Seeds": header_schema("the range of seeds, such as 7-1006")}

CACHE_HEADERS = {
    "ETag": header_schema("names the answer, if the seed is given", required=False),
    "Cache-Control": header_schema("immutable, if seed and version are given and no verdict is in the body"),
}

WALK_HEADERS = {**_MODEL_HEADERS, "X-Raygan-Seeds": header_schema("seeds of the first and the last frame")}

SAMPLE_HEADERS = {
    **_MODEL_HEADERS,
    "X-Raygan-Seeds": header_schema("seeds and ranges of seeds, such as 7,9-11"),
    "X-Raygan-Seed": header_schema("seed of the first image", kind="integer"),
    "X-Raygan-Drawn": header_schema("number of images drawn to find these", kind="integer"),
    "X-Raygan-Accepted": header_schema("number of images in the answer", kind="integer"),
    "X-Raygan-Classifier-Version": header_schema("the classifier's version, if there is one", required=False),
    "X-Raygan-Probabilities": header_schema(
        "JSON, if there is a classifier and the format is a picture: each label's probabilities, one per image; only "
        "the requested label's if all would be too long",
        required=False,
    ),
}


def walk_headers(model: ModelVersion, seed: int, to: int) -> dict[str, str]:
    """The headers of an animation between two seeds."""
    return {**model_headers(model), "X-Raygan-Seeds": f"{seed},{to}"}


def sample_headers(samples: Samples, kind: Format) -> dict[str, str]:
    """The headers of an answer with samples."""
    headers = {
        **model_headers(samples.model),
        "X-Raygan-Seed": str(samples.seeds[0]),
        "X-Raygan-Seeds": _ranges(samples.seeds),
        "X-Raygan-Drawn": str(samples.drawn),
        "X-Raygan-Accepted": str(samples.accepted),
    }
    if samples.predictions is not None and samples.classifier is not None:
        headers["X-Raygan-Classifier-Version"] = samples.classifier.version
        if kind not in WITH_VERDICTS:
            rows = samples.predictions.plain()
            columns = {label: [row[label] for row in rows] for label in samples.predictions.labels}
            headers["X-Raygan-Probabilities"] = _probabilities(columns, samples.label)
    if kind in ("zip", "npz"):
        name = "".join(c for c in samples.label if c.isascii() and c.isalnum()) or "samples"
        headers["Content-Disposition"] = f'attachment; filename="{name}-{samples.seeds[0]}.{kind}"'
    return headers


def model_headers(model: ModelVersion) -> dict[str, str]:
    """The headers that name a generator's version."""
    name = urllib.parse.quote(model.name, safe=" !#$&'()*+,-./:;=?@[]^_`{|}~")
    return {"X-Raygan-Model": name, "X-Raygan-Version": model.version}


def _probabilities(columns: dict[str, list[float]], label: str) -> str:
    text = json.dumps(columns, separators=(",", ":"))
    if len(text) > _MAX_CHARACTERS:
        text = json.dumps({name: values for name, values in columns.items() if name == label}, separators=(",", ":"))
    return text


def _ranges(seeds: list[int]) -> str:
    """Seeds as numbers and ranges: "7-22" or "7,9-11"."""
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and ranges[-1][1] == seed - 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
