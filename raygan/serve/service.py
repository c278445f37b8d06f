"""The service behind the HTTP routes: what a request means in terms of calls and model versions.

1. A request takes the champion in force when it arrives (see `versions`) and keeps it to the end.
2. `sample` draws images of consecutive seeds and classifies them; with `min_confidence` it searches (`confident`).
3. `walk` draws the frames between two seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raygan.errors import some
from raygan.serve.confident import Search
from raygan.serve.messages import (
    ClassifyRequest,
    ModelVersion,
    Pixels,
    Predictions,
    SampleRequest,
    Samples,
)
from raygan.serve.metrics import Metrics
from raygan.serve.pins import Exists
from raygan.serve.problems import Problem
from raygan.serve.versions import ClassifierStage, GeneratorStage, Versions


class Service(Versions):
    """Requests in, arrays out.

    Args:
        generator: draws images of any registered generator.
        classifier: classifies images.
        metrics: where counts and times go.
        max_draws: with a minimum confidence, maximum images drawn per requested image.
        seconds: time limit of a request.
        exists: whether the registry has a version.
    """

    def __init__(
        self,
        generator: GeneratorStage,
        classifier: ClassifierStage,
        metrics: Metrics,
        *,
        max_draws: int,
        seconds: float,
        exists: Exists,
    ):
        super().__init__(generator, classifier, exists)
        self.metrics = metrics
        self._search = Search(metrics, max_draws=max_draws, seconds=seconds)

    async def sample(
        self,
        label: str,
        n: int,
        seed: int,
        truncation: float = 1.0,
        min_confidence: float | None = None,
        *,
        model: ModelVersion | None = None,
        seeds: list[int] | None = None,
        moves: Sequence[float] = (),
    ) -> Samples:
        """Images of the seeds from `seed` on.

        Args:
            label: which generator.
            n: number of images.
            seed: of the first image.
            model: from `version`; the champion by default.
            seeds: instead of `n` and `seed`.
            moves: how far to move along the generator's directions.
            truncation: scales the latents, in (0, 1].
            min_confidence: keep only images with at least this probability of the label, in [0, 1].
        Raises:
            Problem: unknown label, no fitting classifier, or no image accepted.
            Busy: too many images are waiting.
        """
        model, classifier = model or self.champion(label), self.champions.classifier
        self._check_moves(model, moves)
        template = SampleRequest(label, (seed,), truncation, moves=tuple(moves))
        if min_confidence is not None:
            judge = self._classifier_for(label)
            found = await self._search.run(
                template,
                n,
                min_confidence,
                draw=lambda request: self.generator.run(model, replace(request, judge=judge)),
                classify=lambda request: self.classifier.run(judge, request),
            )
            return Samples(
                label, found.images, found.seeds, found.drawn, model, judge, found.predictions, found.in_time
            )
        seeds = list(range(seed, seed + n)) if seeds is None else seeds
        drawn = await self.generator.run(model, replace(template, seeds=tuple(seeds), judge=classifier))
        self.metrics.count("samples", len(seeds), label=label, outcome="plain")
        return Samples(label, drawn.images, seeds, len(seeds), model, classifier, drawn.predictions)

    async def walk(
        self,
        label: str,
        seed: int,
        to: int,
        frames: int,
        truncation: float,
        *,
        model: ModelVersion,
        moves: Sequence[float] = (),
    ) -> Pixels:
        """Frames (n, S, S, 3) from one seed's image to another's, both included. Raises Problem and Busy."""
        self._check_moves(model, moves)
        fractions = tuple(i / (frames - 1) for i in range(frames))
        request = SampleRequest(label, (seed,) * frames, truncation, (to,) * frames, fractions, tuple(moves))
        return (await self.generator.run(model, request)).images

    async def classify(self, images: Pixels, model: ModelVersion) -> Predictions:
        """Predictions for images. Raises Busy if too many are waiting.

        Args:
            images: uint8 (n, S, S, 3) of the classifier's size.
            model: from `current_classifier`.
        """
        return await self.classifier.run(model, ClassifyRequest(images))

    def check(
        self, label: str, model: ModelVersion, moves: Sequence[float] = (), min_confidence: float | None = None
    ) -> None:
        """Raise the Problem that a request is known to have, before anything is loaded or computed for it."""
        self._check_moves(model, moves)
        if min_confidence is not None:
            self._classifier_for(label)

    def _check_moves(self, model: ModelVersion, moves: Sequence[float]) -> None:
        about = self._about(model)  # empty if it isn't loaded, or was forgotten during its stream
        if about and len(moves) > self.directions(model):
            raise Problem(422, f"{model} has {self.directions(model)} directions", field="moves")

    def _classifier_for(self, label: str) -> ModelVersion:
        """The classifier in force. Raises Problem if there is none, or if it doesn't know the label."""
        classifier = self.champions.classifier
        if classifier is None:
            raise self.no_classifier("min_confidence")
        labels = self.labels(classifier)
        if label not in labels:
            raise Problem(409, f"the classifier knows {some(labels)}, not {label}", field="min_confidence")
        return classifier
