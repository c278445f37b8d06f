"""What each feature network has already decided about the photos and generators that it judges.

A network that has removed photos or picked a checkpoint prefers what it chose, and its numbers flatter it. Only a
network that decided nothing can tell whether the choice was good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from raygan.evaluation.candidates import Candidate
from raygan.models.registry import DEFAULT_FEATURES
from raygan.sampling.generators import NamedGenerator


def decisions(
    features: Mapping[str, str], configuration: Mapping[str, Any], candidates: Sequence[Candidate]
) -> dict[str, list[str]]:
    """What each network decided, in words; nothing for a network that decided nothing.

    Args:
        features: address by the network's name in metrics.
        configuration: of the shards, as their manifest has it.
        candidates: with what their trainings recorded.
    """
    found: dict[str, list[str]] = {name: [] for name in features}
    generators = {source.name: source for one in candidates for source in one.sources.values() if _is_trained(source)}
    for name, address in features.items():
        if "outlier" not in configuration.get("skip", ()) and configuration.get("outlier_network") in (name, address):
            found[name].append("picked outliers among the photos")
        for generator in generators.values():
            # Generators made before trainings recorded their network were chosen by the default one, as a rule.
            known = "quality_network" in generator.about
            if generator.about.get("quality_network", DEFAULT_FEATURES) in (name, address):
                found[name].append(f"{'chose' if known else 'may have chosen'} the checkpoint of {generator.name}")
    return found


def _is_trained(source: object) -> TypeGuard[NamedGenerator]:
    return isinstance(source, NamedGenerator) and bool(source.about)
