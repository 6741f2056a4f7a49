"""What an operator relies on: the manifests agree with each other, with the image and with the service."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.pytriton_compat.triton import _DRAIN_SECONDS
from service.server import _START_SECONDS
from service.settings import Settings, load_settings
from tests.manifests.rendering import (
    COMPONENTS,
    CONFIGS,
    KSERVE,
    NVIDIA,
    OVERLAYS,
    WEIGHTS,
    Manifest,
    needs_kubectl,
    only,
    pod_spec,
    render,
)

pytestmark = needs_kubectl
CONTAINERFILE = (CONFIGS.parent / "Containerfile").read_text()
IMAGE_ENVIRONMENT = dict(re.findall(r"\b(SERVICE_\w+)=(\S+)", CONTAINERFILE))
END_SECONDS = 10
SERVERS = [(overlay, "Deployment") for overlay in OVERLAYS] + [(KSERVE, "ServingRuntime")]
PODS = [*SERVERS, (WEIGHTS, "Job")]
each_server = pytest.mark.parametrize(("folder", "kind"), SERVERS)
each_pod = pytest.mark.parametrize(("folder", "kind"), PODS)


def container(folder: str, kind: str) -> dict[str, Any]:
    """The one container of a pod."""
    (found,) = pod_spec(only(render(folder), kind))["containers"]
    return dict(found)


@pytest.fixture
def settings(folder: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the service reads in such a pod: the image's environment, the pod's, its ConfigMap and its arguments."""
    given = container(folder, kind)
    for name, value in {**IMAGE_ENVIRONMENT, **_environment(given)}.items():
        monkeypatch.setenv(name, value)
    for manifest in render(folder):
        if manifest["kind"] == "ConfigMap":
            for name, text in manifest["data"].items():
                (tmp_path / name).write_text(text)
    return load_settings([word.replace("/etc/embed/", f"{tmp_path}/") for word in given["args"]])


