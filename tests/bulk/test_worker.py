"""What a worker writes of a chunk, and what it makes of failures."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from service.bulk.embedder import Embedder
from service.bulk.folder import Folder
from service.bulk.plan import Plan
from service.bulk.reader import Reader
from service.bulk.strikes import Strikes
from service.client.listing import LeftOut, Place
from service.errors import ServiceFailure
from tests.bulk.lakes import ORIGIN, SETTINGS, Job, dealt, drawing, planned, write_tar
from tests.images import sample


def test_rows_hold_what_the_pipeline_makes_of_each_image(job: Job, lake: Path) -> None:
    (lake / "large.png").write_bytes(bytes(100_001))
    (lake / "gone.png").symlink_to("nowhere")
    (lake / "turned.jpg").write_bytes(sample("jpeg_turned").data)
    (lake / "pipe.png").touch()
    plan = job.plan()
    (lake / "pipe.png").unlink()
    os.mkfifo(lake / "pipe.png")
    answers = job.work(plan=plan)
    assert [answer["images"] for answer in answers] == [4, 4, 4, 2]
    rows = job.rows()
    assert sum(answer["failed"] for answer in answers) == 3
    assert rows["pipe.png"][1] == "unreadable: it is no regular file", "whoever opened it would wait for ever"
    assert rows["large.png"][1].startswith("too_many_bytes: ")  # type: ignore[union-attr]
    assert rows["gone.png"][1] == "unreadable: No such file or directory"
    job.assert_embedded(job.images())


def test_names_on_this_machine_are_bytes(job: Job) -> None:
    images = job.images()
    job.lake = job.lake.rename(os.fsdecode(os.fsencode(job.lake) + b"\xe9"))
    odd = Path(os.fsdecode(os.fsencode(job.lake) + b"/caf\xe9"))
    odd.mkdir()
    (odd / "10.jpg").write_bytes(drawing(10))
    write_tar(odd / "a.tar", {"11.jpg": drawing(11)})
    job.work()
    odd_images = {"caf\\xe9/10.jpg": drawing(10), "caf\\xe9/a.tar/11.jpg": drawing(11)}
    job.assert_embedded(images | odd_images)


def test_images_in_tar_files_are_embedded_as_those_beside_them(job: Job, lake: Path, out: Folder) -> None:
    """One tar file has names as `tar -P` writes them and ends within an image; another one joins the lake later."""
    images = job.images()
    shards = [{f"{seed}.jpg": drawing(seed) for seed in seeds} for seeds in ((10, 11), (12, 13), (14, 15, 16))]
    write_tar(lake / "a.TAR", shards[0])
    write_tar(lake / "sub/b.tar", {f"/data/{name}": data for name, data in shards[1].items()})
    os.truncate(lake / "sub/b.tar", 3 * 512 + len(shards[1]["12.jpg"]))
    left_out = LeftOut()
    assert len(list(Folder.at(str(lake)).images(left_out))) == 14
    assert left_out.unlisted == [f"{lake}/sub/b.tar: not a whole tar file: unexpected end of data"]
    job.work()
    parts = {path: path.stat().st_mtime_ns for path in Path(out.path).glob("*.parquet")}
    images |= {f"a.TAR/{name}": data for name, data in shards[0].items()}
    images["sub/b.tar/data/12.jpg"] = shards[1]["12.jpg"]
    job.assert_embedded(images)
    assert job.errors() == {"sub/b.tar/data/13.jpg": "unreadable: the tar file ends within it"}
    write_tar(lake / "c.tar", shards[2])
    job.work()
    assert {path: path.stat().st_mtime_ns for path in parts} == parts and len(out.tables()) == len(parts) + 1
    job.assert_embedded(images | {f"c.tar/{name}": data for name, data in shards[2].items()})


def test_a_tar_file_that_changes_gives_no_image_under_another_ones_name(
    job: Job, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written anew while it is read, in another order, with an image less and one more."""
    images = job.images()
    before, after = ({f"{seed}.jpg": drawing(seed) for seed in seeds} for seeds in ((10, 11, 12), (13, 11, 10)))
    write_tar(lake / "a.tar", before)
    read = Reader.read

    def change_and_read(self: Reader, place: Place, most: int) -> bytes:
        data = read(self, place, most)
        if place.name == "a.tar/10.jpg":
            write_tar(lake / "a.tar", after)
        return data

    plan = job.plan()
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", change_and_read)
        job.work(plan=plan)
    changed = "unreadable: the tar file has changed since it was listed"
    assert job.errors() == {f"a.tar/{name}": changed for name in before}
    job.assert_embedded(images)
    job.work()  # lists it once more, but what has failed waits for `--retry-failed`
    job.assert_embedded(images | {"a.tar/13.jpg": after["13.jpg"]})
    job.work(again=True)
    assert job.errors() == {"a.tar/12.jpg": changed}
    job.assert_embedded(images | {f"a.tar/{name}": data for name, data in after.items()})
    later = job.plan()
    assert later.chunks[:-1] == plan.chunks and later.chunks[-1].images == 1


