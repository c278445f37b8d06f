"""Which versions of the models are in force, and which of them answers a request.

`refresh` follows the registry, also to labels that are new; each champion is in force once its replicas have loaded it.
What isn't loaded yet is 503; 404 and 409 are for what the registry doesn't have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from raygan.errors import last_line, some
from raygan.serve.backoff import Backoff
from raygan.serve.calls import Stage
from raygan.serve.messages import Champions, ClassifyRequest, Drawn, ModelVersion, Predictions, SampleRequest
from raygan.serve.pins import Exists, Pins
from raygan.serve.problems import Problem, unavailable

log = logging.getLogger("raygan.serve")

GeneratorStage = Stage[SampleRequest, Drawn]
ClassifierStage = Stage[ClassifyRequest, Predictions]

#: Seconds that a refresh waits for a version: a deployment without a replica must not delay the other labels.
PREPARE_SECONDS = 20.0


class Versions:
    """Versions of the models.

    Args:
        generator: draws images of any registered generator.
        classifier: classifies images.
        exists: whether the registry has a version.

    Attributes:
        champions: the versions in force.
        wanted: the registry's champions; None until it has answered.
        described: what replicas said about loaded versions.
    """

    def __init__(self, generator: GeneratorStage, classifier: ClassifierStage, exists: Exists):
        self.generator, self.classifier = generator, classifier
        self.champions = Champions()
        self.wanted: Champions | None = None
        self.described: dict[ModelVersion, dict[str, Any]] = {}
        self._preparing: dict[ModelVersion, asyncio.Task[None]] = {}
        self._failed = Backoff()
        self.pins = Pins(exists)

    async def refresh(self, champions: Champions) -> None:
        """Switch to new champions, each as soon as its replicas have loaded it.

        If one can't be loaded, or not in time, the version in force stays, or else the one proven before this process
        started. A slow load goes on, and the next refresh finds it done.
        """
        self.wanted = champions
        proven = champions.proven or Champions()
        self._forget(champions, proven)
        late = frozenset(self._preparing)
        in_force = self.champions

        async def take(label: str, model: ModelVersion) -> None:
            for candidate in (model, in_force.generators.get(label), proven.generators.get(label)):
                if candidate and await self._ready(self.generator, candidate, late, label):
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
        wanted = self.champions.models | champions.models | proven.models
        self.described = {model: about for model, about in self.described.items() if model in wanted}
        self._failed.keep(wanted)
        for model in [model for model in self._preparing if model not in wanted]:
            self._preparing.pop(model).cancel()

    def is_loading(self) -> bool:
        """Whether the registry hasn't answered, or a champion without a stand-in has neither loaded nor failed to."""
        return self.wanted is None or any(model not in self._failed for model in self._unloaded(self.wanted))

    def should_try(self) -> bool:
        """Whether another look could help at once: as `is_loading`, or a champion that failed may be tried again."""
        return self.wanted is None or any(not self._failed.error(model) for model in self._unloaded(self.wanted))

    def _unloaded(self, champions: Champions) -> list[ModelVersion]:
        loaded = self.champions.generators.values()  # one of these doesn't draw a label that the registry gives it
        return [model for model in self.not_served(champions) if model not in loaded]

    def serves_nothing(self) -> bool:
        """Whether no label is served although the registry has some, or hasn't answered."""
        return self.wanted is None or (bool(self.wanted.generators) and not self.champions.generators)

    def not_served(self, champions: Champions) -> list[ModelVersion]:
        """Champions that should be served but aren't, with no older version standing in."""
        missing = {model for label, model in champions.generators.items() if label not in self.champions.generators}
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
        """Whether a version is loaded and knows the label. late: versions not to wait for again."""
        if model not in self.described:
            if self._failed.error(model):
                return False
            if model not in self._preparing:
                self._preparing[model] = asyncio.ensure_future(self._prepare(stage, model))
            await asyncio.wait([self._preparing[model]], timeout=0 if model in late else PREPARE_SECONDS)
            if model in self._preparing and model not in late:  # it goes on, and the next refresh needn't start it
                log.warning("%s is not loaded after %g s; still waiting", model, PREPARE_SECONDS)
        return model in self.described and (label is None or label in (self.labels(model) or [label]))

    async def _prepare(self, stage: GeneratorStage | ClassifierStage, model: ModelVersion) -> None:
        try:
            self.described[model] = await stage.prepare(model)
        except Exception as error:  # whatever loading raises: the version in force stays
            self._failed.failed(model, error)
            log.warning("cannot serve %s: %s", model, last_line(error))
        else:
            self._failed.forget(model)
            log.info("serving %s", model)
        del self._preparing[model]

    async def named(self, label: str, version: str | None = None) -> ModelVersion:
        """The version that a request for a label means: the given one, else the champion. Nothing is loaded for it.

        Raises:
            Problem: unknown label or version, or the registry doesn't answer.
            Busy: too many versions are being looked up or loaded.
        """
        if version is None:
            return self.champion(label)
        wanted = self.wanted.generators if self.wanted else {}
        # A champion that can't be loaded names the model, too.
        served = self.champions.generators.get(label) or wanted.get(label) or self.champion(label)
        model = replace(served, version=str(version))
        if model != self.champions.generators.get(label) and not self._about(model):
            await self.pins.find(model)
        return model

    async def version(self, label: str, version: str | None = None) -> ModelVersion:
        """The same, loaded.

        Raises:
            Problem: as `named`; the version doesn't draw the label, can't be loaded, or isn't loaded yet.
            Busy: too many versions are being looked up or loaded.
        """
        model = await self.named(label, version)
        if model != self.champions.generators.get(label):
            about = self.described.get(model) or await self.pins.described(model, self.generator.prepare)
            if about.get("labels") and label not in about["labels"]:
                raise Problem(404, f"{model} doesn't draw {label!r}", field="version")
        return model

    def current_classifier(self) -> ModelVersion:
        """The classifier in force. Raises Problem if there is none."""
        if self.champions.classifier is None:
            raise self.no_classifier()
        return self.champions.classifier

    def labels(self, model: ModelVersion) -> list[str]:
        """The labels that a served model knows; empty for an unconditional generator."""
        return list(self._about(model).get("labels", []))

    def directions(self, model: ModelVersion) -> int:
        """How many directions a served generator can be moved along."""
        return int(self._about(model).get("directions", 0))

    def image_size(self, model: ModelVersion) -> int:
        """The side of a served model's images, in px."""
        return int(self._about(model).get("image_size", 64))

    def _about(self, model: ModelVersion) -> dict[str, Any]:
        return self.described.get(model) or self.pins.about(model)

    def champion(self, label: str) -> ModelVersion:
        """The version in force of a label. Raises Problem if there is none."""
        model = self.champions.generators.get(label)
        if model is not None:
            return model
        if self.wanted is None:
            raise unavailable("the models are not loaded yet", 2)
        wanted = self.wanted.generators.get(label)
        if wanted is not None:
            raise unavailable(f"the generator for {label!r} is not loaded yet", 5)
        known = some(sorted(self.champions.generators)) or "none yet: train one"
        raise Problem(404, f"no generator for {label!r}; available: {known}", field="label")

    def no_classifier(self, field: str | None = None) -> Problem:
        """Why there is no classifier. field: of the request that needs one."""
        if self.wanted is None or self.wanted.classifier is not None:
            return unavailable("the classifier is not loaded yet", 5)
        return Problem(409, "no classifier is registered", field=field)
