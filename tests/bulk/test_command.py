"""The command without Ray: what it is told, what it tells, and how it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from service.bulk import cluster, command
from service.bulk.cluster import Shares
from service.bulk.command import _report, main
from service.bulk.folder import Folder
from service.bulk.strikes import Strikes
from service.bulk.worker import Facts
from service.client.listing import LeftOut
from service.client.progress import Progress
from service.client.rows import Origin
from service.errors import ServiceFailure
from tests.bulk.lakes import ORIGIN, Job, Run, planned, ray_error

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0,cuda:1"])
def test_which_gpus_workers_get_is_for_ray_to_say(capsys: pytest.CaptureFixture[str], device: str) -> None:
    assert main(["lake", "--out", "vectors", "--device", device]) == 2
    assert "dealt GPUs by Ray" in capsys.readouterr().err


def test_a_checkpoints_folder_is_one_for_workers_that_start_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    names = ("checkpoint", "google/siglip-base-patch16-224")
    found = [command._settings(["--checkpoint", name]).checkpoint for name in names]
    assert found == [str(tmp_path / "checkpoint"), names[1]]


@pytest.mark.parametrize(("command", "name"), [("bulk", "ray"), ("bulk", "pyarrow"), ("client", "pyarrow")])
def test_what_is_not_installed_is_exit_code_2_in_one_line(tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}')")
    command_line = [sys.executable, "-m", f"service.{command}", "lake", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command_line, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True)
    who = "job" if command == "bulk" else "client"
    said = f"error: No module named {name}; the {who} needs the packages of '.[{command}]'\n"
    assert (result.returncode, result.stderr) == (2, said)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayError(""), "RayError"),
        (RayError("Traceback\n  it\nodd\n"), "odd"),
        (ray_error(ServiceFailure("the disk is full\nTo change retry attempts, configure Ray")), "the disk is full"),
    ],
)
def test_what_ray_says_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: RayError, told: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "_embed", fail)
    assert main(["lake", "--out", "vectors"]) == 3
    assert capsys.readouterr().err.splitlines() == [f"error: {told}"]


def test_ray_tells_its_makers_nothing_unless_somebody_wants_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_embed", lambda *_: 0)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DATA_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    assert main(["lake", "--out", "vectors"]) == 0 and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_DATA_LOG_LEVEL"] == "CRITICAL", "or it prints each failure, in sixty lines"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert main(["lake", "--out", "vectors"]) == 0 and os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_run_that_is_ended_tells_by_which_signal(
    lake: Path, out: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray has a handler of its own, and where it waits it raises an interrupt of its own."""
    utils = ray._private.utils
    monkeypatch.setattr(utils, "set_sigterm_handler", utils.set_sigterm_handler)  # as it was, when this is over

    def wait(*_: object, **__: object) -> None:
        utils.set_sigterm_handler(lambda number, _: sys.exit(number))  # type: ignore[no-untyped-call]
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", wait)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        assert main([str(lake), "--out", out.path]) == 143
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert capsys.readouterr().err.endswith(f"To go on:\n  python -m service.bulk {lake} --out {out.path}\n")


def test_a_link_that_leads_elsewhere_is_another_source(lake: Path, run: Run) -> None:
    link = lake.with_name("link")
    link.symlink_to(lake)
    assert run(source=link)[0] == 1
    link.unlink()
    link.symlink_to(lake / "sub")
    code, said = run(source=link)
    assert code == 2 and f"is of source {lake}, " in said and f"it would be source {lake}/sub, " in said


def test_a_name_that_is_no_text_is_told_in_one_line(out: Folder, run: Run) -> None:
    assert run("--out", os.fsdecode(os.fsencode(out.path) + b"\xe9")) == (2, f"error: {out.path}\\xe9 is no UTF-8\n")


def test_a_source_that_has_no_images_any_more_is_told_whatever_earlier_runs_have_planned(
    lake: Path, out: Folder, run: Run
) -> None:
    planned(lake, out)
    lake.rename(lake.with_name("elsewhere"))
    lake.mkdir()
    assert run() == (2, f"error: there are no images in {lake}\n")


