"""`python -m perf`: arguments -> rows -> results -> report."""

import sys

from service.process.environment import prepare_environment

# Nothing else is imported here: the load generators' processes import this module again and need no torch.
if __name__ == "__main__":
    import signal

    prepare_environment()  # both sides of a ratio compute alike
    from perf.command import main

    # As for Ctrl-C, what was started is ended in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(sys.argv[1:]))
