"""What a gateway held at times during a run: samples, their slopes, and a drawing of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from attrs import define, frozen

__all__ = ["COUNTED", "Sample", "Slope", "drawn", "slopeOf"]

COUNTED = ("fds", "timers", "sessions", "children", "zombies")
"""What of a sample is a number of things, none of which may grow."""


@define
class Sample:
    """What the gateway held at one time. at: seconds after the start; rss: in KiB."""

    at: float
    calls: int
    rss: int
    fds: int
    timers: int
    sessions: int
    children: int
    zombies: int

    def __str__(self) -> str:
        counted = "  ".join(f"{name} {getattr(self, name)}" for name in COUNTED)
        return f"{self.at:7.1f} s {self.calls:9,} calls  RSS {self.rss / 1024:6.1f} MiB  {counted}"


@frozen
class Slope:
    """How something changes in an hour, and the standard error of that."""

    each: float
    error: float

    def __str__(self) -> str:
        return f"{self.each:+.2f} ± {self.error:.2f}"


def slopeOf(samples: Sequence[Sample], name: str) -> Slope:
    """
    The slope of what has that name, in an hour, by least squares; of `rss` in MB (10⁶ bytes).

    Raises: ValueError, with fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError(f"{len(samples)} samples")
    unit = 1024 / 1e6 if name == "rss" else 1.0
    hours = [sample.at / 3600 for sample in samples]
    values = [getattr(sample, name) * unit for sample in samples]
    middle, mean = sum(hours) / len(hours), sum(values) / len(values)
    spread = sum((hour - middle) ** 2 for hour in hours)
    pairs = list(zip(hours, values, strict=True))
    each = sum((hour - middle) * (value - mean) for hour, value in pairs) / spread
    rest = sum((value - mean - each * (hour - middle)) ** 2 for hour, value in pairs)
    return Slope(each, sqrt(rest / (len(samples) - 2) / spread))


def drawn(samples: Sequence[Sample], file: Path) -> None:
    """Draw what was held; needs the `bench` extra."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5))
    minutes = samples[-1].at > 1200
    at = [sample.at / (60 if minutes else 1) for sample in samples]
    top.plot(at, [sample.rss / 1024 for sample in samples], label="RSS, MiB")
    top.set_ylim(0, 1.2 * max(sample.rss / 1024 for sample in samples))
    top.legend(loc="lower right")
    for name in COUNTED:
        bottom.plot(at, [getattr(sample, name) for sample in samples], label=name)
    bottom.set_ylim(0, 1.3 * max(sample.fds for sample in samples))
    bottom.set_xlabel("minutes" if minutes else "seconds")
    bottom.legend(loc="upper right", ncols=5, fontsize="small")
    figure.tight_layout()
    figure.savefig(file)
