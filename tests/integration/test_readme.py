"""What the README says works: its Python blocks and its curl, against a running service."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import requests

from service.settings import Settings
from tests.integration.reference import REPOSITORY, photographs
from tests.integration.service_process import ServiceProcess

README = (REPOSITORY / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH_BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
CURL_BLOCK = next(block for block in BASH_BLOCKS if "curl" in block)


def on_ports_of(running: ServiceProcess, text: str) -> str:
    """The README's addresses, turned to those of the running service."""
    return text.replace(":8000", f":{running.http_port}").replace(":8001", f":{running.grpc_port}")


@pytest.fixture(scope="module")
def folder(running: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has followed the README up to its first embedding; answer.json holds that one's answer."""
    folder = tmp_path_factory.mktemp("reader")
    script = on_ports_of(running, CURL_BLOCK).replace(".venv/bin/python", sys.executable)
    result = subprocess.run(["bash", "-ec", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (folder / "answer.json").write_text(result.stdout)
    return folder


def test_the_curl_prints_an_embedding(folder: Path) -> None:
    (output,) = json.loads((folder / "answer.json").read_text())["outputs"]
    assert output["name"] == "EMBEDDING" and len(output["data"]) == output["shape"][1]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_each_python_block_runs_and_prints_a_shape(running: ServiceProcess, folder: Path, block: str) -> None:
    command = [sys.executable, "-W", "error", "-c", on_ports_of(running, block)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert re.match(r"[\[(]\d+, ?\d*[\])]", result.stdout), result.stdout


def test_the_command_for_many_images_runs(running: ServiceProcess, tmp_path: Path) -> None:
    block = next(block for block in BASH_BLOCKS if "service.client" in block)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(photographs()[0])
    script = on_ports_of(running, block).replace(".venv/bin/python", sys.executable)
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, timeout=120)
    assert (
        len(np.load(tmp_path / "embeddings.npy"))
        == pyarrow.parquet.read_table(tmp_path / "embeddings.parquet").num_rows
        == 1
    )


def test_the_table_of_metrics_is_complete(running: ServiceProcess) -> None:
    scrape = requests.get(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=30).text
    measured = set(re.findall(r"^# TYPE (embed_\w+)", scrape, re.MULTILINE))
    described = re.findall(r"^  \| `(embed_\w+)[{`]", README, re.MULTILINE)
    assert sorted(described) == sorted(name for name in measured if not name.endswith("_created"))


def test_the_table_of_settings_is_complete() -> None:
    for name, field in Settings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = "" if default is None else f"`{default}`"
        assert f"| `--{name.replace('_', '-')}` | {shown} | {field.description} |" in README
