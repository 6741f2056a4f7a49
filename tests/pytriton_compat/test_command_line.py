"""Secrets leave the command line of a running process, and nothing else of it changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.pytriton_compat.command_line import overwrite_arguments

SLEEP = "import sys; print('up', flush=True); sys.stdin.read(); print(*sys.argv[1:])"


def test_each_secret_becomes_asterisks() -> None:
    command = [sys.executable, "-c", SLEEP, "--a=key=s3cr3t+1", "--b", "Bearer s3cr3t+1", "s3cr3tt1", "other"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        overwrite_arguments(process.pid, ["s3cr3t+1", "other", "absent"])
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[3:-1]
        assert arguments == [b"--a=key=********", b"--b", b"Bearer ********", b"s3cr3tt1", b"*****"]
        out, _ = process.communicate(timeout=60)
    assert out.split() == [b"--a=key=s3cr3t+1", b"--b", b"Bearer", b"s3cr3t+1", b"s3cr3tt1", b"other"]


def test_a_process_that_is_gone_is_an_os_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(60)
    with pytest.raises(OSError):
        overwrite_arguments(process.pid, ["secret"])
