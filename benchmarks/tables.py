"""Results as tables: Markdown that also reads well in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.figures import middle, ratio, spread
from benchmarks.modes import MODES
from benchmarks.results import Results, Series
from benchmarks.subjects import BEFORE, FLOOR, GATEWAY, LANES

__all__ = ["aligned", "number", "report", "summary", "table"]


def number(value: float, digits: int) -> str:
    """A figure with its decimals; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its heading, the first column text, the rest numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(rows[0]), "| " + " | ".join(rule) + " |", *map(line, rows[1:])])


def table(results: Results, lane: str, mode: str) -> str:
    """One lane in one mode: medians of the rounds, beside the floor's."""
    kind = MODES[mode]
    columns = kind.columns
    every = list(results.of(lane, mode))
    measured = [series for series in every if series.samples]
    rows = [
        ["", columns[0].title, "±", "of floor", *(each.title for each in columns[1:]), "errors"]
    ]
    for series in measured:
        rows.append(_row(results, series))
    rounds = max((len(series.samples) for series in measured), default=0)
    how = {0: "Nothing was measured.", 1: "One round."}.get(rounds, f"Medians of {rounds} rounds.")
    lines = [
        f"### {LANES[lane]}: {kind.title}",
        "",
        how,
        "",
    ]
    if measured:
        lines.append(aligned(rows))
    notes = [f"- {series.subject}: skipped: {series.skipped}" for series in every if series.skipped]
    notes += [
        f"- {series.subject}: the first of {series.errors} errors: {series.error}"
        for series in measured
        if series.errors
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _row(results: Results, series: Series) -> list[str]:
    first, *rest = MODES[series.mode].columns
    floor = results.find(series.lane, series.mode, FLOOR)
    values = series.values(first.key)
    part = ratio(values, floor.values(first.key)) if floor is not None else math.nan
    apart = spread(values)
    return [
        series.subject,
        number(middle(values), first.digits),
        "-" if math.isnan(apart) else f"{apart:.0%}",
        number(part, 2),
        *(number(middle(series.values(each.key)), each.digits) for each in rest),
        str(series.errors),
    ]


def _cheapestPeer(results: Results, lane: str, mode: str) -> Series | None:
    """Of the peers whose answers were all right."""
    key = MODES[mode].columns[0].key
    right = [
        series
        for series in results.of(lane, mode)
        if series.samples and not series.errors and series.subject not in (BEFORE, FLOOR, GATEWAY)
    ]
    return min(right, key=lambda series: middle(series.values(key)), default=None)


def summary(results: Results) -> str:
    """A line for each lane and mode: the gateway, its floor, the best of the peers."""
    rows = [["", "figure", "gateway", "floor", "of floor", "best right peer", "its figure"]]
    for lane, mode in results.parts():
        column = MODES[mode].columns[0]
        found = [results.find(lane, mode, name) for name in (GATEWAY, FLOOR)]
        found.append(_cheapestPeer(results, lane, mode))
        values = [each.values(column.key) if each is not None else [] for each in found]
        numbers = [number(middle(each), column.digits) for each in values]
        peer = found[2].subject if found[2] is not None else "-"
        part = number(ratio(values[0], values[1]), 2)
        rows.append(
            [f"{lane}, {mode}", column.title, numbers[0], numbers[1], part, peer, numbers[2]]
        )
    return "### Summary\n\n" + aligned(rows)


def report(results: Results) -> str:
    """The machine, the versions, every table, and a summary."""
    about = results.about
    versions = dict.fromkeys(
        f"{series.subject} {series.version}" for series in results.series if series.samples
    )
    lines = [
        f"{about['date']}; Python {about['python']}; {about['system']}; "
        f"load average at the start {about['load']}.",
        "",
        "Measured: " + ", ".join(versions) + ".",
        *(f"Skipped: {name}: {why}." for name, why in results.absent.items()),
    ]
    for lane, mode in results.parts():
        lines += ["", table(results, lane, mode)]
    lines += ["", summary(results)]
    return "\n".join(lines)
