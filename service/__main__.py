"""`python -m service`: settings -> logging -> server. `python -m service fetch` brings a checkpoint instead."""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading

from service.errors import ServiceFailure, StartupFault
from service.logs import configure_logging
from service.process.environment import prepare_environment
from service.process.ports import check_ports_are_free
from service.process.signals import ending_signals

logger = logging.getLogger("service")

_END_SECONDS = 5


def main() -> int:
    """Run the service; the exit code is 0 after a signal, 1 for a failure, 2 for a wrong setting."""
    fetches = sys.argv[1:2] == ["fetch"]
    _open_standard_streams()
    for number in ending_signals():
        # Until `serve` sets its own there is nothing to clean up, and threads may be loading what takes long. A fetch
        # that is ended has failed.
        signal.signal(number, lambda *_: os._exit(fetches))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what whoever starts this process has blocked would never come
    if fetches:
        return _fetch(sys.argv[2:])
    # Only now: it takes a while to import, in which a signal would be lost on a container's process 1.
    from service.settings import load_settings, readable_log_format

    try:
        settings = load_settings(sys.argv[1:])
    except StartupFault as fault:
        log_format = readable_log_format(sys.argv[1:])
        configure_logging("info", log_format)
        return _complain(fault, 2, log_format)
    configure_logging(settings.log_level, settings.log_format)
    prepare_environment()
    try:
        check_ports_are_free(settings.host, settings.ports)
        # Only now: torch and transformers take seconds to import, which no refusal before needs.
        # Of 400,000 objects that stay then none is garbage: to look at them again and again takes a tenth of that time,
        # and later 200 ms now and then, in which nobody gets an answer.
        gc.disable()
        from service.server import serve

        gc.freeze()
        gc.enable()
        serve(settings)
        exit_code = 0
    except Exception as error:
        exit_code = _complain(_foreseen(error), 1, settings.log_format)
    logging.shutdown()
    # Lanes, also those of a tritonserver that has failed, may still be inside the model, and helpers inside a decoder.
    # An interpreter that ends under such threads aborts, or waits for them.
    os._exit(exit_code)


def _open_standard_streams() -> None:
    """Those that are closed, as by a shell's `2>&-`: what is printed would go to a socket that gets their numbers."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _foreseen(error: Exception) -> Exception:
    """The error; one that nobody has foreseen, as of a full disk, in one line, after the log has told all of it."""
    if isinstance(error, StartupFault | ServiceFailure):
        return error
    logger.error("an exception was not caught", exc_info=error)
    return ServiceFailure.of(error)


def _end_within(seconds: float, exit_code: int) -> None:
    """End the process even where nobody reads stderr: this thread then waits in a write, and can handle no signal."""
    end = threading.Timer(seconds, os._exit, (exit_code,))
    end.daemon = True
    with contextlib.suppress(RuntimeError):  # there is no thread for it
        end.start()


def _fetch(arguments: list[str]) -> int:
    from service.fetch import fetch  # imports the hub's client

    try:
        fetch(arguments)
    except StartupFault as fault:
        return _complain(fault, 1)
    return 0


def _complain(fault: Exception, exit_code: int, log_format: str = "text") -> int:
    _end_within(_END_SECONDS, exit_code)
    if log_format == "json":
        logger.critical("%s", fault)
    else:
        logging.shutdown()  # what was logged before comes first
        with contextlib.suppress(OSError):  # as on a full disk; what is left to say is the exit code
            print(f"error: {fault}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
