"""The client against a service that answers as each image says: what is sent again, kept, gone on from, and told."""

import asyncio
import errno
import io
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.client import command, job, listing, over_http, sources
from service.client.command import main
from service.client.listing import LeftOut
from service.client.results import Results
from service.client.retry import Patience
from service.client.rows import Row
from service.client.sources import Image, Images
from service.client.transport import Access, Embedding, Served, TryAgain
from tests.client.fake_service import DIMENSION, FakeService, fake_service
from tests.integration.service_process import wait_for

REPOSITORY = Path(__file__).parents[2]
# Small parts, so that there are some before a run is over.
SCRIPT = "import sys; from service.client import command, job; job.PART_ROWS = 10; sys.exit(command.main(sys.argv[1:]))"
# In the midst of putting its parts together, it takes its time.
SLOW_SCRIPT = """import sys, time; from service.client import command, results
results.Results._write_parquet = lambda *_: time.sleep(600)
sys.exit(command.main(sys.argv[1:]))"""


@pytest.fixture
def fake() -> Iterator[FakeService]:
    with fake_service() as service:
        yield service


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "embeddings.parquet"


def _images(folder: Path, *scripts: str) -> Path:
    """A folder with one image a script; an image's name is its number."""
    (folder / "below").mkdir(parents=True)
    for number, script in enumerate(scripts):
        (folder / ("below" if number % 2 else "") / f"{number}.JPG").write_text(f"{script} #{number}")
    return folder


