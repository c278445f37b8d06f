"""The model card: what a registered model is, what it learned from, how good it is, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Longest description that MLflow's databases keep, in characters.
_LENGTH = 5000

#: Parameters that say where things were, not how the model was made.
_LEFT_OUT = ("storage", "experiment", "name", "config", "allow_changes", "max_failures", "promote", "gpu")

_USES = {
    "generator": """```python
images = mlflow.pyfunc.load_model("models:/{name}@champion").predict(
    pandas.DataFrame({{"seed": [1, 2, 3]{label}}}), params={{"truncation": 0.7}}
)  # uint8 (3, H, W, 3)
```""",
    "classifier": """```python
probabilities = mlflow.pyfunc.load_model("models:/{name}@champion").predict(
    pandas.DataFrame({{"image": [open("photo.jpg", "rb").read()]}})
)  # a column for each label
```""",
}

_LIMITS = {
    "generator": """Meant for studying GANs and for experiments with generated training data. The images show no real
animal and are no evidence of anything. It draws only what its photos show: faces cut the same way, of the animals named
above. It may repeat traits of its training photos; `train_distance` below 1 suggests copies. Metrics hold for its own
held-out photos only.""",
    "classifier": """Meant for telling apart the labels above on photos like those it learned from, and for judging
generators of the same labels. It has to give every picture one of its labels, also a picture of something else. Do not
base decisions about people or animals on it. Metrics hold for its own held-out photos only.""",
}


def card(name: str, kind: str, folder: Path, params: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Write a model's card.

    Args:
        name: the registered model's.
        kind: "generator" or "classifier".
        folder: the model's, with its JSON file.
        params: of its run.
        metrics: of the model; a name says on which network and how many images it was measured.

    Returns:
        Markdown that fits MLflow's databases.
    """
    description = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    about = description.get("about", {})
    text = "\n\n".join(
        [
            f"# {name}",
            _what(kind, description),
            _USES[kind].format(name=name, label=_label(description)),
            "## Training",
            _training(about, params),
            "## Metrics",
            _table({key: f"{value:.4g}" for key, value in sorted(metrics.items())}) or "Not measured.",
            "## Use and limits",
            " ".join(_LIMITS[kind].split()),
            "## Settings",
            _table({key: value for key, value in sorted(params.items()) if key not in _LEFT_OUT}),
        ]
    )
    return text if len(text) <= _LENGTH else text[: _LENGTH - 2].rsplit("\n", 1)[0] + "\n…"


def _what(kind: str, description: dict[str, Any]) -> str:
    about = description.get("about", {})
    if kind == "classifier":
        labels = ", ".join(description["labels"])
        return f"GoogLeNet that tells apart {labels} on images of {description['image_size']} px."
    networks = description["networks"]
    drawn = ", ".join(networks["labels"]) or about.get("label", "all")
    return (
        f"Draws faces of {networks['image_size']} px ({drawn}) from seeds, by the architecture "
        f"{networks['architecture']} with latents of {networks['z_dim']} numbers. `samples.png` shows the first seeds."
    )


def _label(description: dict[str, Any]) -> str:
    """What a conditional generator's rows need beside the seed."""
    labels = description.get("networks", {}).get("labels")
    return f', "label": {json.dumps(labels[0], ensure_ascii=False)}' if labels else ""


def _training(about: dict[str, Any], params: Mapping[str, str]) -> str:
    seen = about.get("images", about["kimg"] * 1000 if "kimg" in about else None)
    facts = {
        "objective": about.get("objective"),
        "images seen": None if seen is None else f"{seen:,.0f}",
        "minutes": f"{about['minutes']:.1f}" if "minutes" in about else None,
        "photos": params.get("photos") or about.get("real"),
        "generated images": about.get("generated") or None,
        "shards' fingerprint": params.get("fingerprint") or about.get("fingerprint"),
    }
    return _table({key: str(value) for key, value in facts.items() if value is not None}) or "Not recorded."


def _table(values: Mapping[str, str]) -> str:
    rows = [f"| {key} | {value} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
