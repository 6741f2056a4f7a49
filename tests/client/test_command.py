"""The command as a whole: what is kept, gone on from and told, however a run ends."""

import asyncio
import os
import signal
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.client import command, job
from tests.client.fake_service import DIMENSION, FakeService
from tests.client.running import Client, expected, write_shard
from tests.integration.service_process import wait_for

# In the midst of putting its parts together, it takes its time.
SLOW_SCRIPT = """import sys, time; from service.client import command, results
results.Results._write_parquet = lambda *_: time.sleep(600)
sys.exit(command.main(sys.argv[1:]))"""


def test_what_fails_is_told_by_code_and_tried_again_on_demand_only(
    client: Client, fake: FakeService, tmp_path: Path
) -> None:
    images = client.images("200", "400 200", "501 200")
    (images / "gone.png").symlink_to("nowhere")
    (images / "large.png").write_bytes(bytes(100))
    most = ("--max-image-bytes", 99)
    for _ in range(2):
        assert client.embed(images, *most) == 1
        assert client.errors() == {
            "2.JPG": "http_501: Unsupported content-encoding",
            "below/1.JPG": "corrupt_image: it is damaged",
            "gone.png": "unreadable: No such file or directory",
            "large.png": "too_many_bytes: over 99 bytes (--max-image-bytes)",
        }
        report = client.said()
        assert "4 failed" in report and "  corrupt_image: 1\n    below/1.JPG: it is damaged\n" in report
        assert set(fake.asked.values()) == {1}
    broken = images / "below/1.JPG"
    broken.rename(tmp_path / "broken")
    assert client.embed(images, *most) == 1
    report = client.said()
    assert "1 failed in earlier runs, and are not in this source\n3 failed, and are tried" in report
    (tmp_path / "broken").rename(broken)
    for name in ("gone.png", "large.png"):
        (images / name).unlink()
        (images / name).write_text(f"200 #{len(name)}")
    assert client.embed(images, *most, "--retry-failed") == 0
    rows = client.rows()
    assert len(rows) == 5 and not any(error for _, error in rows.values()) and fake.asked["200 #0"] == 1


def test_a_npy_has_the_same_rows_as_a_parquet_file(client: Client) -> None:
    images, npy = client.images("200", "200", "400 200"), client.out.with_suffix(".npy")
    assert client.embed(images, "--out", npy) == 1
    assert Path(f"{npy}.errors.csv").read_text() == "id,error\n2.JPG,corrupt_image: it is damaged\n"
    assert np.load(npy).shape == (2, DIMENSION)
    assert client.embed(images, "--out", npy, "--retry-failed") == 0
    values = np.load(npy)
    assert values.dtype == np.float32
    ids = Path(f"{npy}.ids.txt").read_text().splitlines()
    assert {int(Path(name).stem): row.tolist() for name, row in zip(ids, values, strict=True)} == expected(3)
    assert client.embed(images, "--normalize") == 0
    assert client.embeddings() == {number: [0.5 * bool(number)] * DIMENSION for number in range(3)}


