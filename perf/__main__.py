"""`python -m perf`: arguments -> rows -> results -> report."""

import os
import sys

from service.environment import ARITHMETIC

# Nothing else is imported here: the load generators' processes import this module again and need no torch.
if __name__ == "__main__":
    import signal

    # Before torch is imported: both sides of a ratio compute alike.
    for name, value in ARITHMETIC.items():
        os.environ.setdefault(name, value)
    from perf.command import main

    # As for Ctrl-C, what was started is ended in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(sys.argv[1:]))
