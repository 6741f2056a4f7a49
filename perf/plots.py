"""Results -> small SVG plots."""

import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Plot

from perf.results import Results
from perf.samples import Table


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw what can be drawn into `<machine>-<row>.svg`; the files' names by row."""
    drawn = {}
    for name, row in results.rows.items():
        if name in _PLOTS and row.findings.tables:
            drawn[name] = f"{results.name}-{name}.svg"
            plot = _PLOTS[name](row.findings.tables[0])
            # The same data give the same file; text stays text.
            with matplotlib.rc_context({"svg.hashsalt": "perf", "svg.fonttype": "none"}):
                plot.savefig(folder / drawn[name], metadata={"Date": None}, bbox_inches="tight")
    return drawn


def _growth(table: Table) -> Plot:
    plot = Plot(figsize=(9, 3))
    rate, latency = plot.subplots(1, 2)
    levels = [int(level) for level in table.points]
    rate.plot(levels, _medians(table, "images/s"), marker="o")
    rate.set(ylabel="images/s", ylim=(0, None))
    for column in ("p50 ms", "p99 ms"):
        latency.plot(levels, _medians(table, column), marker="o", label=column.removesuffix(" ms"))
    latency.set(ylabel="latency in ms", yscale="log")
    latency.legend()
    for axes in (rate, latency):
        axes.set(xlabel="requests in flight", xscale="log")
        axes.set_xticks(levels, map(str, levels), minor=False)
        axes.grid(alpha=0.3)
    return plot


def _stages(table: Table) -> Plot:
    return _bars(table, "ms", "milliseconds that an image spends")


def _peers(table: Table) -> Plot:
    return _bars(table, "images/s", "images/s")


def _bars(table: Table, column: str, label: str) -> Plot:
    plot = Plot(figsize=(7, 0.6 + 0.35 * len(table.points)))
    axes = plot.subplots()
    axes.bar_label(axes.barh(list(table.points), _medians(table, column)), fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    axes.margins(x=0.12)
    return plot


def _medians(table: Table, column: str) -> list[float]:
    return [statistics.median(point[column]) for point in table.points.values()]


_PLOTS: dict[str, Callable[[Table], Plot]] = {"growth": _growth, "stages": _stages, "peers": _peers}
