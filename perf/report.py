"""Results -> a report in Markdown with plots, and the block at the top of `perf/README.md`."""

import contextlib
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from perf.findings import Figure, NotEnoughSamples, Table, number
from perf.plots import draw
from perf.results import Results, Row, read_results

_BLOCK = re.compile(r"(<!-- results -->\n).*(<!-- /results -->)", re.DOTALL)
_SAYS_LITTLE = re.compile(r"\((R|TM)\)|\b(AMD|Intel|NVIDIA|Processor|CPU|with)\b")
_TARGET = "target (missed: **bold**)"


def write_report(results: Results, folder: Path, titles: dict[str, tuple[str, str]]) -> Path:
    """Write `<machine>.md` and its plots; `titles` has each row's title and what it measures, in the report's order."""
    plots = draw(results, folder)
    names = [name for name in titles if name in results.rows]
    lines = [f"# {results.name}", "", _about(results), "", *_summary(results, titles)]
    for name in names:
        row, (title, what) = results.rows[name], titles[name]
        lines += ["", f"## {title}", "", f"{what[0].upper()}{what[1:]}.", ""]
        lines += [f"Not measured: {row.not_measured}", ""] if row.not_measured else _details(row, plots.get(name))
        lines.append(f"Measured with {_conditions(row)}")
    path = folder / f"{results.name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_readme(folder: Path, titles: dict[str, tuple[str, str]]) -> None:
    """Rewrite the results in the README beside `folder` from all that is in there; measured last comes first."""
    everywhere = [read_results(path) for path in folder.glob("*.json")]
    everywhere.sort(key=lambda results: max(row.conditions["date"] for row in results.rows.values()), reverse=True)
    machines = [f"- {_short_name(results)}: {_about(results)}" for results in everywhere]
    links = [f"[{_short_name(results)}]({folder.name}/{results.name}.md)" for results in everywhere]
    table = _markdown_table(["row", "figure", _TARGET, *links], _side_by_side(everywhere, titles))
    drawn = (sorted(folder.glob(f"{results.name}-*.svg")) for results in everywhere)
    plots = [f"![{plot.stem}]({folder.name}/{plot.name})" for plot in next(filter(None, drawn), [])]
    block = "\n".join([*machines, "", *table, "", *plots])
    readme = folder.parent / "README.md"
    readme.write_text(_BLOCK.sub(lambda old: f"{old[1]}{block}\n{old[2]}", readme.read_text()))


def _about(results: Results) -> str:
    here = results.machine
    gpus = ", ".join(here["gpus"]) or "no GPU"
    return f"{here['cpu']}, {here['cores']} cores, {here['memory_gb']} GB, {gpus}"


def _short_name(results: Results) -> str:
    here = results.machine
    words = ", ".join([here["cpu"], f"{here['cores']} cores", *here["gpus"]])
    return " ".join(_SAYS_LITTLE.sub("", words).split())


def _side_by_side(everywhere: Sequence[Results], titles: dict[str, tuple[str, str]]) -> list[list[str]]:
    """A line for each figure of the rows that have a target or were measured nowhere, with a cell for each machine."""
    lines = []
    for name, (title, _) in titles.items():
        rows = [results.rows.get(name) for results in everywhere]
        found = [{figure.name: figure for figure in row.findings.figures} if row else {} for row in rows]
        if all(row is None or row.not_measured for row in rows):
            lines.append([title, "", "", *(_cell(None) for _ in rows)])
        elif any(_target(figure) for figures in found for figure in figures.values()):
            for label in dict.fromkeys(label for figures in found for label in figures):
                here = [figures.get(label) for figures in found]
                targets = dict.fromkeys(_target(figure) for figure in here if figure)
                lines.append([title, label, "; ".join(targets), *map(_cell, here)])
    return lines


def _summary(results: Results, titles: dict[str, tuple[str, str]]) -> list[str]:
    """The table that stands first, one line a figure, and what has never been run there."""
    lines = []
    for name, (title, _) in titles.items():
        if row := results.rows.get(name):
            figures = [[title, each.name, _target(each), _cell(each), each.note] for each in row.findings.figures]
            reason = f"not measured: {row.not_measured}" if row.not_measured else "see its table"
            lines += figures or [[title, "", "", reason, ""]]
    table = _markdown_table(["row", "figure", _TARGET, "median (range)", "of what"], lines)
    missing = [title for name, (title, _) in titles.items() if name not in results.rows]
    return [*table, "", f"Not run there: {'; '.join(missing)}."] if missing else table


def _target(figure: Figure) -> str:
    bounds = ((figure.at_least, "at least"), (figure.at_most, "at most"))
    return ", ".join(f"{words} {bound:g} {figure.unit}".rstrip() for bound, words in bounds if bound is not None)


def _cell(figure: Figure | None) -> str:
    """What was measured, in bold where it misses its target."""
    if figure is None:
        return "-"
    with contextlib.suppress(NotEnoughSamples):
        if figure.is_met is False:
            return f"**{render(figure)}**"
    return render(figure)


def render(figure: Figure) -> str:
    """The median and the range of a figure's rounds, or why there is none."""
    try:
        median = figure.median
    except NotEnoughSamples as reason:
        return str(reason)
    if figure.kind == "exact":
        return f"{median:.6g} {figure.unit}".rstrip()
    if figure.kind == "slope":
        return f"{number(median)} {figure.unit}".rstrip()
    return f"{_spread(figure.per_round)} {figure.unit}".rstrip()


def _spread(samples: Sequence[float]) -> str:
    if len(samples) == 1:
        return number(samples[0])
    return f"{number(statistics.median(samples))} ({number(min(samples))} to {number(max(samples))})"


def _conditions(row: Row) -> str:
    flat = {**row.conditions, **row.conditions["versions"]}
    return ", ".join(f"{key} {value}" for key, value in flat.items() if key != "versions") + "."


def _details(row: Row, plot: str | None) -> list[str]:
    lines = [*row.findings.notes, ""] if row.findings.notes else []
    for table in row.findings.tables:
        lines += [f"{table.name}:", "", *_table(table), ""]
    return lines + ([f"![{plot}]({plot})", ""] if plot else [])


def _table(table: Table) -> list[str]:
    columns = list(next(iter(table.points.values()))) if table.points else []
    lines = [
        # A column has no samples where there was nothing to measure.
        [label, *(_spread(point[column]) if column in point else "" for column in columns)]
        for label, point in table.points.items()
    ]
    return _markdown_table([table.axis, *columns], lines)


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rows = [header, ["---"] * len(header), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
