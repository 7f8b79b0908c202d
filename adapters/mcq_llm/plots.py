"""Pictures of a report: SVG that takes its colours from the page, so that it follows light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mcq_llm.summary import LayerLine, Summary

# Colours that matplotlib writes, and what each becomes on the page.
COLOURS = {"#000001": "var(--muted)", "#000002": "var(--line)", "#000003": "var(--before)", "#000004": "var(--accent)"}
TEXT, GRID, BEFORE, AFTER = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mcq",
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def error_panels(summary: Summary) -> dict[str, str]:
    """Draw the errors of each kind of layer over depth, all to the same logarithmic scale.

    Returns
    -------
    dict of str to str
        An SVG element for each kind.
    """
    errors = [error for line in summary.lines for error in (line.error_before, line.error_after) if error > 0]
    limits = (min(errors, default=1e-3) / 1.3, max(errors, default=1.0) * 1.3)
    depths = (min(line.depth for line in summary.lines), max(line.depth for line in summary.lines))
    with mpl.rc_context(STYLE):
        return {
            kind: _panel(summary.of_kind(kind), limits, depths, f"panel{index}-")
            for index, kind in enumerate(summary.kinds)
        }


def _panel(lines: list[LayerLine], limits: tuple[float, float], depths: tuple[int, int], prefix: str) -> str:
    figure = Figure(figsize=(3.0, 1.85), layout="constrained")
    axes = figure.subplots()
    # Before there is data, because matplotlib warns of errors of zero when it chooses limits itself.
    axes.set_yscale("log")
    axes.set_ylim(limits)
    axes.set_xlim(depths[0] - 0.5, depths[1] + 0.5)
    _draw(axes, lines, "error_before", BEFORE)
    _draw(axes, lines, "error_after", AFTER)
    decades = math.log10(limits[1] / limits[0])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 1.5 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    return _element(figure, prefix)


def _draw(axes: Axes, lines: Sequence[LayerLine], field: str, colour: str) -> None:
    by_depth: dict[int, list[float]] = {}
    for line in lines:
        by_depth.setdefault(line.depth, []).append(getattr(line, field))
    means = [sum(values) / len(values) for values in by_depth.values()]
    axes.plot(list(by_depth), means, color=colour, linewidth=1.5, marker="o", markersize=2.6)


def _element(figure: Figure, prefix: str) -> str:
    """Return the SVG element alone: no size, no metadata, no foreign addresses, ids that are unique on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", opening)
    text = f"{opening}>{rest}".replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return re.sub("|".join(COLOURS), lambda match: COLOURS[match[0]], text)
