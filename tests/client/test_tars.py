"""Images in tar files, whole ones and damaged ones, and such as are written anew meanwhile."""

import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from service.client import sources
from service.client.sources import Image, Images
from tests.client.fake_service import FakeService
from tests.client.running import Client, add, expected, write_shard
from tests.integration.service_process import wait_for


def test_images_in_tar_files_are_embedded_as_those_beside_them(client: Client, fake: FakeService) -> None:
    images = client.images("200", "200")
    write_shard(images / "shards" / "a.tar", "200", "400 200", "200", first=2)
    with tarfile.open(write_shard(images / "b.TAR", "200", first=5), "a") as shard:
        shard.add("/dev/null", "device.jpg")
        shard.add(images / "below", "folder.jpg", recursive=False)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "5.jpg"
        shard.addfile(link)
    assert client.embed(images) == 1
    assert client.errors() == {"shards/a.tar/3.jpg": "corrupt_image: it is damaged"}
    assert "b.TAR/5.jpg" in client.rows() and client.embeddings() == {n: e for n, e in expected(6).items() if n != 3}
    said = client.said()
    assert "links to folders or in tar files, which are not followed: 1\n" in said
    assert "pipes, sockets and devices, which are not read: 1\n" in said
    assert "4 files left out by their names: .json 4\n" in said
    assert client.embed(images, "--retry-failed") == 0
    assert client.embeddings() == expected(6) and fake.asked["200 #5"] == 1
    alone = client.out.with_name("alone.parquet")
    assert client.embed(images / "b.TAR", "--out", alone) == 0
    assert list(client.rows(alone)) == [f"{images}/b.TAR/5.jpg"]


def test_what_is_called_alike_in_tar_files_is_told_apart_or_told(client: Client) -> None:
    images = client.images()
    for number, name in enumerate("ab"):
        with tarfile.open(images / f"{name}.tar", "w") as shard:
            add(shard, "/data/image.jpg", f"200 #{number}")  # as `tar -P` writes it
            add(shard, "data/image.jpg", "200 #2")
    assert client.embed_list("".join(f"{images}/{name}.tar\n" for name in "abba")) == 0
    assert {name: embedding[0] for name, (embedding, _) in client.rows().items()} == {
        f"{images}/{name}.tar/data/image.jpg": number for number, name in enumerate("ab")
    }
    assert "\nnames that a tar file has more than once, of which the first counts: 2\n" in client.said()


def test_images_that_tar_files_hold_with_holes_are_told(client: Client) -> None:
    images = client.images("200")
    with tarfile.open(images / "a.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        for name in ("holes.jpg", "holes.json"):
            add(shard, name, "200 #1", {"GNU.sparse.map": "2,6", "GNU.sparse.size": "8"})
    assert client.embed(images, "--timeout", 1) == 1
    assert client.embeddings() == expected(1) and len(client.rows()) == 1
    said = client.said()
    assert f"\nnot listed: {images}/a.tar/holes.jpg: stored with holes (tar -S), which is not read\n" in said
    assert "\n1 files left out by their names: .json 1\n" in said


CHANGED = "unreadable: the tar file has changed since it was listed"


@pytest.mark.parametrize("later", [(1, 0), (0, 1)])
def test_what_has_taken_the_place_of_a_tar_file_is_not_taken_for_its_images(
    tmp_path: Path, later: tuple[int, int]
) -> None:
    shard = write_shard(tmp_path / "a.tar", "200", "200")
    images, before = Images(str(tmp_path), {}, 100), shard.stat()
    wait_for(lambda: images.total == 2)
    assert images.read_next() == Image("a.tar/0.jpg", b"200 #0", None, before.st_mtime_ns)
    os.truncate(shard, before.st_size + later[0])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + later[1]))
    assert images.read_next() == Image("a.tar/1.jpg", b"", CHANGED)


def test_what_is_written_into_a_tar_file_while_it_is_read_is_not_taken_for_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, later = write_shard(tmp_path / "a.tar", "200"), write_shard(tmp_path / "later", "200", first=5).read_bytes()
    os.utime(shard, ns=(1, 1))
    images = Images(str(tmp_path), {}, 100)
    wait_for(lambda: images.total == 1)

    class Late(io.BufferedReader):
        def seek(self, *where: int) -> int:
            shard.write_bytes(later)
            return super().seek(*where)

    def open_late(path: str, _: str, opener: Callable[[str, int], int]) -> Late:
        return Late(io.FileIO(path, opener=opener))

    monkeypatch.setattr(sources, "open", open_late, raising=False)
    assert images.read_next() == Image("a.tar/0.jpg", b"", CHANGED)


def test_what_a_damaged_tar_file_lacks_is_told(client: Client, tmp_path: Path) -> None:
    """An image and what tells of it take 2,048 bytes here, half of each are its header."""
    whole, images = write_shard(tmp_path / "whole.tar", "200", "200").read_bytes(), client.images()
    cuts = {"between": 2048, "header": 2100, "image": 2563, "text": 3585, "start": 100}
    for name, size in cuts.items():
        (images / f"{name}.tar").write_bytes(whole[:size])
    (images / "garbled.tar").write_bytes(whole[:2048] + b"x" * 512 + whole[2560:])
    (images / "hole.tar").write_bytes(whole[:2048] + bytes(512) + whole[2560:])
    (images / "joined.tar").write_bytes(2 * whole)
    (images / "whole.tar").write_bytes(whole)
    os.mkfifo(images / "pipe.tar")
    (images / "nowhere.tar").symlink_to("nowhere")
    assert client.embed(images) == 1
    assert {name: error for name, (_, error) in client.rows().items()} == {
        **{f"{name}.tar/0.jpg": None for name in (*cuts, "garbled", "hole", "joined", "whole") if name != "start"},
        "image.tar/1.jpg": "unreadable: the tar file ends within it",
        "text.tar/1.jpg": None,
        "joined.tar/1.jpg": None,
        "whole.tar/1.jpg": None,
    }
    said = client.said()
    assert {line.split("/")[-1] for line in said.splitlines() if line.startswith("not listed: ")} == {
        "between.tar: not a whole tar file: no end and no member after 2048 bytes",
        "header.tar: not a whole tar file: no end and no member after 2048 bytes",
        "garbled.tar: not a whole tar file: no end and no member after 2048 bytes",
        "hole.tar: not a whole tar file: there is more behind its end after 2048 bytes",
        "joined.tar: not a whole tar file: there is more behind its end after 4096 bytes",
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
def test_a_tar_file_whose_headers_nothing_can_hold_ends_no_run(client: Client, headers: bytes) -> None:
    images = client.images("200")
    (images / "a.tar").write_bytes(headers)
    assert client.embed(images) == 1
    assert client.embeddings() == expected(1)
    assert re.search(rf"\nnot listed: {images}/a.tar: not a whole tar file: \w.*\n", client.said())
