"""Settings of a search."""

from __future__ import annotations

from typing import ClassVar, Literal

from raygan.settings import Settings, option
from raygan.training.settings import TrainSettings


class SearchOptions(Settings):
    """What is searched, how, and for how long."""

    group: ClassVar[str] = "search"

    space: list[str] = option(
        None,
        "what is searched: NAME=LOW..HIGH (log-uniform) or NAME=A,B,C, of generator_lr, critic_lr, z_dim, "
        "penalty_weight, penalty_every, n_critic, width, batch_size, warmup_kimg, ema_kimg, augment (policies joined "
        "by +, or none)",
        default_factory=lambda: ["generator_lr=3.5e-5..3.5e-3", "critic_lr=1e-5..1e-3", "z_dim=64,128,200,256"],
    )
    trials: int = option(12, "settings tried; the first are the source project's", ge=1, le=10_000)
    trial_kimg: float = option(30.0, "longest training of a trial", unit="thousands of images", gt=0)
    judgements: int = option(
        6, "times in a trial that KID is measured, and the scheduler may stop it", unit="times", ge=1, le=1000
    )
    scheduler: Literal["asha", "median", "pbt", "none"] = option(
        "asha",
        "stops losers early: asynchronous halving, the median rule; or pbt, which copies winners' weights and "
        "changes their learning rates in flight; or none",
    )
    search: Literal["random", "tpe"] = option("random", "where to look next: at random, or Optuna's TPE")
    concurrent: int | None = option(None, "most trials at a time; by default as many as fit the cluster", ge=1)
    train_best: bool = option(False, "train the best settings to the full length at the end")

    @property
    def judged_every(self) -> float:
        """Thousands of images between two measurements of KID."""
        return self.trial_kimg / self.judgements


class TuneSettings(SearchOptions, TrainSettings):
    """Everything `jobs/tune.py` can be told: a training, and what of it is searched."""

    group: ClassVar[str] = "run"
