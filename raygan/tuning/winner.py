"""The best trial of a search, measured once more: its unbiased KID, and the learning rates that led to it.

The lowest of many noisy KIDs is biased low. The winner and the baseline are measured again, on photos and latents that
played no part in choosing, the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.errors import RayganError
from raygan.training.fresh import Fresh, fresh_metrics, judges, measure_fresh
from raygan.training.monitor import can_hold_back
from raygan.training.settings import TrainSettings
from raygan.tuning.trial import TrialRecord


@dataclass(frozen=True)
class Winner:
    """What is known about the best trial.

    Attributes:
        summary: a few lines for the user.
        kid: by the network that chose it, on photos and samples that did not; None if it could not be measured.
        better: whether it beats the baseline by more than the standard error, by every network; None if that is
            unknown, or if the baseline was trained on fewer images than the best trial's checkpoint.
        metrics: for MLflow.
    """

    summary: str
    kid: float | None = None
    better: bool | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def measure_winner(base: TrainSettings, best: TrialRecord, baseline: TrialRecord | None) -> Winner:
    """Measure the best trial, and the baseline if it is another one.

    Args:
        base: of all trials, with the feature network as workers load it.
        best: the trial of the lowest KID.
        baseline: the trial with the baseline's values, if it was run.
    """
    rival = baseline if baseline is not best and baseline and baseline.is_kept else None
    try:
        data = DataSet.open(base.data)
        held_out = data.manifest.count("validation", base.label)
        if not can_hold_back(held_out):
            return Winner(f"all {held_out} validation photos chose the best trial: its KID is too low by chance")
        generators = [trial.generator()[0] for trial in (rival, best) if trial]
        photos = open_photos(data, "validation", base.label)
        found = measure_fresh(
            generators, photos, judges(base.quality_network), base.quality_samples, base.cpus_per_worker
        )
    except RayganError as error:
        return Winner(f"the best trial could not be measured afresh: {error}")
    lines = [f"measured again on fresh samples and {found[0].photos} photos that chose no trial:"]
    lines += [_line(one, best, rival) if rival else _alone(one, baseline is best) for one in found]
    comparable = rival is not None and _trained_as_long(rival, best)
    better = all(one.leads[-1][0] < -one.leads[-1][1] for one in found) if comparable else None
    return Winner("\n".join(lines), found[0].kids[-1][0], better, fresh_metrics(found))


def _alone(measured: Fresh, is_baseline: bool) -> str:
    kid, error = measured.kids[-1]
    baseline = "is the best" if is_baseline else "was not measured"
    return f"{measured.metric} {kid:.3g} ± {error:.2g}; the baseline {baseline}"


def _line(measured: Fresh, best: TrialRecord, rival: TrialRecord) -> str:
    kid, error = measured.kids[-1]
    lead, of_lead = measured.leads[-1]
    verdict = "better" if lead < -of_lead else "worse" if lead > of_lead else "not better"
    verdict += f" by more than the standard error (difference {lead:+.2g} ± {of_lead:.2g})"
    if not _trained_as_long(rival, best):
        verdict = f"not compared, since the baseline was trained for only {rival.images / 1000:g} kimg"
    return (
        f"{measured.metric} {kid:.3g} ± {error:.2g} at {best.kid_at / 1000:g} kimg, "
        f"the baseline's {measured.kids[0][0]:.3g} at {rival.kid_at / 1000:g} kimg: {verdict}"
    )


def _trained_as_long(rival: TrialRecord, best: TrialRecord) -> bool:
    """Whether the rival has seen the images of the best checkpoint, so that its own best had as good a chance."""
    return rival.images >= best.kid_at


def rates_of(trial: TrialRecord) -> dict[str, Any]:
    """The learning rates that led to a trial's best checkpoint, as settings; empty if they never changed.

    A population changes a trial's rates and copies weights between trials: the last rates are those of another time.
    """
    if not trial.is_kept:
        return {}
    first, *later = trial.generator()[1].get("rates") or [[0, None, None]]
    if not later:
        return {}
    changes = [f"{images / 1000:g}:{generator:g}:{critic:g}" for images, generator, critic in later]
    return {"generator_lr": first[1], "critic_lr": first[2], "rate_changes": changes}
