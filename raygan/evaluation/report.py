"""The report card as one HTML page that needs nothing else: pictures and charts are inside it.

A section for each label (and one for all together) has a table with a column for each candidate, charts with standard
errors, the samples, their nearest real photos, and histograms of the classifier's confidence and of animal mass.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from raygan import charts, pictures

if TYPE_CHECKING:
    from raygan.evaluation.verdict import Reals, Verdict

#: File name of the page in its folder and among the run's artifacts.
PAGE = "report.html"

#: Candidates that show what numbers mean, and compete with nobody.
BASELINES = ("real photos", "untrained", "noise")

#: Samples shown of each candidate, and samples shown beside their nearest real photo.
SHOWN, NEAREST_SHOWN = 48, 8

#: Metrics in the order of the table: whether more is better (None: neither end is good), and what they mean.
MEANINGS: dict[str, tuple[bool | None, str]] = {
    "fid": (False, "distance between the Gaussians nearest to the features; 0 is the same set"),
    "kid": (False, "kernel distance between the features, unbiased, with its standard error; about 0 is the same set"),
    "precision": (True, "share of samples that lie among the real photos, by features scaled to unit length"),
    "recall": (True, "share of real photos that lie among the samples, likewise"),
    "density": (True, "how densely real photos surround the samples; 1 is as densely as each other"),
    "coverage": (True, "share of real photos with a sample near by"),
    "diversity": (None, "how unlike samples are to each other; 1 is as unlike as real photos"),
    "train_distance": (
        None,
        "distance to the nearest real photo; 1 is as far as real photos from each other, less is copying",
    ),
    "copies": (None, "share of samples nearer to a real photo than 99 % of real photos are to another; 1 % is chance"),
    "agreement": (
        True,
        "share of samples that the classifier calls by their label; noise is called something, too",
    ),
    "confidence": (True, "mean probability that the classifier gives to the label"),
    "animal_mass": (True, "mean ImageNet probability of the label's animals, by EfficientNet-Lite0 at 160 px"),
}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}thead th{vertical-align:bottom;font-weight:600}
.best{font-weight:700}.flag{background:#fff4d6;padding:.5em .8em;margin:.4em 0}img{max-width:100%}
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top}figcaption{font-size:13px;color:#555}
.scroll{overflow-x:auto}dt{font-weight:600}dd{margin:0 0 .4em 1em}
"""


def page(name: str, record: Mapping[str, Any], verdicts: Sequence[Verdict], reals: Mapping[str, Reals]) -> str:
    """The whole page. record: what report.json holds."""
    labels = list(dict.fromkeys(verdict.label for verdict in verdicts))
    sections = [_section(label, [v for v in verdicts if v.label == label], reals) for label in labels]
    flags = "".join(f'<p class="flag">{html.escape(flag)}</p>' for flag in record["flags"])
    made_of = "; ".join(
        f"{candidate}: {', '.join(names)}" for candidate, names in record["candidates"].items() if names
    )
    compared = ", ".join(f"{count:,} of {label}" for label, count in record["real_photos"].items())
    used = {_base(metric) for verdict in verdicts for metric in verdict.metrics}
    meanings = "".join(
        f"<dt>{metric}</dt><dd>{html.escape(text)}</dd>" for metric, (_, text) in MEANINGS.items() if metric in used
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Report card {html.escape(name)}</h1>"
        f"<p>Compared with real photos: {html.escape(compared)}. {html.escape(made_of)}</p>"
        f"{flags}{''.join(sections)}<h2>What the numbers mean</h2><dl>{meanings}</dl></body></html>\n"
    )


def _section(label: str, verdicts: Sequence[Verdict], reals: Mapping[str, Reals]) -> str:
    parts = [f"<h2>{html.escape(label)}</h2>", _table(verdicts)]
    for metric in dict.fromkeys(
        m for v in verdicts for m in v.metrics if _base(m) == "kid" and not m.endswith("_error")
    ):
        values = {v.candidate: (v.metrics[metric], v.metrics[f"{metric}_error"]) for v in verdicts}
        parts.append(_figure(charts.bars(values, metric), "KID with its standard error; less is better"))
    parts.append(_histograms(label, verdicts))
    if label in reals:
        real = reals[label].pixels
        shown = real[pictures.spread(SHOWN, len(real))]
        parts.append(_figure(_grid(shown), "real photos that are compared with"))
        for verdict in verdicts:
            parts.append(_figure(_grid(verdict.look.pixels[:SHOWN]), f"{verdict.candidate}"))
        for verdict in verdicts:
            parts.append(
                _figure(_neighbours(verdict, real), f"{verdict.candidate}: samples and their nearest real photos")
            )
    return "".join(parts)


def _table(verdicts: Sequence[Verdict]) -> str:
    names = [n for n in dict.fromkeys(n for v in verdicts for n in v.metrics) if not n.endswith("_error")]
    names.sort(key=lambda name: list(MEANINGS).index(_base(name)))
    best = {name: _best(name, verdicts) for name in names}
    head = "".join(f"<th>{html.escape(v.candidate)}</th>" for v in verdicts)
    rows = "".join(
        f"<tr><td>{_heading(name)}</td>{''.join(_cell(name, v, best[name]) for v in verdicts)}</tr>" for name in names
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _best(name: str, verdicts: Sequence[Verdict]) -> float | None:
    """The best value of the generators, which is shown in bold."""
    more_is_better = MEANINGS[_base(name)][0]
    values = [v.metrics[name] for v in verdicts if name in v.metrics and v.candidate not in BASELINES]
    if more_is_better is None or len(set(values)) < 2:
        return None
    return max(values) if more_is_better else min(values)


def _heading(name: str) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[MEANINGS[_base(name)][0]]
    return html.escape(name) + arrow


def _cell(name: str, verdict: Verdict, best: float | None) -> str:
    if name not in verdict.metrics:
        return "<td>–</td>"
    value = verdict.metrics[name]
    error = verdict.metrics.get(f"{name}_error")
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if error is not None:
        text = f"{value:.4f} ± {error:.4f}"
    return f'<td class="best">{text}</td>' if value == best else f"<td>{text}</td>"


def _base(metric: str) -> str:
    """The metric's name without the number of samples and the network."""
    return re.sub(r"\d+.*", "", metric)


def _histograms(label: str, verdicts: Sequence[Verdict]) -> str:
    panels: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        if verdict.confidence is not None:
            panels.setdefault(f"classifier's probability of {label}", {})[verdict.candidate] = (
                verdict.confidence.numpy()
            )
        if verdict.look.mass is not None:
            panels.setdefault(f"animal mass of {label}", {})[verdict.candidate] = verdict.look.mass.numpy()
    return _figure(charts.histograms(panels, "probability"), "how sure the networks are") if panels else ""


def _grid(images: torch.Tensor) -> bytes:
    return pictures.png(pictures.grid(images, 8))


def _neighbours(verdict: Verdict, real: torch.Tensor) -> bytes:
    pairs = torch.stack([verdict.look.pixels[:NEAREST_SHOWN], real[verdict.closest[:NEAREST_SHOWN]]], dim=1).flatten(
        0, 1
    )
    return pictures.png(pictures.grid(pairs, 8))


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