def test_embeddings_have_norm_1_where_the_settings_say_so(job: Job, lake: Path, embedder: Embedder) -> None:
    job = Job(lake, job.out, embedder, SETTINGS.model_copy(update={"default_normalize": True}))
    (lake / "empty.jpg").touch()
    job.work()
    rows = job.rows()
    assert rows.pop("empty.jpg")[1] and len(rows) == 10
    (plain,) = embedder.embed([(lake / "0.jpg").read_bytes()])
    assert isinstance(plain, np.ndarray) and np.linalg.norm(plain) != pytest.approx(1, abs=0.01)
    assert rows["0.jpg"][0] == pytest.approx((plain / np.linalg.norm(plain)).tolist(), abs=1e-5)
    assert [np.linalg.norm(values) for values, _ in rows.values()] == pytest.approx([1] * 10)


def test_a_worker_whose_embeddings_are_others_than_the_jobs_ends_it(job: Job) -> None:
    with pytest.raises(ServiceFailure, match=f"the job's fingerprint is {ORIGIN.fingerprint}, here it is "):
        job.worker(ORIGIN)


def test_a_chunk_that_is_dealt_again_keeps_its_part_unless_that_is_broken(job: Job, lake: Path, out: Folder) -> None:
    job.work()
    parts = sorted(Path(out.path).glob("*.parquet"))
    before = [part.stat().st_mtime_ns for part in parts]
    parts[1].write_bytes(parts[1].read_bytes()[:-5])  # as after a power failure
    assert len(Plan(out, str(lake), job.origin).failed()) == 2
    job.work()
    after = [part.stat().st_mtime_ns for part in parts]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert len(job.rows()) == 10 and not job.errors()


@pytest.mark.parametrize("filesystem", [pa.fs.LocalFileSystem(), pa.fs.SubTreeFileSystem("/", pa.fs.LocalFileSystem())])
def test_a_source_that_is_gone_ends_the_worker_and_blames_no_image(
    job: Job, lake: Path, out: Folder, filesystem: pa.fs.FileSystem
) -> None:
    chunk, worker = job.plan().chunks[0], job.worker(source=Folder(filesystem, str(lake)))
    lake.rename(lake.with_name("elsewhere"))
    with pytest.raises(ServiceFailure, match="is out of reach"):
        worker(dealt(chunk))
    assert not out.tables()


def test_a_full_disk_is_told_in_one_line_and_not_kept_full(
    job: Job, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan = job.plan()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ServiceFailure, match=r"^OSError: \[Errno 28\] No space left on device$"):
        job.work(plan=plan)
    assert sorted(os.listdir(out.path)) == ["_plan", "_strikes"]


