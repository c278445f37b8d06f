"""A search's progress, and freeing the disk space of checkpoints that nobody needs any more."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

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

    Ray Tune pickles it with the search. A resumed search has another instance than the one that was made for it: the
    bar is the class's, of which a process needs one.
    """

    _shown: ClassVar[tqdm | None] = None

    def __init__(self, settings: TuneSettings, search: str, baseline: Mapping[str, Any] | None = None):
        self._runs, self._search = storage.join(settings.storage, "runs"), search
        self._baseline = baseline
        self._length = round(settings.trial_kimg * 1000)
        self._kids: dict[str, float] = {}
        self._images: dict[str, int] = {}
        self._ended: dict[str, str] = {}
        self._trials = settings.trials
        self._copies: dict[str, list[Any]] = {}
        SearchProgress._shown = None  # an earlier search's, which is closed

    def get_state(self) -> dict[str, Any]:
        """What a resumed search has to know, in Tune's record of the search."""
        return {"kids": self._kids, "images": self._images, "ended": self._ended}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from an earlier session's state."""
        self._kids, self._images, self._ended = state["kids"], state["images"], state["ended"]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts, perhaps again."""
        self._ended.pop(trial.trial_id, None)
        self._show(trials, starting=1)  # Tune has not set its state yet

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

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The search is over."""
        self._show([])

    def close(self) -> None:
        """Close the bar, leaving its last line on screen. It shows nothing from a search that is being stopped."""
        if SearchProgress._shown is not None:
            SearchProgress._shown.close()

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

    def _show(self, trials: list[Any], starting: int = 0) -> None:
        seen = sum(self._images.values())
        # For the time left, images that a stopped trial will not train count as done.
        skipped = sum(self._length - self._images.get(number, 0) for number in self._ended)
        total = self._trials * self._length - skipped
        if SearchProgress._shown is None:
            # What an earlier session trained doesn't count as this one's speed.
            SearchProgress._shown = tqdm(initial=seen, total=total, desc="search", unit="img", unit_scale=True)
        bar = SearchProgress._shown
        bar.total = total
        running = starting + sum(trial.status == "RUNNING" for trial in trials)
        failed = sum(how == "failed" for how in self._ended.values())
        known = f", best KID {min(self._kids.values()):.3g}" if self._kids else ""
        bar.set_postfix_str(
            f"{len(self._ended) - failed} done, {running} running, {failed} failed{known}", refresh=False
        )
        bar.update(seen - bar.n)
        bar.refresh()
