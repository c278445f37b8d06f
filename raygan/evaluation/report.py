"""The report card as one self-contained HTML page, with its images and charts inside.

The page has a section for each label, and one for all together: a table with a column for each candidate under each
feature network, charts of the metrics that have a standard error, histograms of the classifier's confidence and of
animal mass, samples, and samples beside their nearest real photos. Rows, arrows and explanations come from `METRICS`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raygan import charts, pictures
from raygan.evaluation.candidates import BASELINES, REAL_PHOTOS
from raygan.evaluation.collect import ImageSet
from raygan.evaluation.verdict import Score, Verdict
from raygan.metrics.distances import FID_STEADY
from raygan.metrics.registry import METRICS
from raygan.sampling.generators import ALL

#: File name of the page in its folder and among the run's artifacts.
PAGE = "report.html"

#: Samples shown of each candidate, and samples shown beside their nearest real photo.
SHOWN, NEAREST_SHOWN = 48, 8

_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}thead th{vertical-align:bottom;font-weight:600}
.best{font-weight:700}.flag{background:#fff4d6;padding:.5em .8em;margin:.4em 0}img{max-width:100%}
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top}figcaption{font-size:13px;color:#555}
.scroll{overflow-x:auto}thead .network{text-align:center;border-left:1px solid #ddd}
dt{font-weight:600}dd{margin:0 0 .4em 1em}
"""


def flags(
    verdicts: Sequence[Verdict], reals: Mapping[str, ImageSet], wanted: int, about: Mapping[str, Any] | None
) -> list[str]:
    """What a reader must know before comparing the numbers.

    Args:
        verdicts: at least one.
        reals: photos that were compared with, by label.
        wanted: samples of each label that the user asked for.
        about: what the classifier's trainer recorded about it; None without a classifier.
    """
    fewest = min(len(verdict.samples) for verdict in verdicts)
    fewest_reals = min(len(real) for real in reals.values())
    least = min(fewest, fewest_reals)
    found = []
    if least < FID_STEADY:
        found.append(
            f"FID between {fewest:,} samples and {fewest_reals:,} photos is biased upwards (steady from about "
            f"{FID_STEADY:,} of each): compare it only with FID of as many images, and trust KID, which is unbiased "
            f"and has a standard error"
        )
    if any(least <= vectors.shape[1] for verdict in verdicts for vectors in verdict.samples.features.values()):
        found.append(f"{least:,} images are fewer than features have dimensions: FID's covariance is singular")
    if fewest < wanted:
        found.append(f"only {fewest:,} of {wanted:,} samples were drawn: as many as photos are held out as a baseline")
    unknown = sorted({v.label for v in verdicts if v.confidence is None and v.label != ALL})
    if about is not None and unknown:
        found.append(f"the classifier doesn't know {', '.join(unknown)}: there is no agreement with it")
    if about and about.get("real") and any(verdict.candidate == REAL_PHOTOS for verdict in verdicts):
        found.append(
            "the baseline is of training photos, from which the classifier may have learned: its agreement with them "
            "says little about photos that are new to it"
        )
    if about and about.get("generated"):
        found.append(
            f"the classifier learned from generated images ({about.get('generators', 'of unknown generators')}): "
            f"its verdict on them is not independent"
        )
    return found


def page(name: str, record: Mapping[str, Any], verdicts: Sequence[Verdict], reals: Mapping[str, ImageSet]) -> str:
    """The whole page.

    Args:
        name: the report's.
        record: the content of report.json.
        verdicts: at least one.
        reals: photos that were compared with, by label.
    """
    labels = list(dict.fromkeys(verdict.label for verdict in verdicts))
    sections = [_section(label, [v for v in verdicts if v.label == label], reals) for label in labels]
    warnings = "".join(f'<p class="flag">{html.escape(flag)}</p>' for flag in record["flags"])
    made_of = "; ".join(
        f"{candidate}: {', '.join(names)}" for candidate, names in record["candidates"].items() if names
    )
    compared = ", ".join(f"{count:,} of {label}" for label, count in record["real_photos"].items())
    used = {score.metric for verdict in verdicts for score in verdict.scores}
    meanings = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(metric.meaning)}</dd>"
        for name, metric in METRICS.items()
        if name in used
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Report card {html.escape(name)}</h1>"
        f"<p>Compared with real photos: {html.escape(compared)}. {html.escape(made_of)}</p>"
        f"{_decided(record['decided'])}{warnings}{''.join(sections)}"
        f"<h2>What the numbers mean</h2><dl>{meanings}</dl></body></html>\n"
    )


def _decided(decided: Mapping[str, Sequence[str]]) -> str:
    """What each network has decided, as a list."""
    items = "".join(
        f"<li>{html.escape(network)} {html.escape(', and '.join(deeds) if deeds else 'decided nothing here')}</li>"
        for network, deeds in decided.items()
    )
    return f"<p>A network flatters what it chose itself; judge by one that decided nothing:</p><ul>{items}</ul>"


