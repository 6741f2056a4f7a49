"""What a measurement leaves behind: figures and tables that keep every raw sample.

A figure is the median of what each round gives; a ratio or a difference has its two sides measured one after the other
in each round, so that a machine which slows down slows both. From fewer than `MIN_ROUNDS` rounds none is printed. A
slope is that of the line through all samples of one run.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

MIN_ROUNDS = 5
# A slope over less would be that of a wave of the load, or of an allocator that is still filling its pools.
MIN_SLOPE_MINUTES = 5.0
MIN_SLOPE_SAMPLES = 30


def number(value: float) -> str:
    """Three digits, or all that stand before the point, where `.3g` alone would write 1.23e+04."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


class NotEnoughSamples(Exception):
    """A figure was asked of too few rounds."""


class NotMeasured(Exception):
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One figure of the table.

    Attributes:
        name: what is measured, in a few words.
        kind: a ratio or a difference of `samples` and `reference`, the median of `samples` alone, an exact number,
            which another round would give again, or the slope of `samples` over `reference`.
        samples: one number a round; of a slope, all of one run.
        reference: the other side of a ratio or a difference, round by round; of a slope, the minute of each sample.
        unit: of what is printed; a ratio has none.
        at_least, at_most: the target, where there is one.
        note: what a reader must know to judge the figure.
    """

    name: str
    kind: Literal["ratio", "difference", "value", "exact", "slope"]
    samples: Sequence[float]
    reference: Sequence[float] = ()
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def per_round(self) -> list[float]:
        """The figure of each round."""
        if self.kind == "ratio":
            return [left / right for left, right in zip(self.samples, self.reference, strict=True)]
        if self.kind == "difference":
            return [left - right for left, right in zip(self.samples, self.reference, strict=True)]
        return list(self.samples)

    @property
    def median(self) -> float:
        """The figure.

        Raises:
            NotEnoughSamples: there are fewer than `MIN_ROUNDS` rounds, or too little for a slope.
        """
        if self.kind == "slope":
            return self._slope()
        if self.kind != "exact" and len(self.samples) < MIN_ROUNDS:
            raise NotEnoughSamples(f"not enough samples ({len(self.samples)} of {MIN_ROUNDS} rounds)")
        return statistics.median(self.per_round)

    def _slope(self) -> float:
        """By least squares."""
        minutes = max(self.reference, default=0.0) - min(self.reference, default=0.0)
        if len(self.samples) < MIN_SLOPE_SAMPLES or minutes < MIN_SLOPE_MINUTES:
            raise NotEnoughSamples(
                f"not enough samples ({len(self.samples)} in {minutes:.1f} minutes;"
                f" a slope needs {MIN_SLOPE_SAMPLES} in {MIN_SLOPE_MINUTES:g})"
            )
        return statistics.linear_regression(self.reference, self.samples).slope

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the target; None without a target.

        Raises:
            NotEnoughSamples: as `median`.
        """
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.median >= self.at_least) and (
            self.at_most is None or self.median <= self.at_most
        )


@dataclass(frozen=True)
class Table:
    """Figures along an axis, e.g. in-flight requests or stages.

    Attributes:
        name: what the table shows.
        axis: what its first column holds.
        points: for each value of the axis, each column's samples, one number a round.
    """

    name: str
    axis: str
    points: dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Findings:
    """What one row of the report measured."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
