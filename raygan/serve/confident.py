"""Samples of which the classifier is sure: rounds of drawing and classifying until enough are accepted.

Which images are accepted depends only on the seed, never on rounds or load, unless time runs out: then the answer has
fewer images, or it is 503. Before it draws, a search reserves the maximum number of images that it may draw; one
that would exceed the common budget gets 503 at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from raygan.serve.calls import Busy
from raygan.serve.messages import ClassifyRequest, Drawn, Pixels, Predictions, Probabilities, SampleRequest
from raygan.serve.metrics import Metrics
from raygan.serve.problems import Problem, unavailable

#: Maximum number of images in an answer, and in a round of draws.
MAX_IMAGES = 64

#: Maximum number of images that one search draws.
MAX_DRAWN = 256

#: Images that all searches together may still draw.
_BUDGET = 16 * MAX_DRAWN

#: An upper bound on how far a logit moves with its batch: each layer rounds by about 1e-7, which a network with steep
#: outputs amplifies to 4e-4 per logit. A probability p moves by p (1 - p) times the difference of logits, and by its
#: own rounding.
_LOGIT_ROUNDING, _ROUNDING = 4e-3, 1e-6

#: Share of a request's time limit for drawing; the rest is for answering with what was found.
_DRAWING_SHARE = 0.7


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        images: uint8 (n, S, S, 3), at least one.
        seeds: one per image.
        drawn: images drawn to find these.
        predictions: one row per image.
        in_time: whether the search ended by itself; false if time ran out.
    """

    images: Pixels
    seeds: list[int]
    drawn: int
    predictions: Predictions
    in_time: bool = True


class Search:
    """Searches for confident samples.

    Args:
        metrics: where counts go.
        max_draws: maximum images drawn per requested image.
        seconds: time limit of a request.
    """

    def __init__(self, metrics: Metrics, *, max_draws: int, seconds: float):
        self._metrics, self._max_draws, self._seconds = metrics, max_draws, seconds
        self._reserved = 0

    async def run(
        self,
        first: SampleRequest,
        n: int,
        min_confidence: float,
        *,
        draw: Callable[[SampleRequest], Awaitable[Drawn]],
        classify: Callable[[ClassifyRequest], Awaitable[Predictions]],
    ) -> Found:
        """`n` images that reach the confidence, or as many as are found.

        Args:
            first: the request for the first seed.
            n: number of images, at most `MAX_IMAGES`.
            min_confidence: at least this probability of the label, in [0, 1].
            draw: the generator, with the classifier as judge.
            classify: the classifier alone.

        Raises:
            Problem: no image reaches the confidence, or none was found in time.
            Busy: too many searches are under way, or too many images are waiting.
        """
        label, seed = first.label, first.seeds[0]
        limit = min(n * self._max_draws, MAX_DRAWN)
        deadline = time.monotonic() + _DRAWING_SHARE * self._seconds
        found: list[tuple[int, Pixels, Predictions]] = []
        examined, round_size, in_time = 0, n, True
        with self._reserve(limit):
            while len(found) < n and examined < limit:
                seeds = tuple(range(seed + examined, seed + examined + min(round_size, limit - examined)))
                drawing = _round(replace(first, seeds=seeds), min_confidence, n - len(found), draw, classify)
                try:
                    images, predictions, confident = await asyncio.wait_for(
                        drawing, max(0.0, deadline - time.monotonic())
                    )
                except TimeoutError:
                    in_time = False
                    break
                found += [(examined + i, images[i], predictions.rows([i])) for i in confident]
                examined += len(seeds)
                # As many as probably suffice at the acceptance rate so far, taken as one image if none was accepted.
                round_size = min(MAX_IMAGES, math.ceil((n - len(found)) * examined / max(len(found), 1)))
        drawn = found[-1][0] + 1 if len(found) == n else examined
        self._metrics.count("samples", drawn, label=label, outcome="drawn")
        self._metrics.count("samples", len(found), label=label, outcome="accepted")
        if not found:
            raise _nothing_found(label, min_confidence, drawn) if in_time else _out_of_time()
        probabilities = np.concatenate([predictions.probabilities for _, _, predictions in found])
        return Found(
            np.stack([image for _, image, _ in found]),
            [seed + index for index, _, _ in found],
            drawn,
            Predictions(found[0][2].labels, probabilities),
            in_time,
        )

    @contextmanager
    def _reserve(self, images: int) -> Iterator[None]:
        if self._reserved + images > _BUDGET:
            self._metrics.count("rejected", stage="confident")
            raise Busy(2)
        self._reserved += images
        try:
            yield
        finally:
            self._reserved -= images


async def _round(
    request: SampleRequest,
    min_confidence: float,
    wanted: int,
    draw: Callable[[SampleRequest], Awaitable[Drawn]],
    classify: Callable[[ClassifyRequest], Awaitable[Predictions]],
) -> tuple[Pixels, Predictions, list[int]]:
    """One round: images, their predictions, and the indices of the first `wanted` that reach the confidence.

    Rounding depends on the rest of a batch. Where it could decide, the image is classified again, alone.
    """
    drawn = await draw(request)
    images, predictions = drawn.images, drawn.predictions
    assert predictions is not None  # noqa: S101 (for mypy: the request has a judge)
    probabilities = predictions.of(request.label)
    close = _is_close(probabilities, min_confidence) if min_confidence > 0 else np.zeros(len(images), bool)
    accepted: list[int] = []
    candidates = [int(i) for i in np.flatnonzero(close | (probabilities >= min_confidence))]
    while candidates and len(accepted) < wanted:
        # No more than are still wanted: near a certainty of 1, every image may be close.
        some, candidates = candidates[: wanted - len(accepted)], candidates[wanted - len(accepted) :]
        again = [i for i in some if close[i]]
        alone = [classify(ClassifyRequest(images[i : i + 1], alone=True)) for i in again]
        verdicts = dict(zip(again, await asyncio.gather(*alone), strict=True))
        accepted += [i for i in some if i not in verdicts or verdicts[i].of(request.label)[0] >= min_confidence]
    return images, predictions, accepted


def _nothing_found(label: str, min_confidence: float, drawn: int) -> Problem:
    return Problem(
        422,
        f"none of the {drawn} samples drawn has a probability of {label} of {min_confidence:g} or more; lower it, or "
        f"try another seed",
        field="min_confidence",
        drawn=drawn,
        accepted=0,
    )


def _out_of_time() -> Problem:
    return unavailable("found no sample with that confidence in time; try again, or lower the confidence", 2)


def _is_close(probabilities: Probabilities, threshold: float) -> npt.NDArray[np.bool_]:
    """Which probabilities could fall on the other side of the threshold in another batch."""
    exact = probabilities.astype(np.float64)
    tolerance = np.maximum(_LOGIT_ROUNDING * exact * (1 - exact), _ROUNDING)
    close: npt.NDArray[np.bool_] = abs(exact - threshold) < tolerance
    return close
