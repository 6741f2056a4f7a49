"""What becomes of this process when tritonserver cannot start, or ends in the middle of something."""

import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pytriton.triton import TritonConfig

from service.errors import ServiceFailure, StartupFault
from service.pytriton_compat.triton import Access, SupervisedTriton


def _triton(folder: Path, http_port: int) -> SupervisedTriton:
    config = TritonConfig(http_address="127.0.0.1", http_port=http_port, allow_metrics=False)
    return SupervisedTriton(config, folder, Access(None, None, None), 2**20, verbose=False)


@pytest.mark.parametrize("name", ["my files", "größe", "$(reboot)", "a;b", "a:b", "it's", "\udce8"])
def test_a_path_with_which_it_could_not_start_its_stubs_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(StartupFault, match="set TMPDIR"):
        _triton(folder, 1)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(StartupFault, match="set TMPDIR"):
        _triton(link, 1)
    assert os.listdir(folder) == []


def test_a_server_that_ends_while_it_is_asked_is_told_in_one_line(tmp_path: Path) -> None:
    """It takes the request and is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def end() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)

        threading.Thread(target=end, daemon=True).start()
        triton = _triton(tmp_path, listener.getsockname()[1])
        triton._workspace.model_store_path.mkdir(parents=True, exist_ok=True)
        triton._unloadable.mkdir()
        with pytest.raises(ServiceFailure, match="tritonserver could not be asked"):
            triton.report_not_ready()


@pytest.mark.parametrize("has_opened_its_ports", [True, False])
def test_a_server_that_has_opened_its_ports_is_not_given_up_for_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_opened_its_ports: bool
) -> None:
    """It may have accepted requests by then, unseen."""
    triton, interrupted = _triton(tmp_path, 1), threading.Event()
    answers = iter([False, has_opened_its_ports, has_opened_its_ports])
    interrupted.set()
    monkeypatch.setattr(triton, "_triton_server", SimpleNamespace(is_alive=lambda: True))
    monkeypatch.setattr(triton, "_run_server", lambda: None)
    monkeypatch.setattr(triton, "_answers", lambda *_: next(answers))
    monkeypatch.setattr(triton, "_hide_tokens", lambda: None)
    monkeypatch.setattr(triton, "_living_processes", lambda: [psutil.Process()])
    monkeypatch.setattr(triton, "_limit_shared_memory", lambda: None)
    assert triton.start(interrupted, 60) is has_opened_its_ports
