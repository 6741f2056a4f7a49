"""With --log-format json each line of the real service is an event; a flood of bad images leaves a few lines."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from service.logs import RECORDS_A_MINUTE
from tests.integration.clients import post_raw, triton_input
from tests.integration.service_process import ServiceProcess, service
from tests.ports import unused_port


def _events(running: ServiceProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.output().splitlines()]


def test_each_line_is_an_event_and_a_flood_leaves_few_of_them(tmp_path: Path) -> None:
    with service(tmp_path, "--log-format", "json", "--lanes", "2") as running:
        tensor = {"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": ["text"]}
        requests.post(running.infer_url, json={"id": "from http\n", "inputs": [tensor]}, timeout=60)
        hidden = {"id": "hidden", "inputs": [tensor], "parameters": {"embed_model": "heartbeat"}}
        requests.post(running.infer_url, json=hidden, timeout=60)
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
            inputs = [triton_input(tritonclient.grpc, [b""])]
            with pytest.raises(InferenceServerException):
                client.infer("embed_image", inputs, request_id="from grpc")
        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(lambda _: post_raw(running, b"%PDF-1.7").status_code, range(200)))
        assert statuses == [400] * 200
        assert running.stop() == 0
        events = _events(running)
    refusals = [event for event in events if event["logger"] == "service.endpoint"]
    ids = {event["request_id"]: event["code"] for event in refusals if "request_id" in event}
    assert ids == {"from http\n": "unsupported_format", "from grpc": "empty_input", "hidden": "unknown_model"}
    # Of one code, even if the flood lies in two minutes; and none of the service's own requests.
    assert RECORDS_A_MINUTE <= len(refusals) - 2 <= 2 * RECORDS_A_MINUTE
    messages = [event["message"] for event in events]
    assert messages[-1] == "stopped"
    ready = next(event for event in events if event["message"].startswith("ready: "))
    assert ready["checkpoint"] == "demo" and ready["fingerprint"] in ready["message"]
    assert not [message for message in messages if str(running.temporary) in message or "Traceback" in message]


def test_what_keeps_it_from_starting_is_an_event_too() -> None:
    ports = ["--http-port", "0", "--metrics-port", "0", "--grpc-port", str(unused_port())]
    command = [sys.executable, "-m", "service", "--log-format", "json", "--device", "cuda:77", *ports]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    *_, last = (json.loads(line) for line in result.stderr.splitlines())
    assert (result.returncode, last["level"]) == (1, "CRITICAL")
    assert last["message"].startswith("device cuda:77 is not there")


@pytest.mark.parametrize(
    ("variables", "file", "arguments", "message"),
    [
        ({}, "", ["--log-format", "json", "--lanes", "99"], "lanes: "),
        ({"SERVICE_LOG_FORMAT": "json"}, "lanes =", [], "the settings file "),
        ({"SERVICE_LANES": "99"}, 'log_format = "json"', [], "lanes: "),
        ({"SERVICE_LOG_FORMAT": "json", "SERVICE_LANEZ": "1"}, "", [], "there is no setting for the environment"),
        ({"SERVICE_LOG_FORMAT": "json"}, "", ["--log-format", "text", "--lan", "9"], None),
        ({}, 'log_format = "jsn"', ["--log-format"], None),
    ],
)
def test_a_wrong_setting_is_an_event_where_the_others_ask_for_it(
    tmp_path: Path, variables: dict[str, str], file: str, arguments: list[str], message: str | None
) -> None:
    (tmp_path / "service.toml").write_text(file)
    result = subprocess.run(
        [sys.executable, "-m", "service", "--config", str(tmp_path / "service.toml"), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    if message is None:
        assert line.startswith("error: ")
    else:
        event = json.loads(line)
        assert event["level"] == "CRITICAL" and event["message"].startswith(message)
