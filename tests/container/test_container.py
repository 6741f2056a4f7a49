"""The image, run as it is meant to: no root, nothing writable, no network, no capabilities, little memory.

Needs podman, and in CONTAINER_IMAGE the name of an image, such as `tests/container/build` makes. PODMAN may name
another command for podman, PODMAN_RUN more options for its `run`, where a sandbox needs them.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.service_process import wait_for

IMAGE = os.environ.get("CONTAINER_IMAGE", "")
PODMAN = shlex.split(os.environ.get("PODMAN", "podman"))
pytestmark = [
    pytest.mark.skipif(not IMAGE, reason="CONTAINER_IMAGE names no image; tests/container/build makes one"),
    pytest.mark.skipif(not shutil.which(PODMAN[0]), reason="podman is missing"),
]
OPTIONS = (
    "--network=none --read-only --read-only-tmpfs=false --tmpfs=/tmp:rw,size=64m,mode=1777 --cap-drop=all"
    " --security-opt=no-new-privileges --memory=1g"
)
LOAD = (Path(__file__).parent / "load.py").read_text()
MORE_OPTIONS = shlex.split(os.environ.get("PODMAN_RUN", ""))
UNPRIVILEGED = "id -u; id -g; sed -n 's/^\\(CapEff\\|CapBnd\\|NoNewPrivs\\):\\s*//p' /proc/self/status"
WRITABLE = "find / /dev -xdev -writable -not -type l -not -type c; ls /run/secrets; command -v gcc cc ld pip pip3"

KILL = "import psutil; [each.kill() for each in psutil.process_iter() if each.name() == 'tritonserver']"


def podman(*arguments: str) -> str:
    """What it prints."""
    result = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


class Container:
    """One that runs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in it."""
        words = [*PODMAN, "exec", self.name, *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    def log(self) -> str:
        """All that it has printed."""
        result = subprocess.run([*PODMAN, "logs", self.name], capture_output=True, text=True, timeout=60, check=False)
        return result.stdout + result.stderr

    def state(self, what: str) -> str:
        """One of what `podman inspect` tells of its state."""
        return podman("inspect", "--format", f"{{{{.State.{what}}}}}", self.name).strip()

    def processes(self) -> dict[str, str]:
        """The state letters of all processes in it, by id."""
        found = self.run("sh", "-c", "cat /proc/[0-9]*/stat").stdout
        return dict(re.findall(r"^(\d+) \(.*\) (\w)", found, re.MULTILINE))


@contextmanager
def container(shared_memory: str) -> Iterator[Container]:
    """A container on the embedded checkpoint that is removed afterwards."""
    name = f"embed-test-{os.getpid()}-{time.monotonic_ns()}"
    sizes = f"--tmpfs=/dev/shm:rw,size={shared_memory},mode=1777"
    podman("run", "--detach", "--name", name, *OPTIONS.split(), sizes, *MORE_OPTIONS, IMAGE)
    try:
        yield Container(name)
    finally:
        podman("rm", "--force", name)


def test_it_embeds_and_a_signal_under_load_drops_nothing() -> None:
    with container("64m") as running:
        wait_for(lambda: running.run("python", "-m", "service.probe").returncode == 0)
        assert running.run("sh", "-c", UNPRIVILEGED).stdout.split() == ["10001", "10001", "0" * 16, "0" * 16, "1"]
        # Every container gets the kernel's message queues, and what they may hold is little.
        assert set(running.run("sh", "-c", WRITABLE).stdout.split()) - {"/dev/mqueue"} == {"/tmp", "/dev/shm"}
        before, after = load_until_it_ends(running, "kill", "--signal", "TERM", running.name)
        assert running.state("ExitCode") == "0", running.log()
    assert len(before) > 100 and set(before) == {"right"}
    assert set(after) <= {"right", "404", "no connection"}


def test_a_tritonserver_that_dies_is_buried_and_another_one_embeds() -> None:
    with container("64m") as running:
        wait_for(lambda: running.run("python", "-m", "service.probe").returncode == 0)
        assert running.run("python", "-c", KILL).returncode == 0
        wait_for(lambda: running.log().count("ready: embed_image") == 2, 60)
        assert running.run("python", "-m", "service.probe").returncode == 0
        assert "Z" not in running.processes().values()
        assert "no C compiler was there" not in running.log()


def test_too_little_shared_memory_is_one_clear_line() -> None:
    with container("8m") as running:
        wait_for(lambda: running.state("Running") == "false", 120)
        assert running.state("ExitCode") == "1"
        assert "error: /dev/shm has " in running.log()


def test_the_image_says_what_it_is_and_on_a_cpu_stays_small() -> None:
    labels = podman("image", "inspect", "--format", "{{.Labels}}", IMAGE)
    assert "org.opencontainers.image.revision" in labels
    command = ("-c", "import torch.version; print(torch.version.cuda)")
    cuda = podman("run", "--rm", "--network=none", "--entrypoint=python", *MORE_OPTIONS, IMAGE, *command)
    size = int(podman("image", "inspect", "--format", "{{.Size}}", IMAGE))
    assert cuda.strip() != "None" or size < 1.7e9


def load_until_it_ends(running: Container, *stop: str) -> tuple[list[str], list[str]]:
    """The outcomes of what was sent before podman was told to stop it, with these words, and of what was sent after."""
    command = [*PODMAN, "exec", "--interactive", running.name, "python", "-c", LOAD]
    lines: list[str] = []
    signalled = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL) as load:
        assert load.stdout
        for line in load.stdout:
            lines.append(line.strip())
            if len(lines) == 1000:
                assert "Z" not in running.processes().values()
                stopping = subprocess.Popen([*PODMAN, *stop], stdout=subprocess.DEVNULL)
                # What was written while the signal was on its way counts as sent after it.
                signalled = len(lines)
    assert signalled, "it ended by itself"
    assert stopping.wait(60) == 0
    wait_for(lambda: running.state("Running") == "false", 60)
    outcomes = {number: outcome for number, _, outcome in (line.partition(" ") for line in lines) if number != "sent"}
    sent = [line.split()[1] for line in lines if line.startswith("sent")]
    early = {line.split()[1] for line in lines[:signalled] if line.startswith("sent")}
    told = [(number, outcomes.get(number, "no answer")) for number in sent]
    return [o for n, o in told if n in early], [o for n, o in told if n not in early]
