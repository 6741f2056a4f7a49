"""The command line: arguments -> a run, its report, and an exit code that tells.

Comes in: words. Goes out: 0 when all is embedded, 1 when some images failed, 2 when the command cannot be carried out
as it stands, 3 when the workers cannot go on or the run fails in a way that nobody has foreseen, 128 and the
signal's number after SIGINT or SIGTERM.
"""

import argparse
import os
import shlex
import signal
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from service.bulk.folder import Folder
from service.bulk.plan import Chunk, Mismatch, Plan, errors_of
from service.bulk.strikes import Strikes
from service.client.listing import LeftOut, id_of
from service.client.locks import Busy
from service.client.progress import Progress, complain, say
from service.client.rows import Origin, report
from service.client.sources import NothingToDo
from service.errors import StartupFault
from service.settings import Settings, load_settings

_SETTINGS = "All settings of the service that change embeddings or their speed can follow: python -m service --help."

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # to its makers
    "RAY_DATA_LOG_LEVEL": "CRITICAL",  # what it tells of progress and of errors, by tracebacks, is told better here
}
_LINE_SECONDS = 30.0


def main(arguments: Sequence[str]) -> int:
    """Carry out the command; returns the exit code, and raises SystemExit for words that make no sense.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    options, rest = _parse(arguments)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from ray.exceptions import RayError  # only now: it takes a second, and reads the environment

    ended_by = [int(signal.SIGINT)]  # of which nobody tells: Python takes it itself

    def interrupt(number: int, _: object) -> NoReturn:
        ended_by.append(number)  # where Ray waits, it takes this exception, and raises another one
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return _embed(options, _settings(rest))
    except RayError as error:
        return complain(_in_one_line(error), 3)
    except (StartupFault, Mismatch, Busy, NothingToDo, OSError, pa.ArrowException) as error:
        return complain(error, 2)
    except UnicodeEncodeError as error:  # Ray takes no other words, and starts in no other folder
        return complain(f"{id_of(error.object)} is no UTF-8", 2)
    except KeyboardInterrupt:
        say("stopped; all parts that are done are kept. To go on:")
        say(f"  python -m service.bulk {shlex.join(arguments)}")
        return 128 + ended_by[-1]
    except Exception as error:  # or Python would end it with 1, as if all but a few images were embedded
        traceback.print_exc()
        return complain(f"{type(error).__name__}: {error}", 3)


def _in_one_line(error: Exception) -> str:
    """What Ray raises: as text most of it is tracebacks of several processes, and some is empty."""
    if cause := str(getattr(error, "cause", None) or ""):
        return cause.splitlines()[0]  # below it comes Ray's advice how to have it tried again
    *_, last_line = [type(error).__name__, *str(error).strip().splitlines()]
    return last_line


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m service.bulk",
        description="Embed a lake of images, and go on where an earlier run with the same --out has ended.",
        epilog=_SETTINGS,
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("source", metavar="SOURCE", help="a folder with all below it, or its URI: s3://, gs://, abfs://, file://")
    option("--out", required=True, metavar="FOLDER", help="folder or URI that gets the Parquet files")
    option("--address", default="local", help="of a running Ray cluster, or auto (default: this machine by itself)")
    option("--worker-cpus", type=int, default=0, metavar="N", help="cores a worker (default: a GPU's share, or all)")
    option("--part-rows", type=int, default=1000, metavar="N", help="images a file (default: 1000)")
    option("--retry-failed", action="store_true", help="try again what failed in earlier runs")
    options, rest = parser.parse_known_args(arguments)
    if options.worker_cpus < 0 or options.part_rows < 1:
        parser.error("--worker-cpus and --part-rows are whole numbers above 0")
    return options, rest


def _settings(rest: Sequence[str]) -> Settings:
    """The service's settings, for workers that start elsewhere."""
    settings = load_settings(rest)
    if settings.device not in ("auto", "cpu", "cuda"):
        raise StartupFault("--device: workers are dealt GPUs by Ray; it is auto, cpu or cuda here")
    folder = Path(settings.checkpoint)
    return settings.model_copy(update={"checkpoint": str(folder.absolute())}) if folder.is_dir() else settings


def _embed(options: argparse.Namespace, settings: Settings) -> int:
    from service.bulk.cluster import ask, cluster, divide, work
    from service.bulk.worker import Site

    source, out, left_out = Folder.at(options.source), Folder.at(options.out), LeftOut()
    with out.for_one_run(), cluster(options.address):
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # before that of Ray's core, which aborts
        shares = divide(settings.device, options.worker_cpus)
        settings = settings.model_copy(update={"device": "cuda" if shares.gpus else "cpu"})
        facts = ask(settings, shares)
        site = Site(source, out, Origin(facts.fingerprint, "embed_image", str(settings.default_normalize)))
        # Where a link leads, or other images would count as done once it leads elsewhere.
        plan = Plan(out, id_of(os.path.realpath(source.path)) if source.is_local else source.path, site.origin)
        failed = plan.failed()
        if not plan.extend(source.images(left_out), options.part_rows):
            raise NothingToDo(left_out.instead_of_images(options.source))
        Strikes(out).forget()
        todo = _to_do(plan, failed, options.retry_failed)
        answers = work(todo, options.retry_failed, settings, shares, facts.lanes, site) if todo else ()
        progress = _follow(answers, sum(todo.values()))
        return _report(options.out, out, plan, progress, left_out)


def _to_do(plan: Plan, failed: Mapping[Chunk, int], retry_failed: bool) -> dict[Chunk, int]:
    todo = plan.to_do(failed, retry_failed)
    if done := sum(chunk.images for chunk in plan.chunks) - sum(todo.values()):
        say(f"left out, as done in earlier runs (changed since or not): {done:,} images")
    return todo


def _follow(answers: Iterable[Mapping[str, int]], total: int) -> Progress:
    """Show how far it is: a bar on a terminal, elsewhere a line now and then."""
    progress, next_line = Progress(), _LINE_SECONDS
    for answer in answers:
        progress.count(answer["images"], answer["failed"], total)
        if progress.seconds >= next_line:
            progress.line(total)
            next_line = progress.seconds + _LINE_SECONDS
    progress.close()
    return progress


def _report(where: str, out: Folder, plan: Plan, progress: Progress, left_out: LeftOut) -> int:
    failed, planned = plan.failed(), sum(chunk.images for chunk in plan.chunks)
    there, rate = sum(chunk.images for chunk in failed), progress.done / progress.seconds
    embedded = there - sum(failed.values())
    say(f"{where}: {embedded:,} embeddings; in this run {progress.done:,} images, {rate:,.1f} a second")
    if there < planned:
        say(f"the parts of {planned - there:,} images cannot be read (yet); the same command goes on with them")
    errors = errors_of(out, failed)
    gone = plan.gone & errors.keys()
    for line in (*report(errors, gone), *left_out.lines()):
        say(line)
    return 1 if embedded + len(gone) < planned or left_out.unlisted else 0
