"""Whether a new generator takes the champion's place: if its KID is better by more than chance."""

from __future__ import annotations

from pathlib import Path

from raygan import tracking
from raygan.data.photos import open_photos
from raygan.data.shards import DataSet
from raygan.models.gan import Generator, load_generator
from raygan.tracking.networks import feature_network
from raygan.tracking.promotion import Decision, beside_champion
from raygan.training.fresh import measure_fresh
from raygan.training.monitor import can_measure
from raygan.training.settings import TrainSettings


def decide(
    settings: TrainSettings, data: DataSet, generator: Generator, model: tracking.RegisteredModel, log: tracking.Run
) -> Decision:
    """Decide by the setting `promote`; "better" measures both generators on the same photos and on fresh samples.

    Args:
        settings: of the training.
        data: the shards; both are measured on the validation photos.
        generator: the new one, on the CPU.
        model: as which it is registered.
        log: gets both KIDs.
    """
    if settings.promote != "better":
        return Decision(settings.promote == "always", f"by the setting promote {settings.promote}")

    def compare(champion: tracking.RegisteredModel, folder: Path) -> Decision:
        rival, _ = load_generator(folder)
        return _unlike(generator, rival, champion) or _by_kid(settings, data, generator, rival, champion, log)

    return beside_champion(log.client, model.name, compare)


def _unlike(generator: Generator, rival: Generator, champion: tracking.RegisteredModel) -> Decision | None:
    """The decision about generators that can't be compared; None if they can."""
    size, other = generator.settings.image_size, rival.settings.image_size
    if size != other:
        return Decision(False, f"it draws {size} px images, and version {champion.version} draws {other} px ones")
    if generator.labels != rival.labels:
        draws, others = (", ".join(one.labels) or "one label" for one in (generator, rival))
        return Decision(False, f"it draws {draws}, and version {champion.version} draws {others}")
    return None


def _by_kid(
    settings: TrainSettings,
    data: DataSet,
    generator: Generator,
    rival: Generator,
    champion: tracking.RegisteredModel,
    log: tracking.Run,
) -> Decision:
    held_out = data.manifest.count("validation", settings.label)
    if not can_measure(held_out):
        return Decision(
            False, f"{held_out} validation photos are too few to compare it with version {champion.version}"
        )
    photos = open_photos(data, "validation", settings.label)
    network = feature_network(settings, settings.quality_network, "--quality-network")
    samples, cores = settings.quality_samples, settings.cpus_per_worker
    print(f"comparing with {champion.name}/{champion.version} on {samples} fresh samples of each", flush=True)
    (found,) = measure_fresh([rival, generator], photos, [network], samples, cores)
    (old, _), (new, _) = found.kids
    lead, error = found.leads[1]
    log.log_tags({"champion": f"{champion.name}/{champion.version}", f"champion_{found.metric}": f"{old:.4g}"})
    better = lead < -error
    compared = "better" if better else "not better by more than the standard error"
    return Decision(
        better,
        f"its {found.metric} of {new:.3g} against {old:.3g} of version {champion.version} is {compared} "
        f"(difference {lead:+.2g}, standard error {error:.2g})",
    )
