"""`python -m perf load`: any endpoints by URL, side by side, with the same client in the same run."""

import argparse
from collections.abc import Sequence
from functools import partial

from perf.bench import Bench, failure
from perf.findings import Figure, Findings, NotMeasured, Table
from perf.load.client import Load, LoadResult
from perf.load.protocols import PROTOCOLS, Target

TITLE = "Peers"
WHAT = "images/s of the first target / of each other one, the same client and images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--target",
        type=parse_target,
        action="append",
        required=True,
        metavar="LABEL=PROTOCOL,URL[,MODEL]",
        help=f"what to measure, once a target; PROTOCOL is one of {', '.join(PROTOCOLS)}",
    )
    parser.add_argument("--in-flight", type=int, default=60, help="requests under way at any time (default: 60)")


def parse_target(text: str) -> Target:
    """`label=protocol,url[,model]` -> a target.

    Raises:
        argparse.ArgumentTypeError: it has another form, or names another protocol.
    """
    label, _, rest = text.partition("=")
    parts = rest.split(",")
    if not label or len(parts) not in (2, 3):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=PROTOCOL,URL[,MODEL]")
    try:
        return Target(label, *parts)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def measure_peers(bench: Bench, targets: Sequence[Target], in_flight: int) -> Findings:
    """Each target once a round; one that fails a request is left out, with a note that says so.

    Raises:
        NotMeasured: two have one label.
    """
    if len({target.label for target in targets}) < len(targets):
        raise NotMeasured("two targets have the same label")
    load = Load(in_flight, bench.seconds)
    sides = {target.label: partial(bench.own_client.measure, target, load) for target in targets}
    results = bench.alternate("load", sides)
    problems = {label: failure(rounds) for label, rounds in results.items()}
    sound = {label: rounds for label, rounds in results.items() if not problems[label]}
    rates = {label: [result.images_per_second for result in rounds] for label, rounds in sound.items()}
    first, *others = rates or [""]
    figures = [Figure(f"{first} / {other}", "ratio", rates[first], rates[other]) for other in others]
    points = {label: _columns(rounds) for label, rounds in sound.items()}
    notes = [f"{label} is not measured: {problem}." for label, problem in problems.items() if problem]
    return Findings(figures, [Table(f"{in_flight} in flight", "target", points)] if points else [], notes)


def _columns(rounds: Sequence[LoadResult]) -> dict[str, list[float]]:
    return {
        "images/s": [result.images_per_second for result in rounds],
        "p50 ms": [result.p50_ms for result in rounds],
        "p99 ms": [result.p99_ms for result in rounds],
        "client's cores": [result.client_cores for result in rounds],
    }
