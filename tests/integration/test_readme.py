"""What the README says works: its Python blocks and its curl, against a running service."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.settings import Settings
from tests.integration.reference import REPOSITORY, photographs
from tests.integration.service_process import ServiceProcess

README = (REPOSITORY / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH_BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
CURL_BLOCK = next(block for block in BASH_BLOCKS if "curl" in block)
FOLDER_BLOCK = next(block for block in BASH_BLOCKS if "service.client" in block)


def on_ports_of(running: ServiceProcess, text: str) -> str:
    """The README's addresses, turned to those of the running service."""
    return text.replace(":8000", f":{running.http_port}").replace(":8001", f":{running.grpc_port}")


@pytest.fixture(scope="module")
def folder(running: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has followed the README through its first chapter; answer.json holds what the curl printed."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for number, photograph in enumerate(photographs()):
        (folder / "photos" / f"{number}.jpg").write_bytes(photograph)
    (folder / "answer.json").write_text(run_block(running, CURL_BLOCK, folder))
    run_block(running, FOLDER_BLOCK, folder)
    return folder


def run_block(running: ServiceProcess, block: str, folder: Path) -> str:
    """What a block for a shell prints, which must succeed."""
    script = on_ports_of(running, block).replace(".venv/bin/python", sys.executable)
    result = subprocess.run(["bash", "-ec", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_curl_prints_an_embedding(folder: Path) -> None:
    (output,) = json.loads((folder / "answer.json").read_text())["outputs"]
    assert output["name"] == "EMBEDDING" and len(output["data"]) == output["shape"][1]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_each_python_block_runs_and_prints_a_shape(running: ServiceProcess, folder: Path, block: str) -> None:
    command = [sys.executable, "-W", "error", "-c", on_ports_of(running, block)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.match(r"[\[(]\d+, ?\d*[\])]", result.stdout), result.stdout


def test_the_command_for_a_list_of_names_runs(running: ServiceProcess, folder: Path) -> None:
    run_block(running, next(block for block in BASH_BLOCKS if "service.client embed -" in block), folder)
    assert len(np.load(folder / "embeddings.npy")) == len(photographs())


def test_the_table_of_contents_leads_to_every_chapter() -> None:
    linked = re.findall(r"\[([^]]+)\]\(#([\w-]+)\)", README)
    assert [title for title, _ in linked] == re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert [anchor for _, anchor in linked] == [
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title, _ in linked
    ]


def test_the_table_of_metrics_is_complete(running: ServiceProcess) -> None:
    measured = set(re.findall(r"^# TYPE (embed_\w+)", running.metrics(), re.MULTILINE))
    described = re.findall(r"^  \| `(embed_\w+)[{`]", README, re.MULTILINE)
    assert sorted(described) == sorted(name for name in measured if not name.endswith("_created"))


def test_the_table_of_settings_is_complete() -> None:
    for name, field in Settings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = "" if default is None else f"`{default}`"
        assert f"| `--{name.replace('_', '-')}` | {shown} | {field.description} |" in README