def test_where_a_link_leads_is_where_embeddings_go(client: Client, tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    client.out.symlink_to("disk/embeddings.parquet")
    for count in (1, 2):
        assert client.embed(client.images(*["200"] * count, name=f"images of run {count}") / "**" / "*.JPG") == 0
        assert client.out.is_symlink() and os.listdir(disk) == ["embeddings.parquet"]
    assert len(client.rows()) == 3


def test_a_run_that_was_killed_goes_on_and_every_image_is_there_once(client: Client, fake: FakeService) -> None:
    images, parts = client.images(*["200"] * 100, *["waits"] * 3), client.parts
    with client.start(images) as run:
        wait_for(lambda: any(parts.glob("*.parquet")))
        assert client.embed(images) == 2, "one run at a time"
        run.kill()
    done = set(client.embeddings(parts))
    assert not client.out.exists() and 0 < len(done) <= 100
    (parts / ".00000099.parquet.unfinished").write_text("what a killed run may leave")
    (parts / "00000000 (copy).parquet").write_text("what a file manager may leave")
    fake.gate.set()
    assert client.embed(images) == 0
    assert client.embeddings() == expected(103)
    assert {fake.asked[f"200 #{number}"] for number in done} == {1}


def test_a_run_that_is_refused_takes_nothing_from_the_one_that_goes_on(
    client: Client, fake: FakeService, tmp_path: Path
) -> None:
    """Before its first part, of which the refused one took the folder away."""
    images = client.images(*["waits"] * 3)
    with client.start(images) as run:
        wait_for(lambda: len(fake.asked) == 3)
        assert [client.embed(images) for _ in range(2)] == [2, 2]
        fake.gate.set()
    assert run.returncode == 0 and client.embeddings() == expected(3)
    assert sorted(tmp_path.iterdir()) == [client.out, images]


def test_what_nobody_has_foreseen_is_not_taken_for_a_run_with_failed_images(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: job.Job) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(job.Job, "run", fail)
    assert client.embed(client.images("200")) == 3
    assert client.said().endswith("\nerror: RuntimeError: odd\n")


def test_an_interrupted_run_keeps_what_was_in_flight_and_says_how_to_go_on(client: Client, fake: FakeService) -> None:
    images = client.images(*["waits"] * 3, *["200"] * 50, "503")
    with client.start(images, "--in-flight", 4) as run:
        wait_for(lambda: sum(fake.asked[f"waits #{number}"] for number in range(3)) == 3)
        run.send_signal(signal.SIGINT)
        assert run.stderr
        assert "stopping" in run.stderr.readline()
        fake.gate.set()
        said = run.stderr.read()
    assert run.returncode == 130
    assert f"python -m service.client embed {images}" in said
    kept = client.embeddings(client.parts)
    assert {0, 1, 2} <= kept.keys() and 53 not in kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_end_of_the_run_is_not_lost(number: signal.Signals) -> None:
    class Job:
        stop = asyncio.Event()

        async def run(self) -> None:
            os.kill(os.getpid(), number)

    job: Any = Job()
    try:
        assert asyncio.run(command._run_until_signal(job)) == number
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_a_signal_while_the_parts_are_put_together_ends_that_at_once_and_loses_nothing(
    client: Client, fake: FakeService, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    images = client.images(*["200"] * 3)
    with client.start(images, script=SLOW_SCRIPT) as run:
        try:
            wait_for(client.out.with_name(f".{client.out.name}.unfinished").exists)
            run.send_signal(number)
            said = run.communicate()[1]
        finally:
            run.kill()
    assert run.returncode == exit_code
    told = "\nerror: ended at once; what was not kept yet is lost, the same command goes on\n"
    assert said.endswith(told) == (number == signal.SIGINT)
    assert client.embeddings(client.parts) == expected(3) and not client.out.exists()
    assert client.embed(images) == 0
    assert client.embeddings() == expected(3) and set(fake.asked.values()) == {1}
    assert sorted(tmp_path.iterdir()) == [client.out, images]


def test_names_below_one_folder_are_not_taken_for_those_below_another(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (client.images("200", name=name) for name in ("one", "other"))
    monkeypatch.chdir(one)
    assert client.embed(".") == 0
    assert client.embed(other) == 2
    assert f"error: {client.out} is of the folder {one}, and this is {other}; choose another --out" in client.said()
    # Names as they are given may come from anywhere; the folder is not forgotten over them.
    assert client.embed(f"{other}/*.JPG") == 0
    assert client.embed(other) == 2
    client.said()
    assert client.embed(one) == 0
    assert "\nleft out, as done in earlier runs (changed since or not): 1 images\n" in client.said()
    assert set(client.rows()) == {"0.JPG", str(other / "0.JPG")}


def test_what_a_file_says_of_its_folder_is_text_whatever_the_folder_is_called(client: Client) -> None:
    """Some readers, such as Polars, refuse a whole file for anything else."""
    images = client.images("200")
    folder = images.rename(os.fsdecode(os.fsencode(images) + b"\xe9"))
    assert [client.embed(folder) for _ in range(2)] == [0, 0]
    assert pq.read_schema(client.out).metadata[b"folder"].decode() == f"{images}\\xe9"


def test_results_of_earlier_versions_are_gone_on_from(client: Client, fake: FakeService) -> None:
    """They do not say of which folder they are, nor of which times their files were."""
    images = client.images("200")
    assert client.embed(images) == 0
    table = pq.read_table(client.out).drop_columns("file_time")
    metadata = {name: value for name, value in table.schema.metadata.items() if name != b"folder"}
    pq.write_table(table.replace_schema_metadata(metadata), client.out)
    (images / "2.JPG").write_text("200 #1")
    assert client.embed(images) == 0
    assert len(client.rows()) == 2 and pq.read_schema(client.out).metadata[b"folder"] == os.fsencode(images.resolve())
    times = dict(zip(*(pq.read_table(client.out)[name].to_pylist() for name in ("id", "file_time")), strict=True))
    assert times == {"0.JPG": None, "2.JPG": (images / "2.JPG").stat().st_mtime_ns}
    assert client.embed(images, "--changed") == 0 and fake.asked["200 #0"] == 2, "nobody can tell"


def test_what_has_changed_is_embedded_anew_on_demand_only(client: Client, fake: FakeService) -> None:
    """Also what has failed before, and what is in a tar file; but not what is gone."""
    images = client.images("200", "200", "400", "200")
    shard = write_shard(images / "a.tar", "200", "400", first=4)
    for path in (shard, *images.rglob("*.JPG")):
        os.utime(path, ns=(1, 1))
    assert client.embed(images) == 1 and client.errors().keys() == {"2.JPG", "a.tar/5.jpg"}
    (images / "0.JPG").write_text("200 #7")
    (images / "2.JPG").write_text("200 #8")
    write_shard(shard, "200", "200", first=4)
    assert client.embed(images) == 1 and client.embeddings() == {n: e for n, e in expected(5).items() if n != 2}
    for _ in range(2):
        assert client.embed(images, "--changed") == 0
        assert client.embeddings() == expected(6) | {0: [7.0] * DIMENSION, 2: [8.0] * DIMENSION}
    assert "\nleft out, as done in earlier runs (not changed since): 6 images\n" in client.said()
    once = {"400 #2", "400 #5", *(f"200 #{number}" for number in (0, 1, 3, 5, 7, 8))}
    assert fake.asked == {"200 #4": 2} | dict.fromkeys(once, 1)
    name, npy = f"{images}/0.JPG\n", client.out.with_suffix(".npy")
    for _ in range(2):
        assert client.embed_list(name, "--out", npy, "--changed") == 0
        (images / "0.JPG").unlink(missing_ok=True)
    assert Path(f"{npy}.ids.txt").read_text() == name


@pytest.mark.parametrize("stderr", ["2>&-", "2> >(exec true)"])
def test_that_nobody_reads_what_a_run_says_does_not_end_it(client: Client, stderr: str) -> None:
    images = client.images("200", "200")
    result = client.run(images, stderr)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert client.embeddings() == expected(2)


def test_a_full_disk_is_not_kept_full(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert client.embed(client.images("200")) == 2
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize("content", [b"to\xffken", b"to\nken", "tökén".encode(), b"\xef\xbb\xbftoken", b"\n"])
def test_a_file_that_holds_no_token_is_exit_code_2_in_one_line(client: Client, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    images = client.images("200")
    assert client.embed(images, "--token-file", tmp_path / "token") == 2
    said = client.said()
    assert said.startswith(f"error: {tmp_path}/token must hold one token") and said.count("\n") == 1
    (tmp_path / "token").write_bytes(b"token\r\n")
    assert client.embed(images, "--token-file", tmp_path / "token") == 0


def test_words_that_make_no_sense_and_closed_doors_are_exit_code_2(client: Client, tmp_path: Path) -> None:
    images = client.images("403")
    assert client.embed(images) == 2
    assert "error: HTTP 403: This API is restricted" in client.said()
    assert client.embed(tmp_path / "nowhere") == 2
    assert f"error: {tmp_path}/nowhere: No such file or directory" in client.said()
    assert client.embed(images, "--token-file", tmp_path / "none") == 2
    certificate = ["--url", "grpcs://127.0.0.1:1", "--cert-file", images / "0.JPG"]
    for half, other in ((certificate, "--key-file"), (["--key-file", images / "0.JPG"], "--cert-file")):
        assert client.embed(images, *half) == 2
        assert client.said().endswith(f"; add {other}\n")
    for scheme in ("https", "grpcs"):  # or whoever the system trusts would be trusted
        assert client.embed(images, "--url", f"{scheme}://127.0.0.1:1", "--ca-file", "") == 2
    seconds = product(("--timeout", "--request-timeout"), ("0", "-1", "nan", "inf", "1e9", "soon"))
    addresses = product(["--url"], ("localhost:8000", "http://me:secret@host:1", "grpc://host:65537", "http://[::1"))
    for pair in (("--out", "x.csv"), ("--in-flight", 0), *addresses, *seconds):
        with pytest.raises(SystemExit, match="2"):
            client.embed(images, *pair)
    said = client.said()
    assert "secret" not in said and "_url" not in said
    assert sorted(tmp_path.iterdir()) == [images]
