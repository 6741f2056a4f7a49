"""An API server would take every object, and refuse each of them as soon as one field of it is wrong."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.rendering import (
    COMPONENTS,
    CONFIGS,
    KSERVE,
    KUBERNETES,
    NVIDIA,
    OVERLAYS,
    WEIGHTS,
    Manifest,
    needs_kubectl,
    paths,
    render,
)
from tests.manifests.schemas import NEWEST, OLDEST, kserve_is_installed, refusal

pytestmark = needs_kubectl
needs_kserve = pytest.mark.skipif(not kserve_is_installed(), reason="needs pip install --no-deps kserve==0.21.0")
# Maps whose keys are their author's own, by the last key of their path.
FREE = {"annotations", "data", "labels", "limits", "matchLabels", "requests"}
ALSO_FREE = {("Service", ("spec", "selector")), ("ScaledObject", ("spec", "triggers", 0, "metadata"))}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", [pytest.param(KSERVE, marks=needs_kserve), WEIGHTS, *OVERLAYS])
def test_each_object_passes(folder: str, version: str) -> None:
    assert [refusal(manifest, version) for manifest in render(folder)] == [None] * len(render(folder))


@pytest.mark.parametrize("components", COMPONENTS, ids=" ".join)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_object_passes_with_components(overlay: str, components: tuple[str, ...]) -> None:
    manifests = render(overlay, *components)
    assert [refusal(manifest) for manifest in manifests] == [None] * len(manifests)


def test_the_rule_that_the_readme_makes_of_the_alerts_passes(tmp_path: Path) -> None:
    (block,) = re.findall(r"```bash\n([^`]*PrometheusRule[^`]*)```", (CONFIGS.parent / "README.md").read_text())
    (tmp_path / "configs").symlink_to(CONFIGS)
    (tmp_path / "site").mkdir()
    subprocess.run(["bash", "-ec", block], cwd=tmp_path, check=True)
    rule = yaml.safe_load((tmp_path / "site" / "prometheus-rule.yaml").read_text())
    assert refusal(rule) is None
    assert rule["spec"] == yaml.safe_load((CONFIGS / "prometheus" / "alerts.yml").read_text())
    assert _unnoticed(rule) == []


def test_no_component_is_left_out() -> None:
    folders = {path.name for path in (KUBERNETES / "components").iterdir()}
    assert {name for components in COMPONENTS for name in components} == folders


def test_each_broken_copy_is_refused() -> None:
    scaled = [manifest for components in COMPONENTS for manifest in render(NVIDIA, *components)]
    kinds = {manifest["kind"]: manifest for manifest in [*render(WEIGHTS), *scaled]}
    assert len(kinds) == 11
    assert [mistake for manifest in kinds.values() for mistake in _unnoticed(manifest)] == []


@needs_kserve
def test_each_broken_copy_is_refused_for_kserve() -> None:
    assert [mistake for manifest in render(KSERVE) for mistake in _unnoticed(manifest)] == []


def _unnoticed(manifest: Manifest) -> list[str]:
    """The mistakes that a schema lets pass: anywhere in the object a value of another type, or an unknown field."""
    found = []
    for path in paths(manifest):
        value, where = _at(manifest, path), f"{manifest['kind']} {path}"
        wrong_type: Any = 7 if isinstance(value, dict | list) else {}
        if path[-1] not in ("apiVersion", "kind") and not refusal(_changed(manifest, path, wrong_type)):
            found.append(f"{where} of another type")
        is_free = path[-1] in FREE or (manifest["kind"], path) in ALSO_FREE
        if isinstance(value, dict) and not is_free and not refusal(_changed(manifest, (*path, "unknown"), "x")):
            found.append(f"{where} with an unknown field")
    return found


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _changed(manifest: Manifest, path: tuple[Any, ...], value: Any) -> Manifest:
    changed = copy.deepcopy(manifest)
    _at(changed, path[:-1])[path[-1]] = value
    return changed
