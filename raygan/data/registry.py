"""The filters by name: the allowed values of `--skip`, and the reasons in reports and contact sheets."""

from __future__ import annotations

from typing import Any

from raygan.registry import Registry

#: Subclasses of `raygan.data.filters.Filter`, in the order in which they judge a photo: the first to object gives
#: the reason.
FILTERS: Registry[Any] = Registry(
    "raygan.filters",
    {
        "too_large": "raygan.data.filters:TooLarge",
        "too_small": "raygan.data.filters:TooSmall",
        "bad_aspect": "raygan.data.filters:BadAspect",
        "flat": "raygan.data.filters:Flat",
        "blurry": "raygan.data.filters:Blurry",
        "duplicate": "raygan.data.filters:Duplicate",
        "near_duplicate": "raygan.data.filters:NearDuplicate",
        "outlier": "raygan.data.filters:Outlier",
    },
)
