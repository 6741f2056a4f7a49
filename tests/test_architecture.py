"""The house keeps its plan: imports run one way, functions are short."""

import ast
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[1] / "service"
# Who may look into whom; the demo builds the checkpoint and belongs to no room.
ALLOWED = {
    "__init__": set[str](),
    "__main__": {"settings", "process", "logs", "errors", "server", "fetch"},
    "server": {
        "settings", "assembly", "model", "front_end", "pytriton_compat", "errors", "cores", "metrics",
        "metrics_endpoint", "access", "process", "__version__",
    },
    "front_end": {
        "access", "settings", "assembly", "model", "pipeline", "endpoint", "pytriton_compat", "metrics", "health",
        "process",
    },
    "bulk": {
        "bulk", "client", "settings", "assembly", "pipeline", "model", "errors", "cores", "health", "logs", "metrics",
        "process",
    },
    "assembly": {"settings", "preprocessing", "model", "pipeline", "errors", "cores", "cache", "health", "metrics"},
    "fetch": {"model", "errors", "settings"},
    "probe": {"access", "errors", "health", "process", "settings"},
    "health": {"health", "model", "errors", "metrics", "process", "pytriton_compat"},
    "client": {"client"},
    "access": {"errors"},
    "endpoint": {"pipeline", "errors", "metrics", "pytriton_compat"},
    "pipeline": {"preprocessing", "errors", "cores", "cache", "metrics"},
    "preprocessing": {"preprocessing", "errors"},
    "model": {"model", "preprocessing", "settings", "errors", "cores", "metrics"},
    "settings": {"errors"},
    "cache": set[str](),
    "cores": set[str](),
    "errors": set[str](),
    "logs": set[str](),
    "metrics": set[str](),
    "metrics_endpoint": {"access", "metrics", "process"},
    "process": {"errors"},
    "pytriton_compat": {"access", "errors", "process", "pytriton_compat"},
}  # fmt: skip
# Only these rooms know of the transport, and only these of torch: the model, and the filters that resize images.
TRANSPORT = {"front_end", "pytriton_compat", "client"}
TORCH = {"model", "preprocessing"}
MAX_LINES = 40

MODULES = [path for path in sorted(SERVICE.rglob("*.py")) if "demo" not in path.parts]
NAMES = [path.relative_to(SERVICE).as_posix() for path in MODULES]


def _room(path: Path) -> str:
    return path.relative_to(SERVICE).parts[0].removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Full names of all modules that one imports, anywhere in it."""
    package = ["service", *path.relative_to(SERVICE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module or ""]).rstrip(".")
            # `from service import errors` names the room behind the import.
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_run_one_way(path: Path) -> None:
    parts = [name.split(".") for name in _imported(path)]
    assert {name[1] for name in parts if name[0] == "service"} <= ALLOWED[_room(path)]
    outside = {name[0] for name in parts}
    assert not outside & {"tests", "perf"}
    if _room(path) not in TRANSPORT:
        assert not outside & {"pytriton", "tritonclient"}
    assert "torch" not in outside or _room(path) in TORCH


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_functions_are_short_and_modules_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def test_the_plan_has_a_room_for_every_module() -> None:
    assert {_room(path) for path in MODULES} == set(ALLOWED)
