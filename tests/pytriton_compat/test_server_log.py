"""tritonserver's output in the service's log."""

import logging

import pytest

from service.pytriton_compat.server_log import ServerLog


def test_bytes_become_lines_whose_levels_count_while_it_serves(caplog: pytest.LogCaptureFixture) -> None:
    log = ServerLog()
    with caplog.at_level(logging.DEBUG, "tritonserver"):
        for is_serving in (False, True):
            log.is_serving = is_serving
            for piece in (b"E1128 it is", b" broken\n\n" + b"[ODDITY]\n" + b"x" * 600 + b"\n"):
                log.add(piece)
    expected = [*[logging.DEBUG] * 3, logging.ERROR, logging.DEBUG, logging.INFO]
    assert [record.levelno for record in caplog.records] == expected
    assert caplog.messages == ["E1128 it is broken", "[ODDITY]", "x" * 600] * 2
    assert log.last_words == "its last line: " + "x" * 500
