"""What becomes of this process when tritonserver ends in the middle of something."""

import socket
import threading
from pathlib import Path

import pytest
from pytriton.triton import TritonConfig

from service.errors import ServiceFailure
from service.pytriton_compat.triton import Access, SupervisedTriton


def test_a_server_that_ends_while_it_is_asked_is_told_in_one_line(tmp_path: Path) -> None:
    """It takes the request and is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def end() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)

        threading.Thread(target=end, daemon=True).start()
        config = TritonConfig(http_address="127.0.0.1", http_port=listener.getsockname()[1], allow_metrics=False)
        triton = SupervisedTriton(config, tmp_path, Access(None, None, None), 2**20, verbose=False)
        triton._workspace.model_store_path.mkdir(parents=True, exist_ok=True)
        with pytest.raises(ServiceFailure, match="tritonserver could not be asked"):
            triton.report_not_ready()
