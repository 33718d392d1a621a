"""report.html: one file that shows an evaluation, with nothing to load from elsewhere and
everything foreign escaped.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from latentkit.evaluation.charts import Points, draw_histogram, draw_lines
from latentkit.evaluation.evaluate import Evaluation
from latentkit.evaluation.images import DIFFERENCE_GAIN, SHOWN_SIDE, GallerySample
from latentkit.store.columns import escape

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1f23; --soft: #5d6670; --rule: #d9dee3; --paper: #ffffff; --line: #9db4d6;
  --main: #1f5fbf; --warn: #8a4b00;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --soft: #9aa4af; --rule: #353c44; --paper: #15181c; --line: #4d6a94;
    --main: #7fb0ff; --warn: #ffbe6b; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin-top: 2.2em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35em .7em .35em 0;
  border-bottom: 1px solid var(--rule); }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.how, .soft, figcaption { color: var(--soft); font-size: .87em; overflow-wrap: anywhere; }
.warning { color: var(--warn); }
.row { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 1em; }
.charts { display: flex; flex-wrap: wrap; gap: 18px; }
figure { margin: 0; max-width: 440px; }
img { display: block; max-width: 100%; background: #888; }
svg { width: 420px; max-width: 100%; fill: var(--soft); font-size: 11px; }
svg.small { width: 180px; }
rect { fill: var(--main); }
path { fill: none; }
path.grid { stroke: var(--rule); }
path.line { stroke: var(--line); }
path.line.main { stroke: var(--main); stroke-width: 2; }
"""

PLOTTED_POINTS = 400


def write_report(document: Mapping[str, Any], found: Evaluation, curves: str = "") -> str:
    """The page's text.

    Args:
        document: the contents of metrics.json.
        curves: text of a training run's log.jsonl; empty for none.
    """
    title = f"Evaluation of {document.get('evaluated', 'a model')}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(_describe(document))}</p>',
        *(f'<p class="warning">Note: {_text(warning)}</p>' for warning in found.warnings),
        *_metric_table(document["metrics"]),
        *_pictures("Samples spread over the source", found.gallery.spread),
        *_pictures("The worst samples, by squared error", found.gallery.worst),
        *_latents(found.tables),
        *_curves(curves),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width"><title>{_text(title)}</title><style>{STYLE}</style>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(escape(text))


def _describe(document: Mapping[str, Any]) -> str:
    parts = [f"{document['num_samples']:,} samples"]
    parts += [f"{document['num_skipped']:,} skipped"] if document["num_skipped"] else []
    parts += [
        f"{name}: {document[name]}"
        for name in ("source", "posterior", "device", "seed", "latentkit", "torch")
        if name in document
    ]
    return "; ".join(parts)


# ---------------------------------------------------------------- numbers


def _metric_table(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "<h2>Numbers</h2><table><tr><th>metric</th><th>value</th><th>per sample</th><th>how it is"
        " measured</th></tr>"
    )
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    for name, metric in metrics.items():
        spread = ""
        if "std" in metric:
            spread = (
                f"± {_number(metric['std'])}, from {_number(metric['min'])} to"
                f" {_number(metric['max'])}"
            )
        value = f"{_number(metric['value'])} {metric['unit']}".strip()
        yield (
            f'<tr><td>{_text(name)}{arrows[metric["better"]]}</td><td'
            f' class="number">{_text(value)}</td><td class="number">{_text(spread)}</td><td'
            f' class="how">{_text(metric["protocol"])}; {metric["count"]:,} samples</td></tr>'
        )
    yield "</table>"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "-∞"}.get(value, value)
    return f"{value:.4f}" if 0.01 <= abs(value) < 10_000 else f"{value:.5g}"


# ---------------------------------------------------------------- pictures


def _pictures(title: str, shown: Sequence[GallerySample]) -> Iterator[str]:
    if not shown:
        return
    yield f"<h2>{title}</h2>"
    size = f"{SHOWN_SIDE} × {SHOWN_SIDE}"
    yield (
        f'<p class="soft">Source, reconstruction, {DIFFERENCE_GAIN} × their difference; of larger'
        f" ones the middle {size} pixels.</p>"
    )
    for sample in shown:
        quality = (
            f"{10 * math.log10(255**2 / sample.error):.2f} dB, not rounded"
            if sample.error
            else "the same"
        )
        view = "" if sample.view == "plain" else f" ({sample.view})"
        images = "".join(
            f'<img alt="" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
            for image in sample.images
        )
        yield (
            f"<figcaption>{_text(sample.key + view)}: {quality}</figcaption><div"
            f' class="row">{images}</div>'
        )


# ---------------------------------------------------------------- latents


def _latents(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for table in tables.values():
        if "histograms" in table:
            yield from _histograms(table)
        if "frequencies" in table:
            yield from _spectrum(table)


def _histograms(table: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Latents, channel by channel</h2>"
    yield '<p class="soft">Raw values, from the lowest to the highest.</p><div class="charts">'
    channels = table["channels"]
    for number, histogram in table["histograms"].items():
        words = (
            f"{number}: mean {channels['mean'][int(number)]:.3g}, deviation"
            f" {channels['std'][int(number)]:.3g}"
        )
        yield f"<figure>{draw_histogram(**histogram)}<figcaption>{words}</figcaption></figure>"
    config = table["model_config"]
    known = [
        f"{name} {config[name]:.6g}"
        for name in ("scaling_factor", "shift_factor")
        if config[name] is not None
    ]
    words = ", ".join([*known, "latents_mean and latents_std as in metrics.json"])
    yield f'</div><p class="soft">For the model\'s config: {words}.</p>'


def _spectrum(table: Mapping[str, Any]) -> Iterator[str]:
    frequencies, power = table["frequencies"], np.array(table["power"])
    lines = [list(zip(frequencies, channel, strict=True)) for channel in power.tolist()]
    middle = list(zip(frequencies, power.mean(axis=0).tolist(), strict=True))
    yield "<h2>Spectrum of latents</h2><figure>"
    yield draw_lines(lines, "cycles per latent (log scale)", "power", middle, log_x=True)
    yield (
        "<figcaption>Each channel, and their mean (thick). White noise is flat at its"
        " variance.</figcaption></figure>"
    )


# ---------------------------------------------------------------- curves of a training run


def _curves(text: str) -> Iterator[str]:
    series = read_curves(text)
    if not series:
        return
    yield '<h2>Training</h2><div class="charts">'
    for name, points in series.items():
        thinned = points[:: max(len(points) // PLOTTED_POINTS, 1)]
        yield f"<figure>{draw_lines([thinned], 'step', name)}</figure>"
    yield "</div>"


def read_curves(text: str) -> dict[str, Points]:
    """Numbers over steps by dotted name, from the lines of a log.jsonl; lines that aren't such
    records are passed over.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in _numbers(record, ""):
            series.setdefault(name, []).append((step, value))
    return {name: points for name, points in series.items() if len(points) > 1}


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)