def _shard(path: Path, *scripts: str, first: int = 0) -> Path:
    """A tar file with one image a script, and what tells of it, as large sets of images are shipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number, script in enumerate(scripts, first):
            _add(shard, f"./{number}.jpg", f"{script} #{number}")
            _add(shard, f"{number}.json", "{}")
    return path


def _add(shard: tarfile.TarFile, name: str, text: str, headers: Mapping[str, str] | None = None) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.pax_headers = len(text), dict(headers or {})
    shard.addfile(member, io.BytesIO(text.encode()))


def _arguments(images: Path | str, fake: FakeService, out: Path, *more: str) -> list[str]:
    return ["embed", str(images), "--url", fake.url, "--out", str(out), *more]


def _start(*arguments: str, script: str = SCRIPT) -> subprocess.Popen[str]:
    command_line = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command_line, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def _rows(path: Path) -> Mapping[str, tuple[list[float], str | None]]:
    """Embedding and error by id; each id is there once."""
    rows = pq.read_table(path).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["embedding"], row["error"]) for row in rows}


def _embeddings(path: Path) -> dict[int, list[float]]:
    return {int(Path(name).stem): embedding for name, (embedding, error) in _rows(path).items() if error is None}


def _expected(count: int) -> dict[int, list[float]]:
    return {number: [float(number)] * DIMENSION for number in range(count)}


def _when(condition: Callable[[], bool], act: Callable[[], None]) -> None:
    """Act beside the test, as soon as the condition holds."""

    def wait_and_act() -> None:
        wait_for(condition, 60)
        act()

    threading.Thread(target=wait_and_act).start()


def _refusing_once(served: Callable[..., Awaitable[Served]]) -> Callable[..., Awaitable[Served]]:
    """`served`, which after its first answer gives none, once."""
    asked: list[object] = []

    async def refuse_once(transport: object) -> Served:
        asked.append(transport)
        if len(asked) == 2:
            raise TryAgain("a replica is stopping")
        return await served(transport)

    return refuse_once


def test_what_may_succeed_later_is_sent_again_and_nothing_else(fake: FakeService, tmp_path: Path, out: Path) -> None:
    again = ["503 503 200", "404 200", "500 200", "breaks 200", "400-of-a-neighbour 200"]
    again += [f"{status} 200" for status in (408, 429, 502, 504, 520)]
    images = _images(tmp_path / "images", "200", *again)
    assert main(_arguments(images, fake, out)) == 0
    assert _embeddings(out) == _expected(11)
    assert sorted(fake.asked.values()) == [1, *[2] * 9, 3]
    assert not Path(f"{out}.parts").exists()


def test_what_fails_is_told_by_code_and_tried_again_on_demand_only(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _images(tmp_path / "images", "200", "400 200", "501 200")
    (images / "gone.png").symlink_to("nowhere")
    (images / "large.png").write_bytes(bytes(100))
    arguments = _arguments(images, fake, out, "--max-image-bytes", "99")
    for _ in range(2):
        assert main(arguments) == 1
        errors = {name: error for name, (_, error) in _rows(out).items() if error}
        assert errors == {
            "2.JPG": "http_501: Unsupported content-encoding",
            "below/1.JPG": "corrupt_image: it is damaged",
            "gone.png": "unreadable: No such file or directory",
            "large.png": "too_many_bytes: over 99 bytes (--max-image-bytes)",
        }
        report = capsys.readouterr().err
        assert "4 failed" in report and "  corrupt_image: 1\n    below/1.JPG: it is damaged\n" in report
        assert set(fake.asked.values()) == {1}
    broken = images / "below/1.JPG"
    broken.rename(tmp_path / "broken")
    assert main(arguments) == 1
    report = capsys.readouterr().err
    assert "1 failed in earlier runs, and are not in this source\n3 failed, and are tried" in report
    (tmp_path / "broken").rename(broken)
    for name in ("gone.png", "large.png"):
        (images / name).unlink()
        (images / name).write_text(f"200 #{len(name)}")
    assert main([*arguments, "--retry-failed"]) == 0
    rows = _rows(out)
    assert len(rows) == 5 and not any(error for _, error in rows.values()) and fake.asked["200 #0"] == 1


def test_names_come_from_stdin_or_a_pattern_and_each_is_embedded_once(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    images = _images(tmp_path / "images", *["200"] * 5)
    (tmp_path / "-").mkdir()
    odd = os.fsdecode(b"caf\xe9.jpg")
    (images / odd).write_text("200 #5")
    (images / "a\r\u2028b.JPG").write_text("200 #6")
    (images / "no image.JPG").mkdir()
    names = [str(images / f"{number}.JPG") for number in (0, 2, 0)] + [str(images / odd)] * 2
    text = "".join(f"{name}\n" for name in ("", *names)) + f"{names[0]}\r\n"
    listed = subprocess.run(
        [sys.executable, "-m", "service.client", *_arguments("-", fake, out)],
        input=os.fsencode(text),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert listed.returncode == 0
    assert set(_rows(out)) == {*names[:2], f"{images}/caf\\xe9.jpg"}
    assert not pq.read_schema(out).metadata[b"folder"], "a list has none, also beside a folder of that name"
    assert main(_arguments(f"{images}/**/*.JPG", fake, out.with_suffix(".npy"))) == 0
    ids = Path(f"{out.with_suffix('.npy')}.ids.txt").read_text().splitlines()
    assert sorted(ids) == sorted([*(str(path) for path in images.rglob("?.JPG")), f"{images}/a\\r\\u2028b.JPG"])


def test_of_two_names_that_have_one_id_the_other_one_is_told(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _images(tmp_path / "images", "200")
    for name in ("a\nb.jpg", "a\\nb.jpg"):
        (images / name).write_text("200 #1")
    assert main(_arguments(images, fake, out)) == 1
    assert set(_rows(out)) == {"0.JPG", "a\\nb.jpg"}
    assert f"\nnot listed: {images}/a\\nb.jpg: another name has the same id\n" in capsys.readouterr().err


def test_a_name_that_reads_like_a_pattern_is_a_name_where_there_is_such_a_file(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    image = tmp_path / "IMG[1].jpg"
    image.write_text("200 #1")
    assert main(_arguments(image, fake, out)) == 0
    assert set(_rows(out)) == {str(image)}


def test_folders_are_listed_however_deep_they_are(tmp_path: Path) -> None:
    folders = [tmp_path / ("d/" * depth) for depth in range(1, 1100)]
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "0.jpg").touch()
    try:
        assert len(list(listing.walk(str(tmp_path), listing.SUFFIXES, LeftOut()))) == 1
    finally:
        subprocess.run(["rm", "-r", folders[0]], check=True, timeout=60)  # which pytest cannot


@pytest.mark.parametrize("name", ["0.jpg", "café.jpg"])
def test_an_image_whose_name_is_its_id_takes_one_text_in_memory(name: str) -> None:
    assert listing.id_of(name) is name


def test_a_folder_on_a_list_is_no_image_and_is_not_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text(f"{tmp_path}\n")
    with (tmp_path / "list").open() as names:
        monkeypatch.setattr(sys, "stdin", names)
        images = Images("-", set(), 100)
        wait_for(lambda: images.total == 1)
        before = set(os.listdir("/proc/self/fd"))
        assert images.read_next() == Image(str(tmp_path), b"", "unreadable: Is a directory")
        assert before >= set(os.listdir("/proc/self/fd"))


def test_a_limit_that_no_memory_holds_keeps_no_image_out(fake: FakeService, tmp_path: Path, out: Path) -> None:
    images = _images(tmp_path / "images", "200")
    assert main(_arguments(images, fake, out, "--max-image-bytes", str(10**15))) == 0
    assert _embeddings(out) == _expected(1)


def test_images_in_tar_files_are_embedded_as_those_beside_them(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _images(tmp_path / "images", "200", "200")
    _shard(images / "shards" / "a.tar", "200", "400 200", "200", first=2)
    with tarfile.open(_shard(images / "b.TAR", "200", first=5), "a") as shard:
        shard.add("/dev/null", "device.jpg")
        shard.add(images / "below", "folder.jpg", recursive=False)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "5.jpg"
        shard.addfile(link)
    arguments = _arguments(images, fake, out)
    assert main(arguments) == 1
    assert {name: error for name, (_, error) in _rows(out).items() if error} == {
        "shards/a.tar/3.jpg": "corrupt_image: it is damaged"
    }
    assert "b.TAR/5.jpg" in _rows(out) and _embeddings(out) == {n: e for n, e in _expected(6).items() if n != 3}
    said = capsys.readouterr().err
    assert "links to folders or in tar files, which are not followed: 1\n" in said
    assert "pipes, sockets and devices, which are not read: 1\n" in said
    assert "4 files left out by their names: .json 4\n" in said
    assert main([*arguments, "--retry-failed"]) == 0
    assert _embeddings(out) == _expected(6) and fake.asked["200 #5"] == 1
    alone = out.with_name("alone.parquet")
    assert main(_arguments(images / "b.TAR", fake, alone)) == 0
    assert list(_rows(alone)) == [f"{images}/b.TAR/5.jpg"]


def test_what_is_called_alike_in_tar_files_is_told_apart_or_told(fake: FakeService, tmp_path: Path, out: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate("ab"):
        with tarfile.open(images / f"{name}.tar", "w") as shard:
            _add(shard, "/data/image.jpg", f"200 #{number}")  # as `tar -P` writes it
            _add(shard, "data/image.jpg", "200 #2")
    listed = "".join(f"{images}/{name}.tar\n" for name in "abba")
    run = [sys.executable, "-m", "service.client", *_arguments("-", fake, out)]
    result = subprocess.run(run, input=listed, cwd=REPOSITORY, check=False, timeout=60, capture_output=True, text=True)
    assert result.returncode == 0
    assert {name: embedding[0] for name, (embedding, _) in _rows(out).items()} == {
        f"{images}/{name}.tar/data/image.jpg": number for number, name in enumerate("ab")
    }
    assert "\nnames that a tar file has more than once, of which the first counts: 2\n" in result.stderr


def test_images_that_tar_files_hold_with_holes_are_told(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _images(tmp_path / "images", "200")
    with tarfile.open(images / "a.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        for name in ("holes.jpg", "holes.json"):
            _add(shard, name, "200 #1", {"GNU.sparse.map": "2,6", "GNU.sparse.size": "8"})
    assert main(_arguments(images, fake, out, "--timeout", "1")) == 1
    assert _embeddings(out) == _expected(1) and len(_rows(out)) == 1
    said = capsys.readouterr().err
    assert f"\nnot listed: {images}/a.tar/holes.jpg: stored with holes (tar -S), which is not read\n" in said
    assert "\n1 files left out by their names: .json 1\n" in said


@pytest.mark.parametrize("later", [(1, 0), (0, 1)])
def test_what_has_taken_the_place_of_a_tar_file_is_not_taken_for_its_images(
    tmp_path: Path, later: tuple[int, int]
) -> None:
    shard = _shard(tmp_path / "a.tar", "200", "200")
    images, before = Images(str(tmp_path), set(), 100), shard.stat()
    wait_for(lambda: images.total == 2)
    assert images.read_next() == Image("a.tar/0.jpg", b"200 #0")
    os.truncate(shard, before.st_size + later[0])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + later[1]))
    changed = "unreadable: the tar file has changed since it was listed"
    assert images.read_next() == Image("a.tar/1.jpg", b"", changed)


def test_what_is_written_into_a_tar_file_while_it_is_read_is_not_taken_for_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, later = _shard(tmp_path / "a.tar", "200"), _shard(tmp_path / "later", "200", first=5).read_bytes()
    os.utime(shard, ns=(1, 1))
    images = Images(str(tmp_path), set(), 100)
    wait_for(lambda: images.total == 1)

    class Late(io.BufferedReader):
        def seek(self, *where: int) -> int:
            shard.write_bytes(later)
            return super().seek(*where)

    def open_late(path: str, _: str, opener: Callable[[str, int], int]) -> Late:
        return Late(io.FileIO(path, opener=opener))

    monkeypatch.setattr(sources, "open", open_late, raising=False)
    changed = "unreadable: the tar file has changed since it was listed"
    assert images.read_next() == Image("a.tar/0.jpg", b"", changed)


def test_what_a_damaged_tar_file_lacks_is_told(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image and what tells of it take 2,048 bytes here, half of each are its header."""
    whole, images = _shard(tmp_path / "whole.tar", "200", "200").read_bytes(), tmp_path / "images"
    images.mkdir()
    cuts = {"between": 2048, "header": 2100, "image": 2563, "text": 3585, "start": 100}
    for name, size in cuts.items():
        (images / f"{name}.tar").write_bytes(whole[:size])
    (images / "garbled.tar").write_bytes(whole[:2048] + b"x" * 512 + whole[2560:])
    (images / "whole.tar").write_bytes(whole)
    os.mkfifo(images / "pipe.tar")
    (images / "nowhere.tar").symlink_to("nowhere")
    assert main(_arguments(images, fake, out)) == 1
    assert {name: error for name, (_, error) in _rows(out).items()} == {
        **{f"{name}.tar/0.jpg": None for name in (*cuts, "garbled", "whole") if name != "start"},
        "image.tar/1.jpg": "unreadable: the tar file ends within it",
        "text.tar/1.jpg": None,
        "whole.tar/1.jpg": None,
    }
    said = capsys.readouterr().err
    assert {line.split("/")[-1] for line in said.splitlines() if line.startswith("not listed: ")} == {
        "between.tar: not a whole tar file: no end and no member after 2048 bytes",
        "header.tar: not a whole tar file: no end and no member after 2048 bytes",
        "garbled.tar: not a whole tar file: no end and no member after 2048 bytes",
        "image.tar: not a whole tar file: unexpected end of data",
        "text.tar: not a whole tar file: unexpected end of data",
        "start.tar: not a whole tar file: truncated header",
        "nowhere.tar: No such file or directory",
    }
    assert "pipes, sockets and devices, which are not read: 1" in said


