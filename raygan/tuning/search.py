"""The search itself: Ray Tune with its scheduler and search algorithm, begun or resumed.

What Tune keeps in ``<search>/tune`` is a pickle: resume searches only from storage that nobody else writes to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray.tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher

from raygan.errors import ConfigurationError
from raygan.runtime import storage
from raygan.runtime.progress import InBackground
from raygan.runtime.runs import RunRecord
from raygan.tuning.progress import SearchProgress
from raygan.tuning.settings import TuneSettings
from raygan.tuning.space import Axis, baseline_point
from raygan.tuning.trial import POPULATION, TrialRecord, is_at, read_trial


def run_search(
    settings: TuneSettings, axes: Sequence[Axis], trainable: Any, record: RunRecord, at_once: int
) -> list[TrialRecord]:
    """Run the trials, or those that an interrupted search has left.

    Args:
        settings: of the search.
        axes: the space.
        trainable: a trial, as Tune calls it.
        record: the search's folder and name.
        at_once: maximum number of trials at a time.

    Raises:
        ConfigurationError: the scheduler can't work on this space.
        RayganError: the search failed.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # otherwise Tune prints tables and hints despite verbose=0
    progress = SearchProgress(settings, record.name, baseline_point(axes))
    filesystem, folder = storage.resolve(storage.join(record.folder, "tune"))
    if ray.tune.Tuner.can_restore(folder, filesystem):
        tuner = ray.tune.Tuner.restore(
            folder,
            trainable=trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=filesystem,
        )
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=_distributions(settings, axes),
            tune_config=ray.tune.TuneConfig(
                metric="kid",
                mode="min",
                num_samples=settings.trials,
                scheduler=_scheduler(settings, axes),
                search_alg=_search_algorithm(settings, axes, at_once),
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                **storage.for_ray(record.folder),
                failure_config=ray.tune.FailureConfig(max_failures=2),
                # It also deletes a population's checkpoints: Tune's own rule would delete one that another trial is
                # about to take over.
                callbacks=[progress],
                verbose=0,
            ),
        )
    try:
        # In a thread: Ctrl-C inside Ray's own code might surface as another error.
        results = InBackground(tuner.fit, "the search", record.folder).result()
    finally:
        progress.close()
    return [read_trial(result, settings) for result in results]


def _distributions(settings: TuneSettings, axes: Sequence[Axis]) -> dict[str, Any]:
    space: dict[str, Any] = {
        axis.name: ray.tune.choice(list(axis.choices)) if axis.choices else ray.tune.loguniform(axis.low, axis.high)
        for axis in axes
    }
    return {**space, POPULATION: True} if settings.scheduler == "pbt" else space


def _search_algorithm(settings: TuneSettings, axes: Sequence[Axis], at_once: int) -> SearchAlgorithm | Searcher:
    """Where trials come from: the baseline first, the others decided by the seed.

    It also limits how many run at a time: with a random search, TuneConfig's max_concurrent_trials has no effect.
    """
    first = [baseline_point(axes)]
    if settings.search == "random":
        return BasicVariantGenerator(first, max_concurrent=at_once, random_state=settings.seed)
    from ray.tune.search.optuna import OptunaSearch

    optuna = OptunaSearch(metric="kid", mode="min", points_to_evaluate=first, seed=settings.seed)
    return ConcurrencyLimiter(optuna, max_concurrent=at_once)


class _SparesBaseline(TrialScheduler):
    """Mixed into a scheduler, lets the baseline go on where the scheduler would stop it.

    The best trial is compared with the baseline at the end, which means little if only one was trained to the end.
    """

    def __init__(self, baseline: Mapping[str, Any], **options: Any):
        super().__init__(**options)
        self._baseline, self._spared = baseline, ""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What to do with a trial that has reported a KID."""
        if trial.trial_id == self._spared:  # schedulers don't expect to hear again of a trial that they have stopped
            return str(TrialScheduler.CONTINUE)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.STOP or self._spared or not is_at(trial.config, self._baseline):
            return decision
        self._spared = trial.trial_id
        return str(TrialScheduler.CONTINUE)


class SparingHalving(_SparesBaseline, AsyncHyperBandScheduler):
    """Asynchronous successive halving (ASHA) that never stops the baseline."""


class SparingMedianRule(_SparesBaseline, MedianStoppingRule):
    """The median stopping rule, but for the baseline."""


def _scheduler(settings: TuneSettings, axes: Sequence[Axis]) -> TrialScheduler:
    every, baseline = round(settings.judged_every * 1000), baseline_point(axes)
    if settings.scheduler == "asha":
        # Longer than any trial: Tune kills trials that reach max_t, and they should finish on their own.
        longest = round(settings.trial_kimg * 1000) + settings.batch_size + 1
        return SparingHalving(baseline, time_attr="images", max_t=longest, grace_period=every, reduction_factor=2)
    if settings.scheduler == "median":
        return SparingMedianRule(baseline, time_attr="images", grace_period=every, min_samples_required=3)
    if settings.scheduler == "pbt":
        rates = {axis.name: ray.tune.loguniform(axis.low, axis.high) for axis in axes if axis.name.endswith("_lr")}
        if not rates:
            raise ConfigurationError("--scheduler: pbt changes learning rates during training: name one in --space")
        return PopulationBasedTraining(
            time_attr="images", perturbation_interval=every, hyperparam_mutations=rates, quantile_fraction=0.25
        )
    return FIFOScheduler()
