"""Strict schemas of all kinds: those of Kubernetes, and of custom resources from what their projects publish.

Comes in: an object. Goes out: why an API server would refuse it. Values that only the server's own code looks at, such
as quantities and names, pass.
"""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

# The releases of Kubernetes that the manifests are for; KServe's models are made of the newest one's.
OLDEST, NEWEST = "1.27", "1.37"
Schema = dict[str, Any]

# Where the model of a kind is; their imports take seconds.
_PYDANTIC = {
    "ScaledObject": "keda.v1alpha1",
    "PodMonitor": "prometheus_operator.v1",
    "PrometheusRule": "prometheus_operator.v1",
}
_KSERVE = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
_KUBERNETES = "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s."
_SCALARS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
# What is neither KServe's own nor of Kubernetes' core; a name that is missing here raises as soon as it is needed.
_ELSEWHERE = {
    "V1ObjectMeta": "apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "ResourceQuantity": "apimachinery.pkg.api.resource.Quantity",
}


def kserve_is_installed() -> bool:
    """It is not one of the tests' dependencies: it wants an older psutil than the service."""
    return any(distribution.name == "kserve" for distribution in metadata.distributions())


def refusal(manifest: dict[str, Any], version: str = NEWEST) -> str | None:
    """What is wrong with an object for a release of Kubernetes; None where nothing is."""
    validator = _validator(manifest["apiVersion"], manifest["kind"], version)
    return next((error.message for error in validator.iter_errors(manifest)), None)


@lru_cache
def _validator(api: str, kind: str, version: str) -> Draft202012Validator:
    if kind in _PYDANTIC:
        model = getattr(import_module(f"cloudcoil.models.{_PYDANTIC[kind]}"), kind)
        schema = _closed(model.model_json_schema())
    elif kind in _KSERVE:
        schema = _kserve_schema(_KSERVE[kind])
    else:
        # apps/v1 is apps-v1, networking.k8s.io/v1 is networking-v1.
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
        schema = _published(f"{kind.lower()}-{group}", version)
    registry: Registry[Any] = Resource.from_contents(_published("_definitions", version)) @ Registry()
    return Draft202012Validator(schema, registry=registry)


@lru_cache
def _published(name: str, version: str) -> Schema:
    """One of the schemas of kubernetes-validate."""
    schema: Schema = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{name}.json", version)
    return schema


def _closed(schema: Any) -> Any:
    """The same with every object's unknown fields refused, as an API server does with `--validate=strict`."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if "properties" in closed else closed


def _kserve_schema(root: str) -> Schema:
    """From the classes in KServe's client, read and not imported: an import wants all that KServe's servers need."""
    definitions: dict[str, Schema] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name not in definitions:
            definitions[name], used = _kserve_class(name)
            waiting += used
    return {"$ref": f"#/$defs/{root}", "$defs": definitions}


def _kserve_class(name: str) -> tuple[Schema, list[str]]:
    """The schema of one class, and the other classes of KServe that it needs."""
    source = _kserve_files()[name].read_text()
    types, keys = (ast.literal_eval(re.findall(rf"{what} = (\{{.*?\}})", source, re.DOTALL)[0]) for what in _TABLES)
    required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)
    properties = {keys[attribute]: _typed(kind) for attribute, kind in types.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    used = [word for kind in types.values() for word in re.findall(r"\w+", kind) if word in _kserve_files()]
    return {**schema, "required": [keys[attribute] for attribute in required]}, used


_TABLES = ("openapi_types", "attribute_map")


def _typed(kind: str) -> Schema:
    """The schema of a type as KServe's client writes it: str, list[V1Container], dict(str, str)."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _typed(inner[1])}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _typed(inner[1])}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if kind in _kserve_files():
        return {"$ref": f"#/$defs/{kind}"}
    return {"$ref": _KUBERNETES + (_ELSEWHERE.get(kind) or f"api.core.v1.{kind.removeprefix('V1')}")}


@lru_cache
def _kserve_files() -> dict[str, Path]:
    """The file of each class of KServe's client."""
    return dict(_classes(Path(str(metadata.distribution("kserve").locate_file("kserve/models")))))


def _classes(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.glob("*.py"):
        for name in re.findall(r"^class (\w+)\(object\)", path.read_text(), re.MULTILINE):
            yield name, path
