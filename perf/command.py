"""The command line: which rows to measure, how, and where the results go."""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil

from perf import machine, peers, soak
from perf.bench import Bench
from perf.findings import MIN_ROUNDS, Findings, NotMeasured
from perf.load.client import OwnClient
from perf.load.perf_analyzer import PerfAnalyzer, find_perf_analyzer
from perf.replicas import row as replicas
from perf.report import write_readme, write_report
from perf.results import FOLDER, Row, conditions, read_results, results_of_this_machine
from perf.rows import ROWS
from service.errors import StartupFault
from service.model.devices import resolve_devices

# Python takes half a millisecond a request, so a large machine needs more than one process to be put under load.
_CORES_A_CLIENT = 4
_MOST_CLIENTS = 8
# What is in the report, in its order; the last three are commands of their own.
_TITLES = {
    **{name: (kind.title, kind.what) for name, kind in ROWS.items()},
    "soak": (soak.TITLE, soak.WHAT),
    "replicas": (replicas.TITLE, replicas.WHAT),
    "peers": (peers.TITLE, peers.WHAT),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, write the results after each row, and say where the report is."""
    options = _parse(arguments)
    if options.command == "report":
        for path in sorted(options.output.glob("*.json")):
            write_report(read_results(path), options.output, _TITLES)
    else:
        results = results_of_this_machine(options.output)
        with _bench(options) as bench:
            measurements = _measurements(options, bench)
            for number, (name, measure) in enumerate(measurements.items(), 1):
                print(f"[{number} of {len(measurements)}] {name}", flush=True)
                results.rows[name] = _measure(measure, options)
                results.save(options.output)
        path = write_report(results, options.output, _TITLES)
        print(path.read_text())
        print(f"written to {path}")
    if options.output.resolve() == FOLDER:
        write_readme(FOLDER, _TITLES)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, run, commands = _parsers()
    named = arguments and arguments[0] in (*commands, "-h", "--help")
    options = parser.parse_args(arguments if named else ["run", *arguments])
    if unknown := set(getattr(options, "rows", ())) - set(ROWS):
        run.error(f"there is no row {unknown.pop()!r}; known are {', '.join(ROWS)}")
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    # What has no figures is not to take the place of those that are there.
    is_short = options.rounds < MIN_ROUNDS or (options.command == "soak" and options.minutes < soak.LEAST_MINUTES)
    options.output = options.output or (Path(tempfile.mkdtemp(prefix="perf-")) if is_short else FOLDER)
    return options


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser, Collection[str]]:
    """The whole command line's parser, that of `run`, and the names of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, help="folder for results (default: perf/results)")
    common.add_argument("--device", default="auto", help="where models run, as for the service (default: auto)")
    rounds = argparse.ArgumentParser(add_help=False)
    rounds.add_argument(
        "--rounds",
        type=int,
        default=MIN_ROUNDS,
        help=f"default: {MIN_ROUNDS}; fewer give no ratios, and go into a new folder",
    )
    rounds.add_argument("--seconds", type=float, default=10.0, help="least length of a measurement (default: 10)")
    rounds.add_argument("--quick", action="store_true", help="one short round, results into a new folder")
    rounds.add_argument(
        "--client",
        choices=("auto", "own", "perf_analyzer"),
        default="auto",
        help="load generator for gRPC; auto is perf_analyzer where it is installed (PERF_ANALYZER or PATH)",
    )
    parser = argparse.ArgumentParser(prog="python -m perf", description="Measure the service on this machine.")
    # For the commands that have no rounds.
    parser.set_defaults(**vars(rounds.parse_args([])))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        parents=[common, rounds],
        help="measure the report's rows (the default)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {name:18} {kind.what}" for name, kind in ROWS.items()),
    )
    run.add_argument("rows", nargs="*", metavar="ROW", help="the rows to measure (default: all)")
    soaking = commands.add_parser("soak", parents=[common], help="watch the service under load for minutes")
    soaking.add_argument("--minutes", type=float, default=10.0, help="length of the load (default: 10)")
    commands.add_parser("replicas", parents=[common], help="restart and kill replicas behind a proxy, as root")
    load = commands.add_parser("load", parents=[common, rounds], help="put any endpoints under load, side by side")
    peers.add_arguments(load)
    commands.add_parser("report", parents=[common], help="write all reports again from the results")
    return parser, run, commands.choices


@contextlib.contextmanager
def _bench(options: argparse.Namespace) -> Iterator[Bench]:
    path = None if options.client == "own" else find_perf_analyzer()
    if path is None and options.client == "perf_analyzer":
        raise SystemExit("error: no perf_analyzer that runs here; set PERF_ANALYZER to one")
    options.client = "perf_analyzer" if path else "own"  # as the results' conditions are to say
    processes = min(_MOST_CLIENTS, max(1, machine.cores() // _CORES_A_CLIENT))
    try:
        (device, *_) = resolve_devices(options.device)
    except StartupFault as fault:
        raise SystemExit(f"error: {fault}") from fault
    with tempfile.TemporaryDirectory(prefix="perf-") as folder, OwnClient(processes) as own_client:
        perf_analyzer = PerfAnalyzer(path, Path(folder)) if path else None
        yield Bench(options.rounds, options.seconds, device, own_client, perf_analyzer, options.quick)


def _measurements(options: argparse.Namespace, bench: Bench) -> dict[str, Callable[[], Findings]]:
    if options.command == "soak":
        return {"soak": partial(soak.soak, bench, options.minutes)}
    if options.command == "replicas":
        return {"replicas": partial(replicas.replicas, bench)}
    if options.command == "load":
        return {"peers": partial(peers.measure_peers, bench, options.target, options.in_flight)}
    return {name: partial(ROWS[name].measure, bench) for name in options.rows or ROWS}


def _measure(measure: Callable[[], Findings], options: argparse.Namespace) -> Row:
    length = {"soak": ("minutes",), "replicas": ()}.get(options.command, ("rounds", "seconds", "client"))
    before = conditions(**{key: getattr(options, key) for key in (*length, "device")})
    try:
        return Row(before, measure())
    # Where the service, or a peer, has gone away. The other rows can still be measured.
    except (NotMeasured, OSError, psutil.NoSuchProcess) as reason:
        print(f"not measured: {reason}", flush=True)
        return Row(before, Findings(), str(reason))
