"""Settings of `jobs/tune.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from raygan.settings import Settings, option
from raygan.training.settings import TrainSettings
from raygan.tuning.space import BASELINE


class SearchOptions(Settings):
    """What is searched, how, and for how long."""

    group: ClassVar[str] = "search"

    space: list[str] = option(
        None,
        f"search space: NAME=LOW..HIGH (log-uniform; not for whole numbers) or NAME=A,B,C, where NAME is one of "
        f"{', '.join(BASELINE)} (values of augment are policies joined by +, or none)",
        default_factory=lambda: ["generator_lr=3.5e-5..3.5e-3", "critic_lr=1e-5..1e-3", "z_dim=64,128,200,256"],
    )
    trials: int = option(
        12, "number of trials; the first is the baseline, which always trains to the end", ge=1, le=10_000
    )
    trial_kimg: float = option(30.0, "maximum length of a trial", unit="thousands of images", gt=0)
    judgements: int = option(6, "KID measurements per trial; after each, the scheduler may stop it", ge=1, le=1000)
    scheduler: Literal["asha", "median", "pbt", "none"] = option(
        "asha",
        "what stops bad trials early: asynchronous halving (asha), the median rule, or nothing; pbt instead copies the "
        "weights of good trials to bad ones and changes their learning rates",
    )
    search: Literal["random", "tpe"] = option("random", "how settings are chosen: at random, or by Optuna's TPE")
    concurrent: int | None = option(None, "maximum concurrent trials; by default as many as fit the cluster", ge=1)
    train_best: bool = option(False, "train the best settings to full length at the end")

    @property
    def judged_every(self) -> float:
        """Thousands of images between two measurements of KID."""
        return self.trial_kimg / self.judgements


class TuneSettings(SearchOptions, TrainSettings):
    """All settings of `jobs/tune.py`: a training's, and what is searched."""

    group: ClassVar[str] = "run"