def _section(label: str, verdicts: Sequence[Verdict], reals: Mapping[str, ImageSet]) -> str:
    """Heading, table, charts and images of one label."""
    scores = [(score, verdict.candidate) for verdict in verdicts for score in verdict.scores]
    of_features = _rows([(score, candidate) for score, candidate in scores if score.network])
    of_images = _rows([(score, candidate) for score, candidate in scores if not score.network])
    candidates = [verdict.candidate for verdict in verdicts]
    parts = [f"<h2>{html.escape(label)}</h2>", _table(of_features, candidates)]
    if of_images:
        parts.append(_table(of_images, candidates))
    parts += [
        _bars(next(iter(row.values())).name, row)
        for networks in of_features.values()
        for row in networks.values()
        if any(score.error is not None for score in row.values())
    ]
    parts.append(_histograms(label, verdicts))
    if label in reals:
        photos = reals[label].pixels
        shown = photos[pictures.spread(SHOWN, len(photos))]
        parts.append(_figure(_grid(shown), "real photos to compare with"))
        parts += [_figure(_grid(v.samples.pixels[:SHOWN]), v.candidate) for v in verdicts]
        parts += [
            _figure(_grid(_beside_nearest(v, photos)), f"{v.candidate}: samples and their nearest real photos")
            for v in verdicts
        ]
    return "".join(parts)


#: Scores by row title, network and candidate.
_Rows = dict[str, dict[str, dict[str, Score]]]


def _rows(scores: Sequence[tuple[Score, str]]) -> _Rows:
    """The scores of a table, each with its candidate, as rows in the order of the registry."""
    rows: _Rows = {}
    order = METRICS.names()
    for score, candidate in sorted(scores, key=lambda pair: order.index(pair[0].metric)):
        title = score.name.removesuffix(f"_{score.network}")
        rows.setdefault(title, {}).setdefault(score.network or "", {})[candidate] = score
    return rows


def _table(rows: _Rows, candidates: Sequence[str]) -> str:
    """The rows, with a column for each candidate under each network."""
    networks = list(dict.fromkeys(network for row in rows.values() for network in row))
    names = "".join(f"<th>{html.escape(candidate)}</th>" for candidate in candidates)
    over = "".join(f'<th class="network" colspan="{len(candidates)}">{html.escape(name)}</th>' for name in networks)
    head = f"<tr><th></th>{over}</tr>" if any(networks) else ""
    head += f"<tr><th></th>{names * len(networks)}</tr>"
    body = "".join(_row(title, row, networks, candidates) for title, row in rows.items())
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(title: str, row: Mapping[str, Mapping[str, Score]], networks: Sequence[str], candidates: Sequence[str]) -> str:
    """A metric's row, with the best of the generators in bold under each network."""
    better = METRICS.load(next(iter(next(iter(row.values())).values())).metric).better
    cells = "".join(
        _cell(of_network.get(candidate), None if candidate in BASELINES else _best(of_network, better))
        for network in networks
        for of_network in [row.get(network, {})]
        for candidate in candidates
    )
    return f"<tr><td>{html.escape(title)}{_ARROWS[better]}</td>{cells}</tr>"


def _best(scores: Mapping[str, Score], better: str | None) -> float | None:
    """The best generator's value; None if there is no best."""
    values = {score.value for candidate, score in scores.items() if candidate not in BASELINES}
    if better is None or len(values) < 2:
        return None
    return max(values) if better == "higher" else min(values)


def _cell(score: Score | None, best: float | None) -> str:
    if score is None:
        return "<td>–</td>"
    if score.error is not None:
        text = f"{score.value:.4f} ± {score.error:.4f}"
    else:
        text = f"{score.value:.3g}" if abs(score.value) < 1000 else f"{score.value:,.0f}"
    return f'<td class="best">{text}</td>' if score.value == best else f"<td>{text}</td>"


def _bars(name: str, row: Mapping[str, Score]) -> str:
    metric = next(iter(row.values())).metric
    better = METRICS.load(metric).better
    caption = f"{metric} with its standard error" + (f"; {better} is better" if better else "")
    return _figure(charts.bars({c: (score.value, score.error or 0.0) for c, score in row.items()}, name), caption)


def _histograms(label: str, verdicts: Sequence[Verdict]) -> str:
    panels: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        if verdict.confidence is not None:
            title = f"classifier's probability of {label}"
            panels.setdefault(title, {})[verdict.candidate] = verdict.confidence.numpy()
        if verdict.samples.mass is not None:
            panels.setdefault(f"animal mass of {label}", {})[verdict.candidate] = verdict.samples.mass.numpy()
    return _figure(charts.histograms(panels, "probability"), "how sure the networks are") if panels else ""


def _beside_nearest(verdict: Verdict, photos: Tensor) -> Tensor:
    """The first samples, each followed by its nearest photo."""
    nearest = photos[verdict.nearest[:NEAREST_SHOWN]]
    return torch.stack([verdict.samples.pixels[:NEAREST_SHOWN], nearest], dim=1).flatten(0, 1)


def _grid(images: Tensor) -> bytes:
    return pictures.png(pictures.grid(images, 8))


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
