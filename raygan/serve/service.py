"""The service behind the HTTP routes: what a request means, in terms of stages.

The mental model:

1. `Service` knows the champion of every label and the stage of every registered model; `refresh` follows the
   registry. A request takes the champion that is in force when it comes and keeps it to its end.
2. `sample` draws images of consecutive seeds, has them judged, and with a `min_confidence` goes on drawing until
   enough are accepted or the limit is reached. What is accepted depends on the seed alone, never on rounds or load,
   unless time runs out: then there are fewer, or none and it is 503.
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
from raygan.serve.batching import Stage
from raygan.serve.messages import Champions, Draws, Judge, ModelVersion, Pixels, Probabilities, Verdicts
from raygan.serve.metrics import Meters
from raygan.serve.problems import Problem, unavailable

log = logging.getLogger("raygan.serve")

GeneratorStage = Stage[Draws, Pixels]
ClassifierStage = Stage[Judge, Verdicts]

#: Most images in one answer, and most that are drawn in one round for a confidence.
MOST_IMAGES = 64

#: Seconds that a refresh waits for a version: a deployment without a replica must not hold up the others' versions.
_PREPARE_SECONDS = 20.0

#: More than a logit changes with the batch that an image is judged in: rounding of some 1e-7 in a layer, which a
#: network with steep outputs makes 4e-4 in each logit. A probability changes by p (1 - p) times what its logit does
#: beside the others, and by its own rounding.
_LOGIT_ROUNDING, _ROUNDING = 4e-3, 1e-6

#: Share of a request's time in which samples are drawn for a confidence; what there is then is answered in the rest.
_SHARE_FOR_DRAWING = 0.7


@dataclass(frozen=True)
class Samples:
    """Images (n, S, S, 3) that a request gets, with where they come from.

    seeds: one for each image. drawn: images that were looked at until these were found. verdicts: None where no
    classifier is registered.
    """

    label: str
    images: Pixels
    seeds: list[int]
    drawn: int
    model: ModelVersion
    classifier: ModelVersion | None
    verdicts: Verdicts | None

    @property
    def accepted(self) -> int:
        return len(self.images)


class Service:
    """Requests in, arrays out.

    generators: stages by registered model's name. most_draws: images drawn at most for each one asked for.
    seconds: that a request may take.
    """

    def __init__(
        self,
        generators: dict[str, GeneratorStage],
        classifier: ClassifierStage,
        meters: Meters,
        *,
        most_draws: int,
        seconds: float = math.inf,
    ):
        self.generators, self.classifier = generators, classifier
        self.champions = Champions()
        self.described: dict[ModelVersion, dict[str, Any]] = {}
        self._preparing: dict[ModelVersion, asyncio.Task[None]] = {}
        self.meters, self._most_draws, self._seconds = meters, most_draws, seconds

    async def refresh(self, champions: Champions) -> None:
        """Take over new champions, each as soon as its replicas have loaded it.

        For one that can't be loaded, or isn't in time, the version in force stays, or the one that was proven before
        this process began. A load that takes longer goes on, and the next refresh finds it done.
        """
        proven = champions.proven or Champions()
        self._forget(champions, proven)
        late = frozenset(self._preparing)
        in_force = self.champions

        async def take(label: str, model: ModelVersion) -> None:
            for candidate in (model, in_force.generators.get(label), proven.generators.get(label)):
                stage = self.generators.get(candidate.name) if candidate else None
                # Without a stage: registered after the deployment, which starts one deployment for each model.
                if candidate and stage and await self._ready(stage, candidate, late, label):
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
        """Leave out labels whose alias is gone, and what is known of versions that nobody wants any more."""
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
        """Champions that should be served, and for which not even an older version stands in."""
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
        stage: GeneratorStage | ClassifierStage,
        model: ModelVersion,
        late: Collection[ModelVersion],
        label: str | None = None,
    ) -> bool:
        """Whether a version is loaded, and knows the label. late: versions not to be waited for again."""
        try:
            if model not in self.described:
                if model not in self._preparing:
                    self._preparing[model] = asyncio.ensure_future(self._prepare(stage, model))
                # Shielded: a load that takes too long now is one that the next refresh needn't begin again.
                loading = asyncio.shield(self._preparing[model])
                await asyncio.wait_for(loading, 0 if model in late else _PREPARE_SECONDS)
        except asyncio.TimeoutError:
            if model not in late:
                log.warning("%s is not loaded after %g s; it is waited for", model, _PREPARE_SECONDS)
            return False
        except Exception as error:  # whatever loading raises: the version in force stays
            self._preparing.pop(model, None)
            log.warning("%s can't be served: %s", model, last_line(error))
            return False
        self._preparing.pop(model, None)
        labels = self.labels(model)
        return label is None or not labels or label in labels

    async def _prepare(self, stage: GeneratorStage | ClassifierStage, model: ModelVersion) -> None:
        self.described[model] = await stage.prepare(model)
        log.info("%s is served", model)

    async def sample(
        self, label: str, n: int, seed: int, truncation: float = 1.0, min_confidence: float | None = None
    ) -> Samples:
        """Images of seeds from `seed` on. Raises Problem (no such label, no classifier, none accepted) and Busy."""
        model, classifier = self._champion(label), self.champions.classifier
        if min_confidence is not None:
            judge = self._judge_of(label)
            return await self._accepted(model, judge, label, n, seed, truncation, min_confidence)
        seeds = list(range(seed, seed + n))
        images = await self.generators[model.name].run(model, Draws(label, tuple(seeds), truncation))
        verdicts = await self.classifier.run(classifier, Judge(images)) if classifier else None
        self.meters.count("samples", n, label=label, outcome="plain")
        return Samples(label, images, seeds, n, model, classifier, verdicts)

    async def _accepted(
        self,
        model: ModelVersion,
        classifier: ModelVersion,
        label: str,
        n: int,
        seed: int,
        truncation: float,
        min_confidence: float,
    ) -> Samples:
        most = n * self._most_draws
        deadline = time.monotonic() + _SHARE_FOR_DRAWING * self._seconds
        found: list[tuple[int, Pixels, Verdicts]] = []
        looked_at, round_size, in_time = 0, min(n, MOST_IMAGES), True
        while len(found) < n and looked_at < most:
            seeds = tuple(range(seed + looked_at, seed + looked_at + min(round_size, most - looked_at)))
            judged = self._judged(model, classifier, Draws(label, seeds, truncation), min_confidence)
            try:
                images, verdicts, confident = await asyncio.wait_for(judged, _time_left(deadline))
            except asyncio.TimeoutError:
                in_time = False
                break
            for i in confident[: n - len(found)]:
                found.append((looked_at + i, images[i], verdicts.rows([i])))
            looked_at += len(seeds)
            # As many as the share accepted so far makes likely to be enough; one more if that was none.
            round_size = min(MOST_IMAGES, math.ceil((n - len(found)) * looked_at / max(len(found), 1)))
        drawn = found[-1][0] + 1 if len(found) == n else looked_at
        self.meters.count("samples", drawn, label=label, outcome="drawn")
        self.meters.count("samples", len(found), label=label, outcome="accepted")
        if not found and not in_time:
            raise unavailable("no confident enough sample was found in time; try again, or ask for less", 2)
        if not found:
            raise Problem(
                422,
                f"none of the {drawn} samples drawn has a probability of {label} of {min_confidence:g} or more; "
                f"ask for less, or another seed",
                field="min_confidence",
                drawn=drawn,
                accepted=0,
            )
        probabilities = np.concatenate([verdicts.probabilities for _, _, verdicts in found])
        return Samples(
            label,
            np.stack([image for _, image, _ in found]),
            [seed + index for index, _, _ in found],
            drawn,
            model,
            classifier,
            Verdicts(found[0][2].labels, probabilities),
        )

    async def _judged(
        self, model: ModelVersion, classifier: ModelVersion, draws: Draws, min_confidence: float
    ) -> tuple[Pixels, Verdicts, list[int]]:
        """A round: images, the verdicts on them, and which of them reach the confidence."""
        images = await self.generators[model.name].run(model, draws)
        verdicts = await self.classifier.run(classifier, Judge(images))
        probabilities = verdicts.of(draws.label)
        return images, verdicts, await self._confident(classifier, images, probabilities, draws.label, min_confidence)

    async def _confident(
        self, classifier: ModelVersion, images: Pixels, probabilities: Probabilities, label: str, min_confidence: float
    ) -> list[int]:
        """Which images reach the confidence.

        Rounding depends on a batch's company, so where it could decide, the image is judged again, alone.
        """
        decided = probabilities >= min_confidence
        close = np.flatnonzero(_could_be(probabilities, min_confidence)).tolist() if min_confidence > 0 else []
        alone = [self.classifier.run(classifier, Judge(images[i : i + 1], alone=True)) for i in close]
        for i, again in zip(close, await asyncio.gather(*alone), strict=True):
            decided[i] = again.of(label)[0] >= min_confidence
        return [int(i) for i in np.flatnonzero(decided)]

    async def walk(self, label: str, seed: int, to: int, frames: int, truncation: float) -> tuple[Pixels, ModelVersion]:
        """Frames (n, S, S, 3) from one seed's image to another's, both included. Raises Problem and Busy."""
        model = self._champion(label)
        shares = tuple(i / (frames - 1) for i in range(frames))
        draws = Draws(label, (seed,) * frames, truncation, (to,) * frames, shares)
        return await self.generators[model.name].run(model, draws), model

    async def classify(self, images: Pixels) -> tuple[Verdicts, ModelVersion]:
        """Verdicts on images (n, S, S, 3). Raises Problem where there is no classifier, and Busy."""
        model = self.judge()
        return await self.classifier.run(model, Judge(images)), model

    def judge(self) -> ModelVersion:
        """The classifier in force. Raises Problem where there is none."""
        if self.champions.classifier is None:
            raise Problem(409, "no classifier is registered that could judge images")
        return self.champions.classifier

    def labels(self, model: ModelVersion) -> list[str]:
        """The labels that a served model knows; none of an unconditional generator."""
        return list(self.described.get(model, {}).get("labels", []))

    def image_size(self, model: ModelVersion) -> int:
        """The side in px of a served model's images."""
        return int(self.described.get(model, {}).get("image_size", 64))

    def _champion(self, label: str) -> ModelVersion:
        model = self.champions.generators.get(label)
        if model is None:
            known = (
                ", ".join(sorted(self.champions.generators))
                or "none yet: train one, then deploy again with another `revision`"
            )
            raise Problem(404, f"no generator for {label!r}; there is {known}", field="label")
        return model

    def _judge_of(self, label: str) -> ModelVersion:
        """The classifier, if it can say anything about the label."""
        classifier = self.champions.classifier
        if classifier is None:
            raise Problem(409, "no classifier is registered that could judge samples", field="min_confidence")
        labels = self.labels(classifier)
        if label not in labels:
            raise Problem(409, f"the classifier knows {', '.join(labels)}, not {label}", field="min_confidence")
        return classifier


def _could_be(probabilities: Probabilities, threshold: float) -> npt.NDArray[np.bool_]:
    """Which probabilities could be on the other side of the threshold in other company."""
    exact = probabilities.astype(np.float64)
    tolerance = np.maximum(_LOGIT_ROUNDING * exact * (1 - exact), _ROUNDING)
    close: npt.NDArray[np.bool_] = abs(exact - threshold) < tolerance
    return close


def _time_left(deadline: float) -> float | None:
    return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