def _header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("0.jpg")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


LONG_NAME = _header(tarfile.GNUTYPE_LONGNAME, 2) + b"a".ljust(512, b"\0")


@pytest.mark.parametrize(
    "headers", [_header(tarfile.GNUTYPE_LONGNAME, 2**70), _header(tarfile.XHDTYPE, 2**60), LONG_NAME * 1500]
)
def test_a_tar_file_whose_headers_nothing_can_hold_ends_no_run(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], headers: bytes
) -> None:
    images = _images(tmp_path / "images", "200")
    (images / "a.tar").write_bytes(headers)
    assert main(_arguments(images, fake, out)) == 1
    assert _embeddings(out) == _expected(1)
    assert re.search(rf"\nnot listed: {images}/a.tar: not a whole tar file: \w.*\n", capsys.readouterr().err)


def test_a_npy_has_the_same_rows_as_a_parquet_file(fake: FakeService, tmp_path: Path, out: Path) -> None:
    images, npy = _images(tmp_path / "images", "200", "200", "400 200"), out.with_suffix(".npy")
    assert main(_arguments(images, fake, npy)) == 1
    assert Path(f"{npy}.errors.csv").read_text() == "id,error\n2.JPG,corrupt_image: it is damaged\n"
    assert np.load(npy).shape == (2, DIMENSION)
    assert main(_arguments(images, fake, npy, "--retry-failed")) == 0
    values = np.load(npy)
    assert values.dtype == np.float32
    ids = Path(f"{npy}.ids.txt").read_text().splitlines()
    assert {int(Path(name).stem): row.tolist() for name, row in zip(ids, values, strict=True)} == _expected(3)
    assert main(_arguments(images, fake, out, "--normalize")) == 0
    assert _embeddings(out) == {number: [0.5 * bool(number)] * DIMENSION for number in range(3)}


