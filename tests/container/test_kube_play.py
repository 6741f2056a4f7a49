"""The very Deployment of the cpu overlay, run by `podman kube play`; `_for_podman()` is all that is changed before.

Needs kubectl, and what test_container.py needs.
"""

import copy
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import yaml

from tests.container.test_container import IMAGE, UNPRIVILEGED, Container, load_until_it_ends, podman
from tests.container.test_container import pytestmark as needs_podman
from tests.integration.service_process import wait_for
from tests.manifests.rendering import Manifest, needs_kubectl, only, pod_spec, render

pytestmark = [*needs_podman, needs_kubectl]
MANIFESTS = "kubernetes/overlays/cpu"
# What the kubelet does: any status from 200 to 399 is good.
PROBE = "import sys, urllib.request; urllib.request.urlopen('http://127.0.0.1:8000' + sys.argv[1], timeout=5)"


def _for_podman(deployment: Manifest, name: str) -> Manifest:
    changed = copy.deepcopy(deployment)
    spec = pod_spec(changed)
    (container,) = spec["containers"]
    changed["metadata"]["name"] = name
    # One, as podman gives all pods the same emptyDir.
    changed["spec"]["replicas"] = 1
    # The image was built here and is in no registry.
    container.update(image=IMAGE, imagePullPolicy="Never")
    # podman publishes them on the host, which a pod without a network cannot.
    del container["ports"]
    # podman makes it a command with curl, which the image does not have. The test asks in its place.
    del container["livenessProbe"]
    # podman makes an emptyDir here that only root can write to; its own /dev/shm has 64 MB.
    for volumes in (spec["volumes"], container["volumeMounts"]):
        volumes[:] = [volume for volume in volumes if volume["name"] != "shm"]
    return changed


@contextmanager
def deployed(folder: Path) -> Iterator[tuple[str, Container]]:
    """The overlay's Deployment as a pod, by name, and its container; afterwards all that podman made of it is gone."""
    name = f"embed-test-{os.getpid()}-{time.monotonic_ns()}"
    parts = (_for_podman(only(render(MANIFESTS), "Deployment"), name), only(render(MANIFESTS), "ConfigMap"))
    for part in parts:
        (folder / part["kind"]).write_text(yaml.safe_dump(part))
    before = set(podman("volume", "ls", "--quiet").split())
    try:
        settings = f"--configmap={folder / 'ConfigMap'}"
        podman("kube", "play", "--network=none", settings, str(folder / "Deployment"))
        yield f"{name}-pod-0", Container(f"{name}-pod-0-embed")
    finally:
        podman("pod", "rm", "--force", "--ignore", f"{name}-pod-0")
        for volume in set(podman("volume", "ls", "--quiet").split()) - before:
            podman("volume", "rm", volume)


def test_the_deployment_becomes_ready_embeds_and_drains(tmp_path: Path) -> None:
    spec = pod_spec(only(render(MANIFESTS), "Deployment"))
    (manifest,) = spec["containers"]
    with deployed(tmp_path) as (pod, running):

        def passes(probe: str) -> bool:
            return running.run("python", "-c", PROBE, manifest[probe]["httpGet"]["path"]).returncode == 0

        wait_for(lambda: passes("startupProbe"))
        assert passes("readinessProbe") and passes("livenessProbe")
        assert running.run("sh", "-c", UNPRIVILEGED).stdout.split() == ["10001", "10001", "0" * 16, "0" * 16, "1"]
        assert running.run("touch", "/app/written").returncode != 0
        probed = running.run("python", "-m", "service.probe")
        assert probed.returncode == 0, probed.stdout
        # Not by a signal of our own, after which podman, like a kubelet, would start it again.
        seconds = str(spec["terminationGracePeriodSeconds"])
        before, after = load_until_it_ends(running, "pod", "stop", "--time", seconds, pod)
        assert running.state("ExitCode") == "0", running.log()
        (grace,) = (each["value"] for each in manifest["env"] if each["name"] == "SERVICE_SHUTDOWN_GRACE_S")
        assert float(grace) < _seconds_of_the_end(running.log()) < float(seconds)
    assert len(before) > 100 and set(before) == {"right"}
    assert set(after) <= {"right", "404", "no connection"}


def _seconds_of_the_end(log: str) -> float:
    """Between what the service logs first and last after the signal."""
    begin, end = (
        datetime.fromisoformat(json.loads(line)["timestamp"]) for line in log.splitlines() if '"message": "stop' in line
    )
    return (end - begin).total_seconds()
