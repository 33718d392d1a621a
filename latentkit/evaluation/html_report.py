"""report.html: one file that shows an evaluation, loads nothing from elsewhere and escapes all
foreign text. Its template is report.html.jinja.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from latentkit.evaluation.charts import LineChart, plot_lines, short
from latentkit.evaluation.evaluate import Evaluation
from latentkit.evaluation.images import DIFFERENCE_GAIN, SHOWN_SIDE
from latentkit.store.columns import escape


def write_report(document: Mapping[str, Any], found: Evaluation) -> str:
    """Return the page's text."""
    page = Environment(
        loader=PackageLoader("latentkit.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: escape(value) if type(value) is str else value,  # text, not markup
    )
    page.filters |= {
        "base64": _in_base64,
        "decibels": _decibels,
        "number": _number,
        "short": short,
    }
    return page.get_template("report.html.jinja").render(
        title=f"Evaluation of {document.get('evaluated', 'a model')}",
        about=list(_describe(document)),
        document=document,
        found=found,
        gain=DIFFERENCE_GAIN,
        side=SHOWN_SIDE,
        spectrum=_plot_spectrum,
    )


def _describe(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield short texts for the head of the page: numbers of samples, and what was evaluated."""
    yield f"{document['num_samples']:,} samples"
    if document["num_skipped"]:
        yield f"{document['num_skipped']:,} skipped"
    for name in ("source", "posterior", "device", "seed", "latentkit", "torch"):
        if name in document:
            yield f"{name}: {document[name]}"


def _in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "-∞"}.get(value, value)
    return f"{value:.4f}" if 0.01 <= abs(value) < 10_000 else f"{value:.5g}"


def _decibels(error: float) -> str:
    return f"{10 * math.log10(255**2 / error):.2f} dB, not rounded" if error else "the same"


def _plot_spectrum(table: Mapping[str, Any]) -> LineChart | None:
    """Return the chart of a latent spectrum: one line per channel, and their mean."""
    frequencies, power = table["frequencies"], np.array(table["power"])
    *lines, middle = [
        list(zip(frequencies, values, strict=True))
        for values in [*power.tolist(), power.mean(axis=0).tolist()]
    ]
    return plot_lines(lines, "cycles per latent (log scale)", "power", middle, log_x=True)