def test_a_run_that_was_killed_goes_on_and_every_image_is_there_once(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    images, parts = _images(tmp_path / "images", *["200"] * 100, *["waits"] * 3), Path(f"{out}.parts")
    with _start(*_arguments(images, fake, out)) as run:
        wait_for(lambda: any(parts.glob("*.parquet")))
        assert main(_arguments(images, fake, out)) == 2, "one run at a time"
        run.kill()
    done = set(_embeddings(parts))
    assert not out.exists() and 0 < len(done) <= 100
    (parts / ".00000099.parquet.unfinished").write_text("what a killed run may leave")
    fake.gate.set()
    assert main(_arguments(images, fake, out)) == 0
    assert _embeddings(out) == _expected(103)
    assert {fake.asked[f"200 #{number}"] for number in done} == {1}


def test_a_run_that_is_refused_takes_nothing_from_the_one_that_goes_on(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    """Before its first part, of which the refused one took the folder away."""
    images = _images(tmp_path / "images", *["waits"] * 3)
    with _start(*_arguments(images, fake, out)) as run:
        wait_for(lambda: len(fake.asked) == 3)
        assert [main(_arguments(images, fake, out)) for _ in range(2)] == [2, 2]
        fake.gate.set()
    assert run.returncode == 0 and _embeddings(out) == _expected(3)
    assert sorted(tmp_path.iterdir()) == [out, images]


@pytest.mark.parametrize("pattern", ["", "/**/*.JPG"])
def test_a_source_that_is_gone_ends_the_run_and_blames_no_image(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    """As where a mount is gone, which leaves an empty folder."""
    images, elsewhere = _images(tmp_path / "images", *["waits"] * 50), tmp_path / "elsewhere"

    def unmount() -> None:
        images.rename(elsewhere)
        images.mkdir()
        fake.gate.set()

    _when(lambda: len(fake.asked) == 2, unmount)
    assert main(_arguments(f"{images}{pattern}", fake, out, "--in-flight", "2")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {images}/")
    assert said.endswith("No such file or directory; the others cannot be read either")
    kept = _embeddings(Path(f"{out}.parts"))
    assert 2 <= len(kept) < 50 and len(_rows(Path(f"{out}.parts"))) == len(kept)
    images.rmdir()
    elsewhere.rename(images)
    assert main(_arguments(f"{images}{pattern}", fake, out)) == 0
    assert _embeddings(out) == _expected(50)


def test_of_a_list_a_folder_that_is_gone_takes_only_its_own_images_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _images(tmp_path / "images", *["200"] * 3)
    (tmp_path / "list").write_text("".join(f"{folder}/{name}.JPG\n" for name in ("0", "below/1", "2")))
    with (tmp_path / "list").open() as names:
        monkeypatch.setattr(sys, "stdin", names)
        images = Images("-", set(), 100)
        wait_for(lambda: images.total == 3)
    shutil.rmtree(folder / "below")
    found = [images.read_next() for _ in range(4)]
    assert [image and (image.data or image.error) for image in found] == [
        b"200 #0",
        "unreadable: No such file or directory",
        b"200 #2",
        None,
    ]
    assert images.failure is None


@pytest.mark.parametrize("pattern", ["", "/**/*.JPG"])
def test_a_source_that_has_no_images_any_more_is_told_whatever_earlier_runs_have_done(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    """As where a mount is missing; that a list has nothing new is no news."""
    images = _images(tmp_path / "images", "200")
    assert main(_arguments(f"{images}{pattern}", fake, out)) == 0
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    assert main(_arguments(f"{images}{pattern}", fake, out)) == 2
    assert capsys.readouterr().err.endswith(f"error: there are no images in {images}{pattern}\n")
    run = [sys.executable, "-m", "service.client", *_arguments("-", fake, out)]
    assert subprocess.run(run, cwd=REPOSITORY, check=False, timeout=60, stdin=subprocess.DEVNULL).returncode == 0
    assert _embeddings(out) == _expected(1)


def test_what_ails_more_than_a_file_is_not_taken_for_the_files_own(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, scandir = _images(tmp_path / "images", "200"), os.scandir

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fail_there(folder: str | Path) -> object:
        return fail() if str(folder) == str(images) else scandir(folder)

    monkeypatch.setattr(sources, "_read", fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail_there)
        assert main(_arguments(f"{images}/0.JPG", fake, out)) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"error: {images}/0.JPG: Input/output error; the others cannot be read either\n")
    assert main(_arguments(f"{images}/0.JPG", fake, out)) == 1, "a bad sector is the file's own"
    assert _rows(out)[f"{images}/0.JPG"][1] == "unreadable: Input/output error"


def test_parts_are_written_one_after_the_other(
    fake: FakeService, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two would have the same number, and one of them would be lost."""
    images, write, is_free = _images(tmp_path / "images", *["200"] * 20), Results.write, threading.Lock()

    def write_late(results: Results, rows: Sequence[Row]) -> None:
        assert is_free.acquire(blocking=False)
        wait_for(lambda: fake.answered == 20)
        write(results, rows)
        is_free.release()

    monkeypatch.setattr(job, "PART_ROWS", 1)
    monkeypatch.setattr(Results, "write", write_late)
    assert main(_arguments(images, fake, out)) == 0
    assert _embeddings(out) == _expected(20)


def test_what_nobody_has_foreseen_is_not_taken_for_a_run_with_failed_images(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: job.Job) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(job.Job, "run", fail)
    assert main(_arguments(_images(tmp_path / "images", "200"), fake, out)) == 3
    assert capsys.readouterr().err.endswith("\nerror: RuntimeError: odd\n")


def test_an_embedding_of_another_length_ends_the_run(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a part it would shift all that come after it, and twice as many numbers would be two rows."""

    async def embed(*_: object) -> Embedding:
        return np.zeros(2 * DIMENSION, np.float32)

    monkeypatch.setattr(over_http.HttpTransport, "embed", embed)
    assert main(_arguments(_images(tmp_path / "images", "200"), fake, out)) == 2
    assert capsys.readouterr().err.endswith("error: an embedding has 8 dimensions instead of 4\n")
    assert not Path(f"{out}.parts").exists()


def test_as_many_requests_are_in_flight_as_is_said(fake: FakeService, tmp_path: Path, out: Path) -> None:
    """aiohttp by itself opens no more than 100 connections."""
    images = _images(tmp_path / "images", *["waits"] * 120)
    _when(lambda: len(fake.asked) == 110, fake.gate.set)
    assert main(_arguments(images, fake, out, "--in-flight", "110")) == 0
    assert _embeddings(out) == _expected(120)


def test_one_unanswered_question_ends_no_run(
    fake: FakeService, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_http.HttpTransport, "served", _refusing_once(over_http.HttpTransport.served))
    images = _images(tmp_path / "images", "503", "200")
    assert main(_arguments(images, fake, out, "--timeout", "0.2")) == 1
    assert _rows(out)["0.JPG"][1] == "no_answer: HTTP 503: Exceeds maximum queue size"


def test_a_machine_that_has_gone_without_a_word_is_not_waited_for_as_an_answer_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a listener whose room for connections is taken, it does not even refuse one."""

    async def embed(port: int) -> None:
        async with over_http.connect_http(f"http://127.0.0.1:{port}", "embed_image", Access(), 1e6) as transport:
            with pytest.raises(TryAgain, match="no answer in time"):
                await transport.embed(b"")

    monkeypatch.setattr(over_http, "_CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, socket.create_connection(silent.getsockname()):
        asyncio.run(embed(silent.getsockname()[1]))


def test_connections_are_opened_anew_now_and_then(
    fake: FakeService, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or replicas that join would never be sent anything."""
    images = _images(tmp_path / "images", *["200"] * 10)
    monkeypatch.setattr(over_http, "_REQUESTS_A_CONNECTION", 10**9)
    assert main(_arguments(images, fake, tmp_path / "first.parquet", "--in-flight", "1")) == 0
    assert fake.connections == 1
    monkeypatch.setattr(over_http, "_REQUESTS_A_CONNECTION", 1)
    assert main(_arguments(images, fake, out, "--in-flight", "1")) == 0
    assert fake.connections >= 10 and set(fake.asked.values()) == {2}


def test_an_interrupted_run_keeps_what_was_in_flight_and_says_how_to_go_on(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    images = _images(tmp_path / "images", *["waits"] * 3, *["200"] * 50, "503")
    with _start(*_arguments(images, fake, out, "--in-flight", "4")) as run:
        wait_for(lambda: sum(fake.asked[f"waits #{number}"] for number in range(3)) == 3)
        run.send_signal(signal.SIGINT)
        assert run.stderr
        assert "stopping" in run.stderr.readline()
        fake.gate.set()
        said = run.stderr.read()
    assert run.returncode == 130
    assert f"python -m service.client embed {images}" in said
    kept = _embeddings(Path(f"{out}.parts"))
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
    fake: FakeService, tmp_path: Path, out: Path, number: signal.Signals, exit_code: int
) -> None:
    images = _images(tmp_path / "images", *["200"] * 3)
    with _start(*_arguments(images, fake, out), script=SLOW_SCRIPT) as run:
        try:
            wait_for(out.with_name(f".{out.name}.unfinished").exists)
            run.send_signal(number)
            said = run.communicate(timeout=60)[1]
        finally:
            run.kill()
    assert run.returncode == exit_code
    told = "\nerror: ended at once; what was not kept yet is lost, the same command goes on\n"
    assert said.endswith(told) == (number == signal.SIGINT)
    assert _embeddings(Path(f"{out}.parts")) == _expected(3) and not out.exists()
    assert main(_arguments(images, fake, out)) == 0
    assert _embeddings(out) == _expected(3) and set(fake.asked.values()) == {1}
    assert sorted(tmp_path.iterdir()) == [out, images]


@pytest.mark.parametrize(("script", "exit_code"), [("403", 2), ("200", 143)])
def test_a_run_that_ends_early_does_not_wait_for_the_end_of_its_list(
    fake: FakeService, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, script: str, exit_code: int
) -> None:
    """Refused or told to end, while whoever writes the list is still at it."""
    images, (list_end, end) = _images(tmp_path / "images", script), os.pipe()
    with open(list_end) as names, open(end, "w") as find:
        monkeypatch.setattr(sys, "stdin", names)
        print(images / "0.JPG", file=find, flush=True)
        if script == "200":
            _when(lambda: fake.answered == 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(_arguments("-", fake, out)) == exit_code


def test_embeddings_of_another_service_are_not_mixed_in(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(tmp_path / "images", "200", "200")
    assert main(_arguments(images, fake, out)) == 0
    before = out.read_bytes()
    fake.fingerprint = "another"
    assert main(_arguments(images, fake, out)) == 2
    assert "of fingerprint 0123456789abcdef" in capsys.readouterr().err and out.read_bytes() == before
    monkeypatch.setattr(job, "PART_SECONDS", 0.05)
    (images / "late.jpg").write_text("waits #3")

    def replace() -> None:
        fake.fingerprint = "new"

    _when(lambda: fake.asked["waits #3"] > 0, replace)
    assert main(_arguments(images, fake, tmp_path / "other.parquet")) == 2
    assert "now it is of fingerprint new" in capsys.readouterr().err and not (tmp_path / "other.parquet").exists()


def test_embeddings_that_the_service_normalizes_unasked_count_as_normalized(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _images(tmp_path / "images", "200")
    fake.defaults = {"default_normalize": "true", "default_base64_encoded": "false"}
    assert main(_arguments(images, fake, out)) == 0
    assert pq.read_schema(out).metadata[b"normalize"] == b"True"
    fake.defaults = {}  # as a service tells that is older than they are
    assert main(_arguments(images, fake, out)) == 2
    assert "normalize True; now it would be" in capsys.readouterr().err
    assert main(_arguments(images, fake, out, "--normalize")) == 0


def test_a_service_that_expects_base64_is_sent_nothing(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.defaults = {"default_base64_encoded": "true"}
    assert main(_arguments(_images(tmp_path / "images", "200"), fake, out)) == 2
    said = capsys.readouterr().err
    assert "--default-base64-encoded true" in said and said.count("\n") == 1 and not fake.asked


def test_a_service_that_is_gone_ends_the_run_and_blames_no_image(
    fake: FakeService, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(tmp_path / "images", "200", "waits")
    monkeypatch.setattr(job, "_SIGN_OF_LIFE", Patience(total=0))
    _when(lambda: fake.answered > 0 and len(fake.asked) == 2, fake.go)
    assert main(_arguments(images, fake, out, "--timeout", "1")) == 3
    assert _embeddings(Path(f"{out}.parts")) == _expected(1)
    monkeypatch.setattr(command, "_FIRST_ANSWER", Patience(total=0))
    assert main(_arguments(images, fake, out)) == 3


def test_a_service_that_is_there_but_never_answers_an_image_fails_that_image(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    images = _images(tmp_path / "images", "200", "503", "waits")
    assert main(_arguments(images, fake, out, "--timeout", "1", "--request-timeout", "0.2")) == 1
    assert {name: error for name, (_, error) in _rows(out).items() if error} == {
        "below/1.JPG": "no_answer: HTTP 503: Exceeds maximum queue size",
        "2.JPG": "no_answer: no answer in time",
    }


def test_files_that_are_left_out_by_their_names_are_counted(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name in ("a.HEIC", "below/b.heic", "c.heic", "notes"):
        (folder / name).touch()
    (folder / "link").symlink_to("below")
    (folder / "link.jpg").symlink_to("below")
    for name in ("pipe.jpg", "below/pipe.jpg"):  # whoever opened one would wait for ever
        os.mkfifo(folder / name)
    (folder / "to a pipe.jpg").symlink_to("pipe.jpg")
    told = [
        "links to folders or in tar files, which are not followed: 2",
        "pipes, sockets and devices, which are not read: 3",
        "4 files left out by their names: .heic 3, none 1",
    ]
    assert main(_arguments(folder, fake, out)) == 2
    assert capsys.readouterr().err.endswith(f"error: there are no images in {folder}; {'; '.join(told)}\n")
    (folder / "0.jpg").write_text("200 #0")
    (folder / "to a file.jpg").symlink_to("0.jpg")
    (folder / "in a circle.jpg").symlink_to("in a circle.jpg")
    assert main(_arguments(folder, fake, out)) == 1
    assert capsys.readouterr().err.endswith("\n".join(["", *told, ""]))
    assert {name: error for name, (_, error) in _rows(out).items()} == {
        "0.jpg": None,
        "to a file.jpg": None,
        "in a circle.jpg": "unreadable: Too many levels of symbolic links",
    }
    assert main(_arguments(str(folder / "pipe.jpg"), fake, tmp_path / "named.parquet")) == 1
    assert _rows(tmp_path / "named.parquet")[str(folder / "pipe.jpg")][1] == "unreadable: it is no regular file"


def test_names_below_one_folder_are_not_taken_for_those_below_another(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (_images(tmp_path / name, "200") for name in ("one", "other"))
    monkeypatch.chdir(one)
    assert main(_arguments(".", fake, out)) == 0
    assert main(_arguments(other, fake, out)) == 2
    assert f"error: {out} is of the folder {one}, and this is {other}; choose another --out" in capsys.readouterr().err
    # Names as they are given may come from anywhere; the folder is not forgotten over them.
    assert main(_arguments(f"{other}/*.JPG", fake, out)) == 0
    assert main(_arguments(other, fake, out)) == 2
    capsys.readouterr()
    assert main(_arguments(one, fake, out)) == 0
    assert "\nleft out, as done in earlier runs (changed since or not): 1 images\n" in capsys.readouterr().err
    assert set(_rows(out)) == {"0.JPG", str(other / "0.JPG")}


def test_results_that_do_not_say_of_which_folder_they_are_are_gone_on_from(
    fake: FakeService, tmp_path: Path, out: Path
) -> None:
    """Earlier versions wrote such."""
    images = _images(tmp_path / "images", "200")
    assert main(_arguments(images, fake, out)) == 0
    table = pq.read_table(out)
    metadata = {name: value for name, value in table.schema.metadata.items() if name != b"folder"}
    pq.write_table(table.replace_schema_metadata(metadata), out)
    (images / "2.JPG").write_text("200 #1")
    assert main(_arguments(images, fake, out)) == 0
    assert len(_rows(out)) == 2 and pq.read_schema(out).metadata[b"folder"] == os.fsencode(images.resolve())


@pytest.mark.parametrize("stderr", ["2>&-", "2> >(exec true)"])
def test_that_nobody_reads_what_a_run_says_does_not_end_it(
    fake: FakeService, tmp_path: Path, out: Path, stderr: str
) -> None:
    images = _images(tmp_path / "images", "200", "200")
    run = ["bash", "-c", f'"$@" {stderr}', "bash", sys.executable, "-m", "service.client"]
    run += _arguments(images, fake, out)
    result = subprocess.run(run, cwd=REPOSITORY, check=False, timeout=60, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (0, b"")
    assert _embeddings(out) == _expected(2)


@pytest.mark.parametrize(("stdin", "why"), [("<&-", "stdin is closed"), ("0>/dev/null", "Bad file descriptor")])
def test_a_list_that_cannot_be_read_is_told_whatever_earlier_runs_have_done(
    fake: FakeService, tmp_path: Path, out: Path, stdin: str, why: str
) -> None:
    assert main(_arguments(_images(tmp_path / "images", "200"), fake, out)) == 0
    run = ["bash", "-c", f'"$@" {stdin}', "bash", sys.executable, "-m", "service.client", *_arguments("-", fake, out)]
    result = subprocess.run(run, cwd=REPOSITORY, check=False, timeout=60, capture_output=True, text=True)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, f"error: -: {why}")


def test_whatever_ends_the_list_early_is_told_and_what_is_embedded_is_kept(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(tmp_path / "images", "200", "200")

    def walk(*_: object) -> Iterator[str]:
        yield "0.JPG"
        raise RecursionError("so deep")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "walk", walk)
        assert main(_arguments(images, fake, out)) == 2
    assert capsys.readouterr().err.endswith(f"error: {images}: so deep\n") and not out.exists()
    assert main(_arguments(images, fake, out)) == 0
    assert _embeddings(out) == _expected(2) and set(fake.asked.values()) == {1}


def test_a_full_disk_is_not_kept_full(
    fake: FakeService, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert main(_arguments(_images(tmp_path / "images", "200"), fake, out)) == 2
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("301", "HTTP 301: the way on is /moved/v2/models/embed_image/infer; change --url"),
        ("401", "HTTP 401: Who is there?"),  # as a proxy asks
        ("200-of-a-proxy", "what answers there is no service of image embeddings"),  # as long as an embedding
    ],
)
def test_redirections_and_what_is_no_answer_are_not_followed_but_told(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], answer: str, told: str
) -> None:
    assert main(_arguments(_images(tmp_path / "images", answer), fake, out)) == 2
    assert capsys.readouterr().err.endswith(f"error: {told}\n")
    assert not out.exists()


@pytest.mark.parametrize("content", [b"to\xffken", b"to\nken", "tökén".encode(), b"\xef\xbb\xbftoken", b"\n"])
def test_a_file_that_holds_no_token_is_exit_code_2_in_one_line(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "token").write_bytes(content)
    images = _images(tmp_path / "images", "200")
    assert main(_arguments(images, fake, out, "--token-file", str(tmp_path / "token"))) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/token must hold one token") and said.count("\n") == 1
    (tmp_path / "token").write_bytes(b"token\r\n")
    assert main(_arguments(images, fake, out, "--token-file", str(tmp_path / "token"))) == 0


def test_words_that_make_no_sense_and_closed_doors_are_exit_code_2(
    fake: FakeService, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _images(tmp_path / "images", "403")
    assert main(_arguments(images, fake, out)) == 2
    assert "error: HTTP 403: This API is restricted" in capsys.readouterr().err
    assert main(_arguments(tmp_path / "nowhere", fake, out)) == 2
    assert f"error: {tmp_path}/nowhere: No such file or directory" in capsys.readouterr().err
    assert main(_arguments(images, fake, out, "--token-file", str(tmp_path / "none"))) == 2
    certificate = ["--url", "grpcs://127.0.0.1:1", "--cert-file", str(images / "0.JPG")]
    for half, other in ((certificate, "--key-file"), (["--key-file", str(images / "0.JPG")], "--cert-file")):
        assert main([*_arguments(images, fake, out), *half]) == 2
        assert capsys.readouterr().err.endswith(f"; add {other}\n")
    for scheme in ("https", "grpcs"):  # or whoever the system trusts would be trusted
        assert main(_arguments(images, fake, out, "--url", f"{scheme}://127.0.0.1:1", "--ca-file", "")) == 2
    seconds = product(("--timeout", "--request-timeout"), ("0", "-1", "nan", "inf", "1e9", "soon"))
    addresses = product(["--url"], ("localhost:8000", "http://me:secret@host:1"))
    for pair in (("--out", "x.csv"), ("--in-flight", "0"), *addresses, *seconds):
        with pytest.raises(SystemExit, match="2"):
            main([*_arguments(images, fake, out), *pair])
    assert "secret" not in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [images]


def test_over_https_a_certificate_may_hold_its_key(fake: FakeService, tmp_path: Path, out: Path) -> None:
    both = tmp_path / "both.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(both), "-out", str(tmp_path / "certificate")]
    subprocess.run(request, check=True, capture_output=True, timeout=60)
    both.write_bytes(both.read_bytes() + (tmp_path / "certificate").read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(both))
    context.load_cert_chain(both)
    context.verify_mode = ssl.CERT_REQUIRED
    fake.socket = context.wrap_socket(fake.socket, server_side=True)
    doors = ["--url", f"HTTPS://127.0.0.1:{fake.server_port}/", "--ca-file", str(both), "--cert-file", str(both)]
    assert main([*_arguments(_images(tmp_path / "images", "200"), fake, out), *doors]) == 0
    assert _embeddings(out) == _expected(1)


@pytest.mark.parametrize(("typed", "meant"), [("HTTPS://Host:1/", "https://Host:1"), ("GRPCS://h:1", "grpcs://h:1")])
def test_an_address_means_the_same_however_it_is_typed(typed: str, meant: str) -> None:
    """Taken by the letter, it would be spoken to in plain text, the token included."""
    assert command._url(typed) == meant