def test_other_embeddings_than_those_of_earlier_runs_are_refused(lake: Path, out: Folder, run: Run) -> None:
    planned(lake, out, Origin("another", "embed_image", "False"))
    code, said = run()
    before, now = said.split("; now it would be ")
    assert code == 2 and before.endswith(", fingerprint another, model embed_image, normalize False")
    assert now.endswith(f", fingerprint {ORIGIN.fingerprint}, model embed_image, normalize False\n")


@pytest.mark.parametrize("gpus", [0, 1])
def test_workers_are_told_of_their_device_and_of_what_their_embeddings_are(
    lake: Path, out: Folder, run: Run, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    told = list[Any]()

    def work(*given: object) -> tuple[()]:
        told.append(given)
        return ()

    monkeypatch.setattr(cluster, "divide", lambda *_: Shares(1, 1, gpus))
    monkeypatch.setattr(cluster, "work", work)
    with out.for_one_run():
        assert run("--part-rows", "4")[0] == 2 and not told, "one run at a time"
    assert run("--part-rows", "4", "--default-normalize", "true")[0] == 1
    ((todo, again, settings, shares, lanes, site),) = told
    assert sum(todo.values()) == 10 and not again and settings.device == ("cuda" if gpus else "cpu")
    assert (shares, lanes, site.source.path, site.out.path) == (Shares(1, 1, gpus), 1, str(lake), out.path)
    assert site.origin == Origin(ORIGIN.fingerprint, "embed_image", "True")
    assert run("--part-rows", "4")[0] == 2, "plain embeddings are others"


def test_where_nobody_watches_a_line_tells_how_far_a_job_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_LINE_SECONDS", 0.0)
    assert command._follow([{"images": 2, "failed": 1}] * 2, 5).done == 4
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["2/5", "4/5"]


def test_parts_that_cannot_be_read_do_not_count_as_embedded(
    job: Job, out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    job.work()
    plan = job.plan()
    assert _report("OUT", out, plan, Progress(), LeftOut()) == 0
    assert _report("OUT", out, plan, Progress(), LeftOut(["a.tar: not a whole tar file"])) == 1
    Path(out.path, plan.chunks[0].part).unlink()
    assert _report("OUT", out, plan, Progress(), LeftOut()) == 1
    said = capsys.readouterr().err
    assert "OUT: 10 embeddings" in said and "OUT: 6 embeddings" in said and "the parts of 4 images cannot be" in said


def test_what_is_gone_before_it_is_embedded_is_no_failure(
    job: Job, lake: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ask", lambda *_: Facts(job.origin.fingerprint, 1))
    monkeypatch.setattr(cluster, "work", lambda *_: job.work())
    job.plan()
    (lake / "2.jpg").unlink()
    assert run()[0] == 0
    assert job.errors() == {"2.jpg": "unreadable: No such file or directory"}


def test_what_failed_and_is_not_there_any_more_is_no_failure(
    job: Job, lake: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ask", lambda *_: Facts(job.origin.fingerprint, 1))
    for name in ("0.jpg", "2.jpg"):
        (lake / name).write_text("no image")
    job.work()
    (lake / "2.jpg").unlink()
    code, said = run()
    assert code == 1 and "1 failed in earlier runs, and are not in this source\n1 failed, and are tried" in said
    (lake / "0.jpg").unlink()
    code, said = run()
    assert code == 0 and "2 failed in earlier runs" in said and "are tried" not in said and "8 embeddings" in said


def test_whatever_ended_an_earlier_run_no_image_is_suspected_of_it(lake: Path, out: Folder, run: Run) -> None:
    chunk, strikes = planned(lake, out).chunks[0], Strikes(out)
    assert [strikes.begin(chunk) for _ in range(3)] == [0, 1, 2]
    assert run()[0] == 1
    assert strikes.begin(chunk) == 0
