"""The command line: arguments -> a run, its report, and an exit code that tells.

Comes in: words. Goes out: 0 when all is embedded, 1 when some images failed, 2 when the command cannot be carried out
as it stands, 3 when the service cannot be reached or the run fails in a way that nobody has foreseen, 128 and the
signal's number after SIGINT or SIGTERM.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shlex
import signal
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa

from service.client.job import Job, Sending, Unreachable
from service.client.listing import id_of
from service.client.locks import Busy
from service.client.over_http import connect_http
from service.client.progress import Progress, complain, say
from service.client.results import CannotGoOn, Outcomes, open_results
from service.client.retry import GaveUp, Patience, persist
from service.client.rows import Origin, report
from service.client.sources import Images, NothingToDo, NotListed, folder_of
from service.client.transport import Access, ImageFailed, Refused, Transport

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SCHEMES = ("http", "https", "grpc", "grpcs")
# What RFC 6750 allows; with anything else, no header can be made or understood.
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+")
# A replica may be restarting, but who mistypes an address is not to wait for long.
_FIRST_ANSWER = Patience(total=10.0, broken=10.0)
# Three years, which every clock can count.
_MOST_SECONDS = 1e8


def main(arguments: Sequence[str]) -> int:
    """Carry out the command; returns the exit code, and raises SystemExit(2) for words that make no sense."""
    options = _parse(arguments)
    try:
        return asyncio.run(_embed(options, arguments))
    except (NothingToDo, NotListed, Refused, CannotGoOn, Busy, ImageFailed, OSError, pa.ArrowException) as error:
        return complain(error, 2)
    except ModuleNotFoundError as error:
        return complain(f"{error}; gRPC needs 'tritonclient[grpc]'", 2)
    except (Unreachable, GaveUp) as error:
        return complain(f"{options.url} does not answer: {error}", 3)
    except KeyboardInterrupt:
        return complain("ended at once; what was not kept yet is lost, the same command goes on", 128 + signal.SIGINT)
    except Exception as error:  # or Python would end it with 1, as if all but a few images were embedded
        traceback.print_exc()
        return complain(f"{type(error).__name__}: {error}", 3)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.client", description="Embed many images with a service.")
    embed = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "embed", help="embed images, and go on where an earlier run with the same --out has ended"
    )
    option = embed.add_argument
    option(
        "source",
        metavar="FOLDER|GLOB|-",
        help="a folder with all below it, a pattern in quotes, or names on stdin; of tar files, the images in them",
    )
    option("--url", type=_url, required=True, help="http://HOST:PORT or grpc://HOST:PORT; https and grpcs for TLS")
    option("--out", type=_out, required=True, help="where embeddings go: a .parquet or a .npy file")
    option("--in-flight", type=_positive, default=60, metavar="N", help="requests under way at a time (default: 60)")
    option("--normalize", action="store_true", help="divide each embedding by its L2 norm")
    option("--retry-failed", action="store_true", help="try again what failed in earlier runs")
    option("--changed", action="store_true", help="embed anew what has changed since, as its file's time tells")
    option("--timeout", type=_seconds, default=900, metavar="S", help="seconds for an image, all tries (default: 900)")
    option("--request-timeout", type=_seconds, default=300, metavar="S", help="seconds for one try (default: 300)")
    option("--max-image-bytes", type=_positive, default=2**25, metavar="N", help="larger files fail (default: 32 MiB)")
    option("--model", default="embed_image", help="the model's name (default: embed_image)")
    option("--token-file", type=Path, metavar="FILE", help="file with the service's access token")
    option("--ca-file", type=Path, metavar="FILE", help="PEM file of the authorities to trust, and no others")
    option("--cert-file", type=Path, metavar="FILE", help="PEM file of this client's own certificate")
    option("--key-file", type=Path, metavar="FILE", help="PEM file of that certificate's key")
    return parser.parse_args(arguments)


def _url(text: str) -> str:
    with contextlib.suppress(ValueError):  # of a port above 65535, of which gRPC would make another one
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise argparse.ArgumentTypeError("it must hold no name and no password; for a token there is --token-file")
        if parts.scheme in _SCHEMES and parts.hostname and parts.port != 0:
            return parts.geturl().rstrip("/")  # the scheme in lower case
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(f'{s}://HOST:PORT' for s in _SCHEMES)}")


def _out(text: str) -> Path:
    # Where a link leads, or it would be replaced in the end, and two runs could write the same file by two names.
    path = Path(os.path.realpath(text) if os.path.islink(text) else text)
    if path.suffix not in (".parquet", ".npy"):
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .parquet nor in .npy")
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) <= _MOST_SECONDS:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0 and up to {_MOST_SECONDS:,.0f}")


async def _embed(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    async with _connect(options) as transport:
        served = await persist(transport.served, _FIRST_ANSWER, asyncio.Event())
        origin = Origin(served.fingerprint, options.model, str(options.normalize or served.normalize))
        folder = folder_of(options.source)
        ids_below = id_of(os.path.realpath(folder)) if folder else ""
        with open_results(options.out, origin, served.dimension, ids_below) as results:
            known = results.known(without_failed=options.retry_failed)
            if known:
                say(f"going on from the {len(known):,} images that earlier runs have done")
            earlier, images = len(known), Images(options.source, known, options.max_image_bytes, options.changed)
            sending = Sending(options.in_flight, Patience(options.timeout), options.normalize)
            job = Job(images, transport, served, results, sending)
            if number := await _run_until_signal(job):
                say(f"stopped after {job.progress.done:,} images, which are kept. To go on:")
                say(f"  python -m service.client {shlex.join(arguments)}")
                return 128 + number
            if images.failure:
                raise images.failure
            # A list may have nothing new; a folder or a pattern that had images and has none is a mount that is gone.
            if not (images.total or images.done) and (options.source != "-" or not earlier):
                raise NothingToDo(images.left_out.instead_of_images(options.source))
            if images.total and not images.is_there:
                raise NothingToDo(
                    f"none of {images.total:,} images can be read: their folders are gone, empty or closed"
                )
            outcomes = results.finish()  # here, so that a signal ends it and nobody writes on without the lock
    gone = {each for each in outcomes.errors if not images.has(each)}
    _report(options, outcomes, gone, job.progress, images)
    return 1 if len(outcomes.errors) > len(gone) or images.left_out.unlisted else 0


@contextlib.asynccontextmanager
async def _connect(options: argparse.Namespace) -> AsyncIterator[Transport]:
    token = _read_token(options.token_file) if options.token_file else None
    if options.key_file and not options.cert_file:
        raise Refused("a key alone proves nothing; add --cert-file")
    access = Access(token, options.ca_file, options.cert_file, options.key_file)
    target = (options.url, options.model, access, options.request_timeout)
    if options.url.startswith("http"):
        async with connect_http(*target) as over_http:
            yield over_http
    else:
        # Only now: over HTTP, neither gRPC nor Triton's client need to be installed.
        from service.client.over_grpc import connect_grpc

        async with connect_grpc(*target) as over_grpc:
            yield over_grpc


def _read_token(path: Path) -> str:
    token = path.read_bytes().strip()
    if not _TOKEN.fullmatch(token):
        raise Refused(f"{path} must hold one token of letters, digits and ._~+/=-, and nothing else (--token-file)")
    return token.decode()


async def _run_until_signal(job: Job) -> int | None:
    """The number of the signal that ended the run early. Another one, or one after the run, ends the process.

    The handlers are not the loop's: it would lose a signal that comes when it turns for the last time.
    """
    loop, caught = asyncio.get_running_loop(), list[int]()

    def stop() -> None:
        say("stopping as soon as what is in flight is answered; once more to stop at once")
        job.stop.set()

    def on_signal(number: int, _: object) -> None:
        caught.append(number)
        _end_at_signals()
        loop.call_soon_threadsafe(stop)

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        await job.run()
    finally:
        _end_at_signals()
    return caught[0] if caught else None


def _end_at_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _report(
    options: argparse.Namespace, outcomes: Outcomes, gone: set[str], progress: Progress, images: Images
) -> None:
    rate = progress.done / progress.seconds
    say(f"{options.out}: {outcomes.embedded:,} embeddings; in this run {progress.done:,} images, {rate:,.1f} a second")
    if images.done:
        since = "not changed since" if options.changed else "changed since or not"
        say(f"left out, as done in earlier runs ({since}): {images.done:,} images")
    for line in (*report(outcomes.errors, gone), *images.left_out.lines()):
        say(line)
