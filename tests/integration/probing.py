"""`python -m service.probe` as a supervisor runs it."""

import subprocess
import sys
from collections.abc import Mapping


def probe(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What it printed, and its exit code; of the environment it gets nothing but what is given here."""
    command = [sys.executable, "-m", "service.probe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment or {})
