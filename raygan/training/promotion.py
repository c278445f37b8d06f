"""Measures a finished generator afresh, beside the champion, whose place it takes if it is better."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from raygan import tracking
from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.errors import RayganError, some
from raygan.models.gan import Generator, load_generator
from raygan.tracking.networks import feature_network
from raygan.tracking.promotion import Decision, beside_champion
from raygan.training.fresh import Fresh, fair_metrics, judges, measure_fresh
from raygan.training.monitor import can_hold_back, can_measure
from raygan.training.settings import TrainSettings


@dataclass(frozen=True)
class Rival:
    """The champion's version, and its generator on the CPU."""

    champion: tracking.RegisteredModel
    generator: Generator


def judge(
    settings: TrainSettings, data: DataSet, generator: Generator, name: str, log: tracking.Run, *, measure: bool
) -> tuple[dict[str, float], Decision]:
    """Measure a result afresh, and decide by the setting `promote` whether it becomes the champion.

    With "better", the champion is measured beside it, on the same photos and latents.

    Args:
        settings: of the training.
        data: the shards; generators are measured on the validation photos.
        generator: the result, on the CPU.
        name: of the registered model.
        log: gets both KIDs.
        measure: by both `judges`, also where there is no champion.

    Returns:
        KIDs and their standard errors by name, and the decision. A measurement that fails gives no KIDs, and leaves the
        alias where it is: it must not end a job that is done.
    """
    rival = _rival(settings, data, generator, name, log)
    held_out = data.manifest.count("validation", settings.label)
    if measure and not can_hold_back(held_out):
        return {}, _without_fair_photos(rival, held_out)
    beside: list[Generator] = []
    if isinstance(rival, Rival):
        if not can_measure(held_out):
            few = f"{held_out} validation photos are too few to compare it with version {rival.champion.version}"
            return {}, Decision(False, few)
        beside = [rival.generator]
        print(f"comparing with {name}/{rival.champion.version} on {settings.quality_samples} fresh samples of each")
    elif not measure:
        return {}, rival
    try:
        network = feature_network(settings, settings.quality_network, "--quality-network")
        networks = judges(network) if measure else [network]
        photos = open_photos(data, "validation", settings.label)
        found = measure_fresh(
            [*beside, generator], photos, networks, settings.quality_samples, settings.cpus_per_worker
        )
    except RayganError as error:
        if measure:
            missing = f"the result could not be measured afresh: {error}"
            print(f"warning: {missing}", file=sys.stderr)
            log.log_tags({"unmeasured": missing[:500]})
        why_not = f"it could not be compared with the champion: {error}"
        return {}, Decision(False, why_not) if isinstance(rival, Rival) else rival
    metrics = fair_metrics(found) if measure else {}
    if not isinstance(rival, Rival):
        return metrics, rival
    return metrics, _by_kid(found[0], rival.champion, log)


def _without_fair_photos(rival: Rival | Decision, held_out: int) -> Decision:
    """Say that all validation photos chose the result, so that none may judge it; the decision without them."""
    print(
        f"warning: the result is only measured on the {held_out} validation photos that chose it: "
        f"prepare more photos, or a larger --validation share",
        file=sys.stderr,
    )
    chose = f"the {held_out} validation photos, on which it would be compared, are those that chose it"
    return Decision(False, chose) if isinstance(rival, Rival) else rival


def _rival(
    settings: TrainSettings, data: DataSet, generator: Generator, name: str, log: tracking.Run
) -> Rival | Decision:
    """The champion to compare with, or the decision where there is nothing to compare."""
    if settings.promote != "better":
        return Decision(settings.promote == "always", f"by the setting promote {settings.promote}")

    def load(champion: tracking.RegisteredModel, folder: Path) -> Rival | Decision:
        rival, about = load_generator(folder)
        learned, others = data.manifest.labels("train", settings.label), about.get("learned_from")
        if others and set(others) != set(learned):  # older versions don't say
            why = f"it learned from {some(learned)}, and version {champion.version} from {some(others)}"
            return Decision(False, why)
        return _unlike(generator, rival, champion) or Rival(champion, rival)

    return beside_champion(log.client, name, load)


def _unlike(generator: Generator, rival: Generator, champion: tracking.RegisteredModel) -> Decision | None:
    """The decision about generators that can't be compared; None if they can."""
    size, other = generator.settings.image_size, rival.settings.image_size
    if size != other:
        return Decision(False, f"it draws {size} px images, and version {champion.version} draws {other} px ones")
    if generator.labels != rival.labels:
        draws, others = (some(one.labels) or "one label" for one in (generator, rival))
        return Decision(False, f"it draws {draws}, and version {champion.version} draws {others}")
    return None


def _by_kid(found: Fresh, champion: tracking.RegisteredModel, log: tracking.Run) -> Decision:
    """Decide between the champion, which was measured first, and the result."""
    (old, _), (new, _) = found.kids
    lead, error = found.leads[1]
    log.log_tags({"champion": f"{champion.name}/{champion.version}", f"champion_{found.metric}": f"{old:.4g}"})
    better = lead < -error
    compared = "better" if better else "not better by more than the standard error"
    return Decision(
        better,
        f"its {found.metric} of {new:.3g} against {old:.3g} of version {champion.version} is {compared} "
        f"(difference {lead:+.2g}, standard error {error:.2g})",
        beaten=champion.version,
    )
