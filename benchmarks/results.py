"""What a run found, and the file it is kept in."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, define, field

from benchmarks.bench import Sample

__all__ = ["Results", "Series", "machine"]


def _nullable(_: object, __: object, value: Any) -> Any:
    # JSON has no NaN.
    return None if isinstance(value, float) and math.isnan(value) else value


def _sample(values: dict[str, float | None], **rest: Any) -> Sample:
    numbers = {key: math.nan if value is None else value for key, value in values.items()}
    return Sample(numbers, **rest)


def machine() -> dict[str, str]:
    """The machine and the Python that everything of ours ran on."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = "--enable-optimizations" in options or "-fprofile-use" in (
        sysconfig.get_config_var("PY_CORE_CFLAGS") or ""
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": f"{platform.python_version()}, {platform.python_compiler()}, "
        + ("optimised (PGO)" if optimised else "not optimised (no PGO)"),
        "system": f"Linux {platform.release().partition('-')[0]}, {platform.machine()}, "
        f"{os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
        "build": sys.version.partition("(")[2].partition(")")[0],
    }


@define
class Series:
    """The rounds of one subject in one mode. skipped: why there are none; "" if there are."""

    lane: str
    mode: str
    subject: str
    version: str
    samples: list[Sample] = field(factory=list)
    skipped: str = ""

    def values(self, key: str) -> list[float]:
        """A figure, of each round."""
        return [sample.values.get(key, math.nan) for sample in self.samples]

    @property
    def errors(self) -> int:
        return sum(sample.errors for sample in self.samples)

    @property
    def error(self) -> str:
        """The first one."""
        return next((sample.error for sample in self.samples if sample.error), "")


@define
class Results:
    """All series of a run, in the order they were begun."""

    about: dict[str, str] = field(factory=machine)
    series: list[Series] = field(factory=list)
    absent: dict[str, str] = field(factory=dict)
    """Peers that are not installed, and why that is thought."""

    def add(self, other: Results) -> None:
        """Take the series of another run, too."""
        self.series += other.series
        self.absent |= other.absent

    def find(self, lane: str, mode: str, subject: str) -> Series | None:
        """The series with samples of this subject; None if it has none."""
        for series in self.of(lane, mode):
            if series.subject == subject and series.samples:
                return series
        return None

    def of(self, lane: str, mode: str) -> Iterator[Series]:
        """What was compared with each other."""
        return (each for each in self.series if (each.lane, each.mode) == (lane, mode))

    def parts(self) -> list[tuple[str, str]]:
        """Lane and mode of each table, in order."""
        return list(dict.fromkeys((each.lane, each.mode) for each in self.series))

    def save(self, file: Path) -> None:
        """Write it as JSON. Raises: OSError."""
        kept = asdict(self, value_serializer=_nullable)
        file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, file: Path) -> Results:
        """Read what `save` wrote. Raises: OSError, ValueError."""
        kept: dict[str, Any] = json.loads(file.read_text())
        series = []
        for each in kept["series"]:
            samples = [_sample(**sample) for sample in each.pop("samples")]
            series.append(Series(**each, samples=samples))
        return cls(kept["about"], series, kept["absent"])