def test_two_workers_may_be_done_with_the_same_chunk(lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, strikes, names = planned(lake, out).chunks[0], Strikes(out), Folder.names

    def list_and_lose(self: Folder, start: str = "") -> list[str]:
        listed = names(self, start)
        self.clear() if start.endswith(".parquet.") else None
        return listed

    strikes.begin(chunk)
    monkeypatch.setattr(Folder, "names", list_and_lose)
    strikes.end(chunk)


def test_what_failed_is_embedded_again_on_demand_only(job: Job, lake: Path, out: Folder) -> None:
    sound = {name: (lake / name).read_bytes() for name in ("0.jpg", "2.jpg")}
    for name, data in sound.items():
        (lake / name).write_bytes(data[:300])
    job.work()
    before = job.rows()
    assert job.errors().keys() == sound.keys() and np.isnan(before["2.jpg"][0]).all()
    part = Path(out.path, "0000-000000.parquet")
    pq.write_table(pq.read_table(part).take([3, 2, 1, 0]), part)  # as earlier versions left some
    (lake / "4.jpg").unlink()  # what is embedded is not read again
    for name, data in sound.items():
        still = job.errors().keys()
        (lake / name).write_bytes(data)
        assert [answer["images"] for answer in job.work()] == [0, 0, 0]
        assert job.errors().keys() == still
        # Both are in the first chunk, of which nothing else is embedded and counted.
        answers = job.work(again=True)
        assert [answer["images"] for answer in answers] == [len(still), 0, 0]
        assert answers[0]["failed"] == len(still) - 1
        assert job.errors().keys() == still - {name}
    after = job.rows()
    assert after.keys() == before.keys() and after["4.jpg"] == before["4.jpg"]


def test_of_two_images_with_one_id_the_one_that_failed_is_embedded_again(
    job: Job, embedder: Embedder, tmp_path: Path
) -> None:
    failed, sound = tmp_path / "two" / "a\nb.jpg", tmp_path / "two" / r"a\nb.jpg"
    failed.parent.mkdir()
    job.lake = failed.parent
    failed.touch()
    sound.write_bytes(drawing(1))
    job.work()
    for _ in range(2):  # it stays where it is in the part
        job.work(again=True)
        assert [bool(error) for error in pq.read_table(job.out.path)["error"].to_pylist()] == [True, False]
    failed.write_bytes(drawing(0))
    job.work(again=True)
    rows = pq.read_table(job.out.path)
    assert rows["id"].to_pylist() == [sound.name] * 2
    for embedding, outcome in zip(rows["embedding"], embedder.embed([drawing(0), drawing(1)]), strict=True):
        assert isinstance(outcome, np.ndarray) and embedding.as_py() == pytest.approx(outcome.tolist(), abs=1e-4)


def test_an_image_that_kills_its_workers_gets_a_row_in_the_end(job: Job, out: Folder) -> None:
    """Three workers have died of its chunk, and two more when they embedded the images one by one.

    Of another image one has died, which may have been for any reason; and one died after it had embedded it.
    """
    first, second, _ = job.plan().chunks
    strikes = Strikes(out)
    assert [strikes.begin(first) for _ in range(6)] == [*range(6)]
    strikes.image(first, 0, 0).__enter__()
    with strikes.image(first, 0, 1):
        pass
    assert not strikes.deaths(first)
    for number, deaths in ((0, 0), (1, 0), (1, 1)):
        strikes.image(first, number, deaths).__enter__()
    assert strikes.deaths(first) == {0: 1, 1: 2}
    assert strikes.begin(second) == 0
    job.work()
    assert len(job.rows()) == 10 and job.errors().keys() == {"2.jpg"}
    assert job.errors()["2.jpg"] == "worker_died: 2 times, the process ended at this image"
    assert os.listdir(out.below("_strikes").path) == []
    job.work(again=True)
    assert not job.errors()


def test_of_all_suspects_one_image_at_a_time_is_in_the_works(
    job: Job, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the death of a worker that embeds two of them would be told of both."""
    chunks, embed, in_the_works, seen = job.plan().chunks, Embedder.embed, list[bytes](), list[int]()

    def note(self: Embedder, images: Sequence[bytes]) -> Any:
        in_the_works.extend(images)
        seen.append(len(in_the_works))
        outcomes = embed(self, images)
        del in_the_works[: len(images)]
        return outcomes

    monkeypatch.setattr(Embedder, "embed", note)
    for chunk in chunks:
        assert [Strikes(out).begin(chunk) for _ in range(3)] == [0, 1, 2]
    worker = job.worker()
    with ThreadPoolExecutor(len(chunks)) as threads:
        list(threads.map(worker, [dealt(chunk) for chunk in chunks]))
    assert seen == [1] * 10 and len(job.rows()) == 10