def _environment(given: dict[str, Any]) -> dict[str, str]:
    """Its variables; what the kubelet fills in is the CPUs that the pod asks for."""
    resource = {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert [each["valueFrom"] for each in given["env"] if "valueFrom" in each] == [resource]
    return {each["name"]: each.get("value", given["resources"]["requests"]["cpu"]) for each in given["env"]}


@each_server
def test_the_service_reads_its_settings_and_they_fit_the_pod(folder: str, kind: str, settings: Settings) -> None:
    given = container(folder, kind)
    assert settings.host == "0.0.0.0" and settings.log_format == "json"
    assert settings.cpu_threads == int(given["resources"]["requests"]["cpu"])
    gpus = int(given["resources"]["limits"].get("nvidia.com/gpu", 0))
    devices = {0: "cpu", 1: "cuda"}.get(gpus, ",".join(f"cuda:{index}" for index in range(gpus)))
    assert settings.device == devices
    mounts = [mount["mountPath"] for mount in given["volumeMounts"]] + ["/mnt/models"] * (kind == "ServingRuntime")
    assert settings.checkpoint == "demo" or any(settings.checkpoint.startswith(mount) for mount in mounts)


@each_server
def test_every_port_is_the_services(folder: str, kind: str, settings: Settings) -> None:
    given = container(folder, kind)
    opened = {port["name"]: port["containerPort"] for port in given["ports"]}
    assert opened == {name.removesuffix("_port"): port for name, port in settings.ports.items()}
    assert [f"EXPOSE {' '.join(map(str, opened.values()))}"] == re.findall("^EXPOSE.*", CONTAINERFILE, re.MULTILINE)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert given[name]["httpGet"]["port"] == "http"
    for service in (manifest for manifest in render(folder) if manifest["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] == port["name"] and port["port"] == opened[port["name"]]
    if kind == "Deployment":
        rules = only(render(folder), "NetworkPolicy")["spec"]["ingress"]
        assert {port["port"] for rule in rules for port in rule["ports"]} == set(opened)


@each_server
def test_the_end_and_the_start_have_the_time_they_take(folder: str, kind: str, settings: Settings) -> None:
    owner = only(render(folder), "InferenceService")["spec"]["predictor"] if kind == "ServingRuntime" else None
    pod = owner or pod_spec(only(render(folder), kind))
    assert settings.shutdown_grace_s > 0
    assert pod["terminationGracePeriodSeconds"] > settings.shutdown_grace_s + _DRAIN_SECONDS + END_SECONDS
    startup = container(folder, kind)["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > _START_SECONDS
    # No service link becomes a variable that the service takes for a setting.
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False


@each_pod
def test_pods_pass_the_restricted_security_standard_as_the_images_user(folder: str, kind: str) -> None:
    spec, given = pod_spec(only(render(folder), kind)), container(folder, kind)
    context = {**spec.get("securityContext", {}), **given["securityContext"]}
    (user, group) = re.findall(r"^USER (\d+):(\d+)", CONTAINERFILE, re.MULTILINE)[0]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    kinds = {key for volume in spec["volumes"] for key in volume if key != "name"}
    assert kinds <= {"emptyDir", "configMap", "persistentVolumeClaim"}


@each_server
def test_a_pods_memory_holds_what_its_settings_allow(folder: str, kind: str, settings: Settings) -> None:
    """At rest, a thread that decodes 50 megapixels each, a queue of images of 4 MB, and shared memory."""
    spec, given = pod_spec(only(render(folder), kind)), container(folder, kind)
    (shared,) = (volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if volume["name"] == "shm")
    most = 0.6 + 0.6 * settings.cpu_threads + settings.max_queue_size * 4 / 1024 + _gibibytes(shared)
    assert most < _gibibytes(given["resources"]["limits"]["memory"])


@each_pod
def test_volumes_are_there_and_shared_memory_has_room_in_the_pods(folder: str, kind: str) -> None:
    spec, given = pod_spec(only(render(folder), kind)), container(folder, kind)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert sorted(mount["name"] for mount in given["volumeMounts"]) == sorted(volumes)
    if kind != "Job":
        shared = volumes["shm"]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert 2 * _gibibytes(shared["sizeLimit"]) < _gibibytes(given["resources"]["limits"]["memory"])
    for volume in volumes.values():
        if "configMap" in volume:
            assert volume["configMap"]["name"] == only(render(folder), "ConfigMap")["metadata"]["name"]
        if "persistentVolumeClaim" in volume:
            claim = only(render(WEIGHTS), "PersistentVolumeClaim")["metadata"]["name"]
            assert volume["persistentVolumeClaim"]["claimName"] == claim


def _gibibytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_the_servers_alone(overlay: str) -> None:
    manifests = render(overlay, "keda", "pod-monitor")
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    fetch = only(render(WEIGHTS), "Job")["spec"]["template"]["metadata"]["labels"]
    selectors = list(_selectors(manifests))
    assert len(selectors) == 8
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= fetch.items()


def _selectors(manifests: list[Manifest]) -> Iterator[dict[str, str]]:
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Service":
            yield spec["selector"]
        for name in ("selector", "podSelector"):
            if "matchLabels" in spec.get(name, {}):
                yield spec[name]["matchLabels"]
    for constraint in pod_spec(only(manifests, "Deployment"))["topologySpreadConstraints"]:
        yield constraint["labelSelector"]["matchLabels"]


@pytest.mark.parametrize("components", COMPONENTS, ids=" ".join)
def test_a_scaler_owns_the_number_of_replicas(components: tuple[str, ...]) -> None:
    manifests = render(NVIDIA, *components)
    deployment = only(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    (scaling,) = (manifest for manifest in manifests if "scaleTargetRef" in manifest.get("spec", {}))
    assert scaling["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    for manifest in manifests:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "embed"


def test_both_scalers_scale_by_the_same_number_before_the_alert_fires() -> None:
    kinds = ("ScaledObject", "HorizontalPodAutoscaler")
    keda, hpa = (only(render(NVIDIA, *names), kind)["spec"] for names, kind in zip(COMPONENTS, kinds, strict=True))
    (trigger,), (metric,) = keda["triggers"], hpa["metrics"]
    assert metric["pods"]["target"]["averageValue"] == f"{float(trigger['metadata']['threshold']) * 1000:.0f}m"
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    alerts = yaml.safe_load((CONFIGS / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    (alert,) = (rule["expr"] for rule in alerts if rule["alert"] == "EmbedQueueTimeHigh")
    assert float(trigger["metadata"]["threshold"]) < float(alert.split(">")[-1])


def test_the_pod_monitors_job_is_the_one_that_the_alerts_ask_for() -> None:
    manifests = render(NVIDIA, *COMPONENTS[0])
    monitor, pod = only(manifests, "PodMonitor")["spec"], only(manifests, "Deployment")["spec"]["template"]
    job = pod["metadata"]["labels"][monitor["jobLabel"]]
    assert f'up{{job="{job}"}}' in (CONFIGS / "prometheus" / "alerts.yml").read_text()
    opened = {port["name"] for port in container(NVIDIA, "Deployment")["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= opened


def test_the_token_is_where_the_service_and_prometheus_look_for_it() -> None:
    manifests = render(NVIDIA, *COMPONENTS[0])
    spec = pod_spec(only(manifests, "Deployment"))
    (given,) = spec["containers"]
    (path,) = (each["value"] for each in given["env"] if each["name"] == "SERVICE_ACCESS_TOKEN_FILE")
    (mount,) = (each for each in given["volumeMounts"] if each["mountPath"] == path.rpartition("/")[0])
    (secret,) = (each["secret"]["secretName"] for each in spec["volumes"] if each["name"] == mount["name"])
    (endpoint,) = only(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": secret, "key": path.rpartition("/")[2]}}


def test_an_inference_service_runs_on_the_serving_runtime() -> None:
    runtime, service = (only(render(KSERVE), kind) for kind in ("ServingRuntime", "InferenceService"))
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    given = container(KSERVE, "ServingRuntime")
    assert given["name"] == "kserve-container"
    reference = container(NVIDIA, "Deployment")
    for name in ("env", "resources", "startupProbe", "readinessProbe", "livenessProbe"):
        assert given[name] == reference[name]
