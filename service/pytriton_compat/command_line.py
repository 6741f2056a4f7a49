"""Secrets on the command line of a running process, made unreadable.

It must not know what process it is.
"""

import re
from collections.abc import Iterable
from pathlib import Path

# Of /proc/PID/stat, behind the name in parentheses: where the arguments lie in the process's memory. See proc(5).
_ARG_START = 45


def overwrite_arguments(pid: int, secrets: Iterable[str]) -> None:
    """Put asterisks over each secret in the arguments of a process, which must be our child.

    Raises:
        OSError: the system does not allow it.
    """
    process = Path("/proc") / str(pid)
    start = int((process / "stat").read_text().rpartition(")")[2].split()[_ARG_START])
    arguments = (process / "cmdline").read_bytes()
    with (process / "mem").open("r+b", buffering=0) as memory:
        for secret in secrets:
            for found in re.finditer(re.escape(secret.encode()), arguments):
                memory.seek(start + found.start())
                memory.write(b"*" * len(secret))
