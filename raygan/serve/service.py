"""The service behind the HTTP routes: what a request means in terms of batchers and model versions.

1. `Service` knows each label's champion and each registered model's batcher; `refresh` follows the registry. A request
   takes the champion in force when it arrives and keeps it to the end.
2. `sample` draws images of consecutive seeds and classifies them. With `min_confidence` it keeps drawing until enough
   are accepted or the limit is reached. Which images are accepted depends only on the seed, never on rounds or load,
   unless time runs out: then the answer has fewer images, or it is 503.
3. `walk` draws the frames between two seeds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raygan.errors import last_line
from raygan.serve.batching import Batcher
from raygan.serve.messages import (
    Champions,
    ClassifyRequest,
    ModelVersion,
    Pixels,
    Predictions,
    Probabilities,
    SampleRequest,
)
from raygan.serve.metrics import Metrics
from raygan.serve.problems import Problem, unavailable

log = logging.getLogger("raygan.serve")

GeneratorBatcher = Batcher[SampleRequest, Pixels]
ClassifierBatcher = Batcher[ClassifyRequest, Predictions]

#: Maximum number of images in an answer, and in a round of draws with a minimum confidence.
MAX_IMAGES = 64

#: Seconds that a refresh waits for a version: a deployment without a replica must not delay the other labels.
PREPARE_SECONDS = 20.0

#: An upper bound on how far a logit moves with its batch: each layer rounds by about 1e-7, which a network with steep
#: outputs amplifies to 4e-4 per logit. A probability p moves by p (1 - p) times the difference of logits, and by its
#: own rounding.
_LOGIT_ROUNDING, _ROUNDING = 4e-3, 1e-6

#: Share of a request's time limit for drawing with a minimum confidence; the rest is for answering with what was found.
_DRAWING_SHARE = 0.7


@dataclass(frozen=True)
class Samples:
    """A request's images with their origin.

    Attributes:
        label: the requested label.
        images: uint8 (n, S, S, 3).
        seeds: one per image.
        drawn: images drawn to find these.
        model: the generator's version.
        classifier: the classifier's version; None if none is registered.
        predictions: None if no classifier is registered.
    """

    label: str
    images: Pixels
    seeds: list[int]
    drawn: int
    model: ModelVersion
    classifier: ModelVersion | None
    predictions: Predictions | None

    @property
    def accepted(self) -> int:
        return len(self.images)


class Service:
    """Requests in, arrays out.

    Args:
        generators: batchers by registered model name.
        classifier: the classifier's batcher.
        metrics: where counts and times go.
        max_draws: with a minimum confidence, maximum images drawn per requested image.
        seconds: time limit of a request.

    Attributes:
        champions: the versions in force.
        described: what replicas said about loaded versions.
    """

    def __init__(
        self,
        generators: dict[str, GeneratorBatcher],
        classifier: ClassifierBatcher,
        metrics: Metrics,
        *,
        max_draws: int,
        seconds: float = math.inf,
    ):
        self.generators, self.classifier = generators, classifier
        self.champions = Champions()
        self.described: dict[ModelVersion, dict[str, Any]] = {}
        self._preparing: dict[ModelVersion, asyncio.Task[None]] = {}
        self.metrics, self._max_draws, self._seconds = metrics, max_draws, seconds

    async def refresh(self, champions: Champions) -> None:
        """Switch to new champions, each as soon as its replicas have loaded it.

        If one can't be loaded, or not in time, the version in force stays, or else the one proven before this process
        started. A slow load goes on, and the next refresh finds it done.
        """
        proven = champions.proven or Champions()
        self._forget(champions, proven)
        late = frozenset(self._preparing)
        in_force = self.champions

        async def take(label: str, model: ModelVersion) -> None:
            for candidate in (model, in_force.generators.get(label), proven.generators.get(label)):
                batcher = self.generators.get(candidate.name) if candidate else None
                # Without a batcher: registered after deployment, which starts one deployment per model.
                if candidate and batcher and await self._ready(batcher, candidate, late, label):
                    others = self.champions
                    self.champions = replace(others, generators={**others.generators, label: candidate})
                    return

        async def take_classifier(model: ModelVersion) -> None:
            for candidate in (model, in_force.classifier, proven.classifier):
                if candidate and await self._ready(self.classifier, candidate, late):
                    self.champions = replace(self.champions, classifier=candidate)
                    return

        classifier = [take_classifier(champions.classifier)] if champions.classifier else []
        await asyncio.gather(*(take(label, model) for label, model in champions.generators.items()), *classifier)

    def _forget(self, champions: Champions, proven: Champions) -> None:
        """Drop labels that lost their alias, and versions that nobody wants any more."""
        kept = {label: model for label, model in self.champions.generators.items() if label in champions.generators}
        self.champions = Champions(kept, self.champions.classifier if champions.classifier else None)
        wanted = {
            model
            for each in (self.champions, champions, proven)
            for model in (*each.generators.values(), each.classifier)
        }
        self.described = {model: about for model, about in self.described.items() if model in wanted}
        for model in [model for model in self._preparing if model not in wanted]:
            self._preparing.pop(model).cancel()

    def not_served(self, champions: Champions) -> list[ModelVersion]:
        """Champions that should be served but aren't, with no older version standing in."""
        missing = {
            model
            for label, model in champions.generators.items()
            if model.name in self.generators and label not in self.champions.generators
        }
        if champions.classifier is not None and self.champions.classifier is None:
            missing.add(champions.classifier)
        return sorted(missing, key=str)

    async def _ready(
        self,
        batcher: GeneratorBatcher | ClassifierBatcher,
        model: ModelVersion,
        late: Collection[ModelVersion],
        label: str | None = None,
    ) -> bool:
        """Whether a version is loaded and knows the label. late: versions not to wait for again."""
        try:
            if model not in self.described:
                if model not in self._preparing:
                    self._preparing[model] = asyncio.ensure_future(self._prepare(batcher, model))
                # Shielded: the next refresh finds a load that takes too long now, and needn't start it again.
                loading = asyncio.shield(self._preparing[model])
                await asyncio.wait_for(loading, 0 if model in late else PREPARE_SECONDS)
        except TimeoutError:
            if model not in late:
                log.warning("%s is not loaded after %g s; still waiting", model, PREPARE_SECONDS)
            return False
        except Exception as error:  # whatever loading raises: the version in force stays
            self._preparing.pop(model, None)
            log.warning("cannot serve %s: %s", model, last_line(error))
            return False
        self._preparing.pop(model, None)
        labels = self.labels(model)
        return label is None or not labels or label in labels

    async def _prepare(self, batcher: GeneratorBatcher | ClassifierBatcher, model: ModelVersion) -> None:
        self.described[model] = await batcher.prepare(model)
        log.info("serving %s", model)

    async def sample(
        self, label: str, n: int, seed: int, truncation: float = 1.0, min_confidence: float | None = None
    ) -> Samples:
        """Images of the seeds from `seed` on.

        Args:
            label: which generator.
            n: number of images.
            seed: of the first image.
            truncation: scales the latents, in (0, 1].
            min_confidence: keep only images with at least this probability of the label, in [0, 1].
        Raises:
            Problem: unknown label, no fitting classifier, or no image accepted.
            Busy: too many images are waiting.
        """
        model, classifier = self._champion(label), self.champions.classifier
        if min_confidence is not None:
            return await self._sample_confident(
                model, self._classifier_for(label), SampleRequest(label, (seed,), truncation), n, min_confidence
            )
        seeds = list(range(seed, seed + n))
        images = await self.generators[model.name].run(model, SampleRequest(label, tuple(seeds), truncation))
        predictions = await self.classifier.run(classifier, ClassifyRequest(images)) if classifier else None
        self.metrics.count("samples", n, label=label, outcome="plain")
        return Samples(label, images, seeds, n, model, classifier, predictions)

    async def _sample_confident(
        self, model: ModelVersion, classifier: ModelVersion, first: SampleRequest, n: int, min_confidence: float
    ) -> Samples:
        """`n` images that reach the confidence, or as many as are found. first: the request for the first seed."""
        label, seed = first.label, first.seeds[0]
        limit = n * self._max_draws
        deadline = time.monotonic() + _DRAWING_SHARE * self._seconds
        found: list[tuple[int, Pixels, Predictions]] = []
        examined, round_size, in_time = 0, min(n, MAX_IMAGES), True
        while len(found) < n and examined < limit:
            seeds = tuple(range(seed + examined, seed + examined + min(round_size, limit - examined)))
            drawing = self._draw_round(model, classifier, replace(first, seeds=seeds), min_confidence)
            try:
                images, predictions, confident = await asyncio.wait_for(drawing, _time_left(deadline))
            except TimeoutError:
                in_time = False
                break
            for i in confident[: n - len(found)]:
                found.append((examined + i, images[i], predictions.rows([i])))
            examined += len(seeds)
            # As many as probably suffice at the acceptance rate so far, taken as one image if none was accepted.
            round_size = min(MAX_IMAGES, math.ceil((n - len(found)) * examined / max(len(found), 1)))
        drawn = found[-1][0] + 1 if len(found) == n else examined
        self.metrics.count("samples", drawn, label=label, outcome="drawn")
        self.metrics.count("samples", len(found), label=label, outcome="accepted")
        if not found and not in_time:
            raise unavailable("found no sample with that confidence in time; try again, or lower the confidence", 2)
        if not found:
            raise Problem(
                422,
                f"none of the {drawn} samples drawn has a probability of {label} of {min_confidence:g} or more; "
                f"lower it, or try another seed",
                field="min_confidence",
                drawn=drawn,
                accepted=0,
            )
        probabilities = np.concatenate([predictions.probabilities for _, _, predictions in found])
        return Samples(
            label,
            np.stack([image for _, image, _ in found]),
            [seed + index for index, _, _ in found],
            drawn,
            model,
            classifier,
            Predictions(found[0][2].labels, probabilities),
        )

    async def _draw_round(
        self, model: ModelVersion, classifier: ModelVersion, request: SampleRequest, min_confidence: float
    ) -> tuple[Pixels, Predictions, list[int]]:
        """One round: images, their predictions, and the indices of those that reach the confidence."""
        images = await self.generators[model.name].run(model, request)
        predictions = await self.classifier.run(classifier, ClassifyRequest(images))
        return (
            images,
            predictions,
            await self._confident(classifier, images, predictions, request.label, min_confidence),
        )

    async def _confident(
        self, classifier: ModelVersion, images: Pixels, predictions: Predictions, label: str, min_confidence: float
    ) -> list[int]:
        """The indices of images that reach the confidence.

        Rounding depends on the rest of a batch. Where it could decide, the image is classified again, alone.
        """
        probabilities = predictions.of(label)
        accepted = probabilities >= min_confidence
        close = np.flatnonzero(_is_close(probabilities, min_confidence)).tolist() if min_confidence > 0 else []
        alone = [self.classifier.run(classifier, ClassifyRequest(images[i : i + 1], alone=True)) for i in close]
        for i, again in zip(close, await asyncio.gather(*alone), strict=True):
            accepted[i] = again.of(label)[0] >= min_confidence
        return [int(i) for i in np.flatnonzero(accepted)]

    async def walk(self, label: str, seed: int, to: int, frames: int, truncation: float) -> tuple[Pixels, ModelVersion]:
        """Frames (n, S, S, 3) from one seed's image to another's, both included. Raises Problem and Busy."""
        model = self._champion(label)
        fractions = tuple(i / (frames - 1) for i in range(frames))
        request = SampleRequest(label, (seed,) * frames, truncation, (to,) * frames, fractions)
        return await self.generators[model.name].run(model, request), model

    async def classify(self, images: Pixels) -> tuple[Predictions, ModelVersion]:
        """Predictions for images (n, S, S, 3). Raises Problem if there is no classifier, and Busy."""
        model = self.current_classifier()
        return await self.classifier.run(model, ClassifyRequest(images)), model

    def current_classifier(self) -> ModelVersion:
        """The classifier in force. Raises Problem if there is none."""
        if self.champions.classifier is None:
            raise Problem(409, "no classifier is registered")
        return self.champions.classifier

    def labels(self, model: ModelVersion) -> list[str]:
        """The labels that a served model knows; empty for an unconditional generator."""
        return list(self.described.get(model, {}).get("labels", []))

    def image_size(self, model: ModelVersion) -> int:
        """The side of a served model's images, in px."""
        return int(self.described.get(model, {}).get("image_size", 64))

    def _champion(self, label: str) -> ModelVersion:
        model = self.champions.generators.get(label)
        if model is None:
            known = (
                ", ".join(sorted(self.champions.generators))
                or "none yet: train one, then deploy again with another `revision`"
            )
            raise Problem(404, f"no generator for {label!r}; available: {known}", field="label")
        return model

    def _classifier_for(self, label: str) -> ModelVersion:
        """The classifier in force. Raises Problem if there is none, or if it doesn't know the label."""
        classifier = self.champions.classifier
        if classifier is None:
            raise Problem(409, "no classifier is registered", field="min_confidence")
        labels = self.labels(classifier)
        if label not in labels:
            raise Problem(409, f"the classifier knows {', '.join(labels)}, not {label}", field="min_confidence")
        return classifier


def _is_close(probabilities: Probabilities, threshold: float) -> npt.NDArray[np.bool_]:
    """Which probabilities could fall on the other side of the threshold in another batch."""
    exact = probabilities.astype(np.float64)
    tolerance = np.maximum(_LOGIT_ROUNDING * exact * (1 - exact), _ROUNDING)
    close: npt.NDArray[np.bool_] = abs(exact - threshold) < tolerance
    return close


def _time_left(deadline: float) -> float | None:
    return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
