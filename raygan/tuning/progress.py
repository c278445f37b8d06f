"""A search's progress, and freeing the disk space of checkpoints that nobody needs any more."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray.tune
from tqdm import tqdm

from raygan.errors import RayganError
from raygan.runtime import storage
from raygan.tuning.settings import TuneSettings
from raygan.tuning.trial import is_at

#: Ended trials whose checkpoints stay on disk, beside the baseline's, with which the best is compared at the end.
KEPT = 3

#: Latest checkpoints of each trial of a population that stay on disk: one of them may be the next to be taken over.
_LATEST = 4


class SearchProgress(ray.tune.Callback):
    """Shows a bar over the images of all trials, and deletes checkpoints of ended trials but the best and the baseline.

    Ray Tune pickles it with the search.
    """

    def __init__(self, settings: TuneSettings, search: str, baseline: Mapping[str, Any] | None = None):
        self._runs, self._search = storage.join(settings.storage, "runs"), search
        self._baseline = baseline
        self._length = round(settings.trial_kimg * 1000)
        self._kids: dict[str, float] = {}
        self._images: dict[str, int] = {}
        self._ended: dict[str, str] = {}
        self._bar: tqdm | None = None
        self._trials = settings.trials
        self._copies: dict[str, list[Any]] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported a KID."""
        number = trial.trial_id
        self._kids[number] = min(self._kids.get(number, math.inf), result.get("kid", math.inf))
        self._images[number] = max(self._images.get(number, 0), int(result.get("images", 0)))
        self._show(trials)

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        """A trial of a population has saved a checkpoint.

        A trial that takes over another one's holds it until it has saved its own: it may wait long for cores.
        """
        copies = self._copies.setdefault(trial.trial_id, [])
        copies.append(checkpoint)
        held = {each.checkpoint.path for each in trials if each.checkpoint}
        for old in [each for each in copies[:-_LATEST] if each.path not in held]:
            copies.remove(old)
            with suppress(*storage.FAILURES):  # it only takes space
                old.filesystem.delete_dir(old.path)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has finished or was stopped."""
        self._end(trial, "done", trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        self._end(trial, "failed", trials)

    def close(self) -> None:
        """Close the bar, leaving its last line on screen."""
        if self._bar is not None:
            self._show([])
            self._bar.close()

    def _end(self, trial: Any, how: str, trials: list[Any]) -> None:
        self._ended[trial.trial_id] = how
        self._show(trials)
        ended = sorted((self._kids.get(number, math.inf), number) for number in self._ended)
        baseline = {each.trial_id for each in trials if self._baseline and is_at(each.config, self._baseline)}
        for _, number in ended[KEPT:]:
            if number in baseline:
                continue
            try:
                storage.delete_folders(self._runs, f"{self._search}.{number}*/checkpoint_*")
            except RayganError as error:  # they only take space
                tqdm.write(f"warning: {error}", file=sys.stderr)

    def _show(self, trials: list[Any]) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._trials * self._length, desc="search", unit="img", unit_scale=True)
        # For the time left, images that a stopped trial will not train count as done.
        skipped = sum(self._length - self._images.get(number, 0) for number in self._ended)
        self._bar.total = self._trials * self._length - skipped
        running = sum(trial.status == "RUNNING" for trial in trials)
        failed = sum(how == "failed" for how in self._ended.values())
        best = min(self._kids.values(), default=math.inf)
        self._bar.set_postfix_str(
            f"{len(self._ended) - failed} done, {running} running, {failed} failed, best KID {best:.3g}", refresh=False
        )
        self._bar.update(sum(self._images.values()) - self._bar.n)
