"""The service of a row stands still where a row asks for that, and goes on."""

import subprocess

import psutil

from perf.service_under_test import Service
from tests.integration.service_process import wait_for


def test_a_paused_service_stands_still_with_all_its_processes() -> None:
    service = Service()
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE) as process:
        service._process = process
        assert process.stdout is not None and process.stdout.readline()
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        with service.paused():
            wait_for(lambda: [each.status() for each in family] == [psutil.STATUS_STOPPED] * 2)
        wait_for(lambda: psutil.STATUS_STOPPED not in [each.status() for each in family])
        for each in family:
            each.kill()
