"""Results -> small SVG plots."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Plot

from perf.findings import Table, number
from perf.results import Results


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


def _soak(table: Table) -> Plot:
    plot = Plot(figsize=(9, 5))
    panels = {
        "MB": ("memory MB", "service MB", "tritonserver MB", "stubs MB", "/dev/shm MB"),
        "count": ("threads", "files"),
        "latency in ms": ("p50 ms", "p99 ms"),
        "good answers a second": ("answers/s",),
    }
    for axes, (label, columns) in zip(plot.subplots(2, 2).flat, panels.items(), strict=True):
        for column in columns:
            axes.plot(*_over_time(table, column), label=column.removesuffix(" MB").removesuffix(" ms"), linewidth=1)
        axes.set(xlabel="minutes", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend(fontsize="small")
    plot.tight_layout()
    return plot


def _over_time(table: Table, column: str) -> tuple[list[float], list[float]]:
    """When each sample was taken, spread evenly over its minute, and the samples."""
    minutes, samples = [], []
    for minute, point in table.points.items():
        of_minute = point.get(column, [])
        minutes += [int(minute) - 1 + (index + 1) / len(of_minute) for index in range(len(of_minute))]
        samples += of_minute
    return minutes, samples


def _bars(table: Table, column: str, label: str) -> Plot:
    plot = Plot(figsize=(7, 0.6 + 0.35 * len(table.points)))
    axes = plot.subplots()
    axes.bar_label(axes.barh(list(table.points), _medians(table, column)), fmt=number, padding=3)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    axes.margins(x=0.12)
    return plot


def _medians(table: Table, column: str) -> list[float]:
    return [statistics.median(point[column]) for point in table.points.values()]


_PLOTS: dict[str, Callable[[Table], Plot]] = {
    "growth": _growth,
    "stages": partial(_bars, column="ms", label="milliseconds that an image costs"),
    "soak": _soak,
    "peers": partial(_bars, column="images/s", label="images/s"),
}
