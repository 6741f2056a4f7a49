"""What a folder, a pattern or a list names: what of it is embedded, left out and told, and what is made of its end."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from service.client import listing, sources
from service.client.listing import LeftOut
from service.client.sources import Image, Images
from tests.client.fake_service import FakeService
from tests.client.running import Client, expected, when
from tests.integration.service_process import wait_for


def test_names_come_from_stdin_or_a_pattern_and_each_is_embedded_once(client: Client, tmp_path: Path) -> None:
    images = client.images(*["200"] * 5)
    (tmp_path / "-").mkdir()
    odd = os.fsdecode(b"caf\xe9.jpg")
    (images / odd).write_text("200 #5")
    (images / "a\r\u2028b.JPG").write_text("200 #6")
    (images / "no image.JPG").mkdir()
    names = [str(images / f"{number}.JPG") for number in (0, 2, 0)] + [str(images / odd)] * 2
    text = "\ufeff" + "".join(f"{name}\n" for name in (*names, "")) + f"{names[0]}\r\n"
    assert client.run("-", input=text).returncode == 0
    assert set(client.rows()) == {*names[:2], f"{images}/caf\\xe9.jpg"}
    assert not pq.read_schema(client.out).metadata[b"folder"], "a list has none, also beside a folder of that name"
    npy = client.out.with_suffix(".npy")
    assert client.embed(f"{images}/**/*.JPG", "--out", npy) == 0
    ids = Path(f"{npy}.ids.txt").read_text().splitlines()
    assert sorted(ids) == sorted([*(str(path) for path in images.rglob("?.JPG")), f"{images}/a\\r\\u2028b.JPG"])


def test_of_two_names_that_have_one_id_the_other_one_is_told(client: Client) -> None:
    images = client.images("200")
    for name in ("a\nb.jpg", "a\\nb.jpg"):
        (images / name).write_text("200 #1")
    assert client.embed(images) == 1
    assert set(client.rows()) == {"0.JPG", "a\\nb.jpg"}
    assert f"\nnot listed: {images}/a\\nb.jpg: another name has the same id\n" in client.said()


def test_a_name_that_reads_like_a_pattern_is_a_name_where_there_is_such_a_file(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "IMG[1].jpg"
    image.write_text("200 #1")
    assert client.embed(image) == 0
    assert set(client.rows()) == {str(image)}


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
        images = Images("-", {}, 100)
        wait_for(lambda: images.total == 1)
        before = set(os.listdir("/proc/self/fd"))
        assert images.read_next() == Image(str(tmp_path), b"", "unreadable: Is a directory")
        assert before >= set(os.listdir("/proc/self/fd"))


def test_a_limit_that_no_memory_holds_keeps_no_image_out(client: Client) -> None:
    images = client.images("200")
    assert client.embed(images, "--max-image-bytes", 10**15) == 0
    assert client.embeddings() == expected(1)


def test_files_that_are_left_out_by_their_names_are_counted(client: Client) -> None:
    folder, named = client.images(), client.out.with_name("named.parquet")
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
    assert client.embed(folder) == 2
    assert client.said().endswith(f"error: there are no images in {folder}; {'; '.join(told)}\n")
    (folder / "0.jpg").write_text("200 #0")
    (folder / "to a file.jpg").symlink_to("0.jpg")
    (folder / "in a circle.jpg").symlink_to("in a circle.jpg")
    assert client.embed(folder) == 1
    assert client.said().endswith("\n".join(["", *told, ""]))
    assert {name: error for name, (_, error) in client.rows().items()} == {
        "0.jpg": None,
        "to a file.jpg": None,
        "in a circle.jpg": "unreadable: Too many levels of symbolic links",
    }
    assert client.embed(folder / "pipe.jpg", "--out", named) == 1
    assert client.rows(named)[str(folder / "pipe.jpg")][1] == "unreadable: it is no regular file"


@pytest.mark.parametrize("pattern", ["", "/**/*.JPG"])
def test_a_source_that_is_gone_ends_the_run_and_blames_no_image(
    client: Client, fake: FakeService, tmp_path: Path, pattern: str
) -> None:
    """As where a mount is gone, which leaves an empty folder."""
    images, elsewhere = client.images(*["waits"] * 50), tmp_path / "elsewhere"

    def unmount() -> None:
        images.rename(elsewhere)
        images.mkdir()
        fake.gate.set()

    when(lambda: len(fake.asked) == 2, unmount)
    assert client.embed(f"{images}{pattern}", "--in-flight", 2) == 2
    said = client.said().splitlines()[-1]
    assert said.startswith(f"error: {images}/")
    assert said.endswith("No such file or directory; the others cannot be read either")
    kept = client.embeddings(client.parts)
    assert 2 <= len(kept) < 50 and len(client.rows(client.parts)) == len(kept)
    images.rmdir()
    elsewhere.rename(images)
    assert client.embed(f"{images}{pattern}") == 0
    assert client.embeddings() == expected(50)


def test_of_a_list_a_folder_that_is_gone_takes_only_its_own_images_with_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = client.images(*["200"] * 3)
    (tmp_path / "list").write_text("".join(f"{folder}/{name}.JPG\n" for name in ("0", "below/1", "2")))
    with (tmp_path / "list").open() as names:
        monkeypatch.setattr(sys, "stdin", names)
        images = Images("-", {}, 100)
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


def test_a_list_of_which_nothing_is_there_is_no_list_of_failed_images(client: Client, tmp_path: Path) -> None:
    """As where a mount is missing, which leaves an empty folder; once it is back, all is embedded."""
    images, elsewhere = client.images("200", "200"), tmp_path / "elsewhere"
    names = "".join(f"{path}\n" for path in images.rglob("*.JPG"))
    images.rename(elsewhere)
    images.mkdir()
    assert client.embed_list(f"{names}no\0folder/2.JPG\n") == 2
    assert client.said().endswith("\nerror: none of 3 images can be read: their folders are gone, empty or closed\n")
    assert not client.out.exists() and not client.parts.exists()
    images.rmdir()
    elsewhere.rename(images)
    assert client.embed_list(names) == 0 and client.embeddings() == expected(2)
    lost = f"{tmp_path}/lost/2.JPG"
    assert client.embed_list(names + lost) == 1, "of others there was something, in an earlier run"
    assert client.errors() == {lost: "unreadable: No such file or directory"}


@pytest.mark.parametrize("pattern", ["", "/**/*.JPG"])
def test_a_source_that_has_no_images_any_more_is_told_whatever_earlier_runs_have_done(
    client: Client, tmp_path: Path, pattern: str
) -> None:
    """As where a mount is missing; that a list has nothing new is no news."""
    images = client.images("200")
    assert client.embed(f"{images}{pattern}") == 0
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    assert client.embed(f"{images}{pattern}") == 2
    assert client.said().endswith(f"error: there are no images in {images}{pattern}\n")
    assert client.embed_list("") == 0
    assert client.embeddings() == expected(1)


def test_what_ails_more_than_a_file_is_not_taken_for_the_files_own(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, scandir = client.images("200"), os.scandir

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fail_there(folder: str | Path) -> object:
        return fail() if str(folder) == str(images) else scandir(folder)

    monkeypatch.setattr(sources, "_read", fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail_there)
        assert client.embed(f"{images}/0.JPG") == 2
    said = client.said()
    assert said.endswith(f"error: {images}/0.JPG: Input/output error; the others cannot be read either\n")
    assert client.embed(f"{images}/0.JPG") == 1, "a bad sector is the file's own"
    assert client.rows()[f"{images}/0.JPG"][1] == "unreadable: Input/output error"


@pytest.mark.parametrize(("stdin", "why"), [("<&-", "stdin is closed"), ("0>/dev/null", "Bad file descriptor")])
def test_a_list_that_cannot_be_read_is_told_whatever_earlier_runs_have_done(
    client: Client, stdin: str, why: str
) -> None:
    assert client.embed(client.images("200")) == 0
    result = client.run("-", stdin)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, f"error: -: {why}")


def test_whatever_ends_the_list_early_is_told_and_what_is_embedded_is_kept(
    client: Client, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = client.images("200", "200")

    def walk(*_: object) -> Iterator[str]:
        yield "0.JPG"
        raise RecursionError("so deep")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "walk", walk)
        assert client.embed(images) == 2
    assert client.said().endswith(f"error: {images}: so deep\n") and not client.out.exists()
    assert client.embed(images) == 0
    assert client.embeddings() == expected(2) and set(fake.asked.values()) == {1}


@pytest.mark.parametrize(("script", "exit_code"), [("403", 2), ("200", 143)])
def test_a_run_that_ends_early_does_not_wait_for_the_end_of_its_list(
    client: Client, fake: FakeService, monkeypatch: pytest.MonkeyPatch, script: str, exit_code: int
) -> None:
    """Refused or told to end, while whoever writes the list is still at it."""
    images, (list_end, end) = client.images(script), os.pipe()
    with open(list_end) as names, open(end, "w") as find:
        monkeypatch.setattr(sys, "stdin", names)
        print(images / "0.JPG", file=find, flush=True)
        if script == "200":
            when(lambda: fake.answered == 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert client.embed("-") == exit_code
