"""What `kubectl kustomize` makes of the folders below configs/."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
KUBERNETES = CONFIGS / "kubernetes"
# All of these are below configs/.
OVERLAYS = sorted(f"kubernetes/overlays/{path.name}" for path in (KUBERNETES / "overlays").iterdir())
# Together they are all components; both scalers at once would be a mistake.
COMPONENTS = [("keda", "pod-monitor", "access-token"), ("hpa", "pod-monitor")]
KSERVE = "kserve"
WEIGHTS = "kubernetes/weights"
NVIDIA = "kubernetes/overlays/nvidia"

Manifest = dict[str, Any]

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is missing")


@lru_cache
def render(folder: str, *components: str) -> list[Manifest]:
    """The objects of one folder below configs/, with components as a site would add them; nobody may change them."""
    if not components:
        return _kustomize(CONFIGS / folder)
    with TemporaryDirectory() as site:
        joined = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(CONFIGS / folder, site)],
            "components": [os.path.relpath(KUBERNETES / "components" / name, site) for name in components],
        }
        (Path(site) / "kustomization.yaml").write_text(yaml.safe_dump(joined))
        return _kustomize(Path(site))


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The one object of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_spec(manifest: Manifest) -> dict[str, Any]:
    """What a Deployment, a Job or a ServingRuntime says of its pods."""
    spec: dict[str, Any] = manifest["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a manifest: every key and index, from the top."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def _kustomize(folder: Path) -> list[Manifest]:
    words = ["kubectl", "kustomize", str(folder)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    # It warns of what the next kustomize will refuse.
    assert not result.stderr, result.stderr
    return list(yaml.safe_load_all(result.stdout))
