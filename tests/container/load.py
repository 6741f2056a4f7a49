"""Runs inside the container, for as long as that lives: embeds images without pause and prints a line at each step.

`sent N` when request N is on its way, then `N right`, `N 404` (the model takes no more) or `N no connection`.
"""

import http.client
import itertools
import sys
import threading

from service.health.canary import CANARY_PATH, canary_request, read_canary

CLIENTS = 16


def main() -> None:
    """Send from several threads until nobody answers."""
    numbers = itertools.count()
    threads = [threading.Thread(target=_send, args=(numbers,)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send(numbers: "itertools.count[int]") -> None:
    outcome = "right"
    while outcome != "no connection":
        number = next(numbers)
        _print(f"sent {number}")
        outcome = _outcome(number)
        _print(f"{number} {outcome}")


def _outcome(number: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
    try:
        connection.request("POST", CANARY_PATH, canary_request())
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return "no connection"
    if response.status != http.client.OK:
        return str(response.status)
    return "right" if read_canary(body).any() else "wrong"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
