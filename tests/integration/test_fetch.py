"""A checkpoint from a hub, fetched once, is served where no hub is reached."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.fake_hub import COMMIT, HUB_ID, FakeHub, fake_hub
from tests.integration.reference import CHECKPOINT
from tests.integration.service_process import service

NEEDED = ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
    with fake_hub({**files, "pytorch_model.bin": b"weights in another format"}) as hub:
        yield hub


FETCH = (sys.executable, "-m", "service", "fetch")


def _environment(hub: FakeHub, home: Path) -> dict[str, str]:
    """That of a fetch with an empty cache of its own."""
    patient = {"HF_HUB_ETAG_TIMEOUT": "600", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **patient}


def fetch(hub: FakeHub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m service fetch`, to its end."""
    command, environment = [*FETCH, *arguments], _environment(hub, home)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_what_the_cache_got_is_served_offline_with_the_fingerprint_that_was_printed(
    hub: FakeHub, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    fetched = fetch(hub, home, HUB_ID, "--revision", COMMIT)
    assert fetched.returncode == 0, fetched.stderr
    assert sorted({path.name for path in home.rglob(f"snapshots/{COMMIT}/*")}) == NEEDED
    assert f"serve it with: python -m service --checkpoint {HUB_ID} --revision {COMMIT}\n" in fetched.stdout
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    chosen = ("--checkpoint", HUB_ID, "--revision", COMMIT, "--dtype", "float32")
    with service(tmp_path, *chosen, environment=offline) as running:
        (served,) = re.findall(r'fingerprint="(\w+)"', running.metrics())
    assert f"fingerprint in float32: {served}\n" in fetched.stdout


def test_a_branch_is_resolved_and_a_folder_filled(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "my siglip"
    fetched = fetch(hub, tmp_path / "home", HUB_ID, "--revision", "main", "--to", str(folder))
    assert fetched.returncode == 0, fetched.stderr
    assert f"pin it: --revision {COMMIT}\n" in fetched.stdout
    assert f"serve it with: python -m service --checkpoint '{folder}'\n" in fetched.stdout
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == NEEDED
    assert all((folder / name).read_bytes() == hub.files[name] for name in NEEDED)


def test_what_is_not_the_hubs_or_not_whole_is_refused_in_one_line(hub: FakeHub, tmp_path: Path) -> None:
    def refusal(*arguments: str) -> str:
        result = fetch(hub, tmp_path / "home", *arguments)
        assert result.returncode == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        return result.stderr

    assert "cannot be fetched" in refusal("someone/else", "--revision", COMMIT)
    assert "cannot be fetched" in refusal(HUB_ID, "--revision", "f" * 40)
    folder = tmp_path / "siglip"
    folder.mkdir()
    for other in ("model.safetensors.index.json", "notes.txt"):
        (folder / other).touch()
    refused = refusal(HUB_ID, "--revision", COMMIT, "--to", str(folder))
    assert f"files of another checkpoint are in {folder}: model.safetensors.index.json; delete them" in refused
    (folder / "model.safetensors").unlink()
    weights = hub.files["model.safetensors"]
    hub.files["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    assert "other bytes than the hub's" in refusal(HUB_ID, "--revision", COMMIT, "--to", str(folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_what_is_on_its_way(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    is_on_its_way, over, answer = threading.Event(), threading.Event(), hub.answer

    def hold_the_weights(path: str) -> object:
        if path.endswith(".safetensors"):
            is_on_its_way.set()
            over.wait()
        return answer(path)

    monkeypatch.setattr(hub, "answer", hold_the_weights)
    command, environment = [*FETCH, HUB_ID, "--revision", COMMIT], _environment(hub, tmp_path)
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        try:
            assert is_on_its_way.wait(120)
            process.send_signal(number)
            assert process.communicate(timeout=60)[1] == b"" and process.returncode == 1
        finally:
            over.set()
            process.kill()


def test_an_adapter_comes_along_and_is_not_passed_over(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
    with fake_hub({**files, "adapter_config.json": b"{}"}) as hub:
        fetched = fetch(hub, tmp_path, HUB_ID, "--revision", COMMIT)
    assert fetched.returncode == 1 and "has an adapter" in fetched.stderr


@pytest.fixture
def pickled() -> Iterator[FakeHub]:
    files = {name: (CHECKPOINT / name).read_bytes() for name in ("config.json", "preprocessor_config.json")}
    weights = io.BytesIO()
    torch.save(load_file(CHECKPOINT / "model.safetensors"), weights)
    with fake_hub({**files, "pytorch_model.bin": weights.getvalue()}) as hub:
        yield hub


def test_weights_whose_checksum_is_not_compared_are_not_loaded(pickled: FakeHub, tmp_path: Path) -> None:
    fetched = fetch(pickled, tmp_path, HUB_ID, "--revision", COMMIT)
    assert fetched.returncode == 1 and "has no readable weights" in fetched.stderr
    assert not list(tmp_path.rglob("*.bin"))


LOAD = f"""
from service.process.environment import prepare_environment
prepare_environment()
from service.model.checkpoint import load_model
load_model("{HUB_ID}", "{COMMIT}", False)
"""


def test_of_pickled_weights_no_conversion_is_asked_for(pickled: FakeHub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": pickled.url, "HF_HOME": str(tmp_path)}
    environment.pop("DISABLE_SAFETENSORS_CONVERSION", None)
    subprocess.run([sys.executable, "-c", LOAD], check=True, env=environment)
    assert any(path.endswith("pytorch_model.bin") for path in pickled.asked)
    assert f"/api/models/{HUB_ID}" not in pickled.asked  # whether the converter may see it
