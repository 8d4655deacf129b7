"""Results as pictures: one for each lane and mode, as SVG and PNG. Needs the extra `bench`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.figures import middle, spread
from benchmarks.modes import MODES
from benchmarks.results import Results, Series
from benchmarks.subjects import FLOOR, GATEWAY, LANES

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
    # The same picture is the same file.
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    mpl.rcParams["svg.fonttype"] = "none"
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
    values = [middle(series.values(column.key)) for series in measured]
    _bars(axes, measured, values, column.key)
    numbers = [value for value in values if not math.isnan(value)]
    if max(numbers) > 20 * min(numbers):
        axes.set_xscale("log")
    axes.set_title(f"{LANES[lane]}\n{mode.title}", fontsize=9, loc="left")
    axes.set_xlabel(f"{column.title} (less is better)", fontsize=8)
    files = []
    for form in _FORMATS:
        file = stem.with_suffix(f".{form}")
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(file, dpi=110, metadata=metadata)
        files.append(file)
    plt.close(figure)
    return files


def _bars(axes: Any, measured: list[Series], values: list[float], key: str) -> None:
    names = [f"{series.subject} *" if series.errors else series.subject for series in measured]
    colours = [_COLOURS.get(series.subject, _OTHER) for series in measured]
    apart = [
        value * spread(series.values(key)) for series, value in zip(measured, values, strict=True)
    ]
    bars = axes.barh(names, values, color=colours, xerr=apart, ecolor="#999999")
    axes.bar_label(bars, [f" {value:,.3g}" for value in values], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if any(series.errors for series in measured):
        axes.annotate(
            "* some of its answers were wrong", (1, 0), (0, 4), "axes fraction", "offset points",
            ha="right", fontsize=7,
        )  # fmt: skip
