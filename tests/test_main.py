"""How the process ends, whatever becomes of what it has to say."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.limits import full_pipe

REPOSITORY = Path(__file__).parents[1]
END_SECONDS = 60
# What is logged before has the log's own thread stand still, with the stream in its hands.
FAILING = """
import logging, sys
from types import SimpleNamespace
from service import __main__
from service.errors import ServiceFailure

def serve(settings):
    logging.getLogger("service").error("a batch could not be encoded")
    raise ServiceFailure("the encoder on cpu fails batch after batch")

sys.modules["service.server"] = SimpleNamespace(serve=serve)
__main__._END_SECONDS = 3
sys.exit(__main__.main())
"""

CLOSED = """
import logging, os, sys, threading
from types import SimpleNamespace
from service import __main__

def serve(settings):
    assert {os.readlink(f"/proc/self/fd/{number}") for number in range(3)} == {os.devnull}
    logging.getLogger("service").error("nobody reads this")
    logging.getLogger().handlers[0].flush()
    assert "log" in {thread.name for thread in threading.enumerate()}

sys.modules["service.server"] = SimpleNamespace(serve=serve)
__main__.main()
"""

# What the settings are read by takes longer to import than all that comes before.
SIGNALLED_EARLY = """
import os, signal, sys

if sys.argv.pop(1) == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

class SignalAtTheSettings:
    def find_spec(self, name, *_):
        if name == "service.settings":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, SignalAtTheSettings())
from service.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that blocks whoever writes one more byte."""
    end, full = full_pipe()
    yield full
    os.close(full)
    os.close(end)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_keeps_it_from_starting_names_the_whole_path(log_format: str) -> None:
    command = [sys.executable, "-m", "service", "--config", "/no/such.toml", "--log-format", log_format]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert "the settings file /no/such.toml is not there" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(("arguments", "exit_code"), [((), 1), (("--lanes", "x"), 2)])
def test_a_failure_of_which_nobody_reads_ends_it_all_the_same(
    arguments: tuple[str, ...], exit_code: int, unread: int
) -> None:
    with subprocess.Popen([sys.executable, "-c", FAILING, *arguments], stderr=unread, cwd=REPOSITORY) as process:
        try:
            assert process.wait(END_SECONDS) == exit_code
        finally:
            process.kill()


def test_a_failure_is_the_last_line_and_comes_after_what_was_logged() -> None:
    ended = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    *_, logged, last = ended.stderr.splitlines()
    assert (ended.returncode, last) == (1, "error: the encoder on cpu fails batch after batch")
    assert logged.endswith("ERROR service: a batch could not be encoded")


def test_a_wrong_setting_is_told_by_the_exit_code_also_where_the_log_is_on_a_full_disk() -> None:
    """A supervisor must not start it anew for ever."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "service", "--lanes", "x"]
        ended = subprocess.run(command, stderr=full, cwd=REPOSITORY, check=False)
    assert ended.returncode == 2


@pytest.mark.parametrize("inherited", ["as usual", "blocked"])
def test_a_signal_while_it_reads_its_settings_ends_it_as_any_other(inherited: str) -> None:
    """On a container's process 1 one without a handler would be lost, and anywhere one that is still blocked."""
    command = [sys.executable, "-c", SIGNALLED_EARLY, inherited, "--lanes", "x"]
    ended = subprocess.run(command, cwd=REPOSITORY, check=False)
    assert ended.returncode == 0


def test_sockets_of_ours_do_not_become_standard_streams_that_were_closed() -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", CLOSED]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0
