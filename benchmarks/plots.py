"""Results as pictures: one for each lane and mode, as SVG and PNG. Needs the extra `bench`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.figures import middle
from benchmarks.modes import MODES, Column
from benchmarks.results import Results, Series
from benchmarks.subjects import FLOOR, GATEWAY, LANES
from benchmarks.tables import number

__all__ = ["render"]

_COLOURS = {GATEWAY: "#1b6ca8", FLOOR: "#555555"}
_OTHER = "#b0b7bd"
_FORMATS = ("svg", "png")


def render(results: Results, directory: Path) -> list[Path]:
    """
    Draw what was measured, the first figure of each mode.

    Returns: the files. Raises: ImportError without matplotlib; OSError.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["font.family"] = "sans-serif"
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for lane, mode in results.parts():
        measured = [series for series in results.of(lane, mode) if series.samples]
        if len(measured) > 1:
            files += _drawn(measured, directory / f"{lane}-{mode}")
    return files


def _drawn(measured: list[Series], stem: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    lane, mode = measured[0].lane, MODES[measured[0].mode]
    column = mode.columns[0]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.38 * len(measured)), layout="constrained")
    _bars(axes, measured, column)
    axes.set_title(f"{LANES[lane]}\n{mode.title}", fontsize=9, loc="left")
    wrong = any(series.errors for series in measured)
    note = "; *: some of its answers were wrong" if wrong else ""
    axes.set_xlabel(f"{column.title} (less is better{note})", fontsize=8)
    files = []
    for form in _FORMATS:
        file = stem.with_suffix(f".{form}")
        # The same picture is the same file.
        figure.savefig(file, dpi=110, metadata={"Date": None} if form == "svg" else {})
        files.append(file)
    plt.close(figure)
    return files


def _bars(axes: Any, measured: list[Series], column: Column) -> None:
    """A bar for the median of each, and a line from the least to the greatest of its rounds."""
    names = [f"{series.subject} *" if series.errors else series.subject for series in measured]
    rounds = [
        [value for value in series.values(column.key) if not math.isnan(value)] or [0.0]
        for series in measured
    ]
    values = [middle(each) for each in rounds]
    below = [value - min(each) for value, each in zip(values, rounds, strict=True)]
    above = [max(each) - value for value, each in zip(values, rounds, strict=True)]
    colours = [_COLOURS.get(series.subject, _OTHER) for series in measured]
    bars = axes.barh(names, values, color=colours, xerr=[below, above], ecolor="#999999")
    shown = [f" {number(value, column.digits)}" if value else " -" for value in values]
    axes.bar_label(bars, shown, fontsize=8)
    axes.margins(x=0.18)
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
