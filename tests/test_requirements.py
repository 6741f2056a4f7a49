"""The image's locks hold what pyproject.toml pins, each package with its hashes."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LOCKS = sorted(REPOSITORY.glob("requirements-*.lock"))
PINNED = re.compile(r'^    "([\w-]+)(?:\[[\w,]+\])?==([\w.]+)",', re.MULTILINE)
LOCKED = re.compile(r"^([\w-]+)(?:\[[\w,-]+\])?==([\w.]+)\S* \\\n    --hash=sha256:[0-9a-f]{64}", re.MULTILINE)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_follows_the_pins(path: Path) -> None:
    pyproject, lock = (REPOSITORY / "pyproject.toml").read_text(), path.read_text()
    pinned = dict(PINNED.findall(pyproject.partition("[project.optional-dependencies]")[0]))
    locked = dict(LOCKED.findall(lock))
    assert "torch" in pinned and pinned.items() <= locked.items()
    assert len(locked) == len(re.findall(r"^\w", lock, re.MULTILINE))
