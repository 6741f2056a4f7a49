"""Clients that send one image after another, and an account of what came of every image that they sent."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import requests

from perf.embeddings import cosines
from tests.integration.clients import RAW_HEADERS, Embeddings, post_raw, read_raw_answer
from tests.integration.reference import photographs
from tests.integration.service_process import ServiceProcess

# More than a service may take to find out, on a busy machine, that it hangs.
SECONDS = 120
# A service that is not there refuses thousands of connections a second, which take the cores that it needs to start.
AWAY_SECONDS = 0.1


class Sent(NamedTuple):
    """An image: when it was sent, and what its client saw: right, wrong, a status, no connection, or no answer."""

    at: float
    outcome: str


@contextlib.contextmanager
def load(running: ServiceProcess, clients: int, pause_seconds: float = 0.0) -> Iterator[list[Sent]]:
    """Send photographs until the end of the block, each client so long after the answer to the one before."""
    expected = [read_raw_answer(post_raw(running, image)) for image in photographs()]
    account: list[Sent] = []
    over = threading.Event()

    def send(number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False  # pytest changes the environment between tests, while this thread would read it
            pause = pause_seconds
            while not over.wait(pause):
                number = (number + 1) % len(expected)
                at = time.monotonic()
                outcome = _outcome(session, running, photographs()[number], expected[number])
                account.append(Sent(at, outcome))
                pause = AWAY_SECONDS if outcome == "no connection" else pause_seconds

    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield account
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _outcome(session: requests.Session, running: ServiceProcess, image: bytes, expected: Embeddings) -> str:
    try:
        response = session.post(running.infer_url, data=image, headers=RAW_HEADERS, timeout=SECONDS)
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        return "no connection"
    except requests.Timeout:
        return "no answer"
    if response.status_code != 200:
        return str(response.status_code)
    return "right" if cosines(read_raw_answer(response), expected).min() > 0.999 else "wrong"
