"""Which image goes into which part, today and when the source has changed."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk import plan as planning
from service.bulk.folder import Folder
from service.bulk.plan import Mismatch, Plan
from service.client.listing import Place
from service.client.rows import Origin
from tests.bulk.lakes import ORIGIN, Job, drawing, planned, write_tar


def test_a_plan_stays_and_new_images_become_a_plan_of_their_own(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(lake, out)
    assert [(chunk.part, chunk.images) for chunk in first.chunks] == [
        ("0000-000000.parquet", 4),
        ("0000-000001.parquet", 4),
        ("0000-000002.parquet", 2),
    ]
    (lake / "0.jpg").unlink()
    (lake / "00.jpg").touch()
    later = planned(lake, out).chunks
    assert later[:3] == first.chunks and [(chunk.part, chunk.images) for chunk in later[3:]] == [
        ("0001-000000.parquet", 1)
    ]
    shutil.copy(Path(out.path, "_plan", "0000.parquet"), Path(out.path, "_plan", "0000 (1).parquet"))
    assert planned(lake, out).chunks == later, "or the images of a copy would be there twice"
    assert Plan(out, str(lake), ORIGIN).extend([Place(name, name) for name in ("0.jpg", "0.jpg", "00.jpg")], 4) == 2
    monkeypatch.setattr(planning, "_BATCH", 1)  # a name that comes twice is one image, however far apart
    last = Plan(out, str(lake), ORIGIN)
    last.extend([Place("10.jpg", "10.jpg")] * 2, 4)
    assert [chunk.images for chunk in last.chunks[4:]] == [1]


def test_a_plan_that_was_removed_leaves_the_others_their_names(lake: Path, out: Folder) -> None:
    """As a damaged one, which is told by its name: its images are planned anew, and not in the place of others."""
    planned(lake, out)
    (lake / "10.jpg").touch()
    kept = planned(lake, out).chunks[-1]
    (damaged, _) = sorted(Path(out.path, "_plan").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(OSError, match=f"^{damaged} cannot be read: "):
        planned(lake, out)
    damaged.unlink()
    chunks = planned(lake, out).chunks
    assert [place.name for place in planning.places_of(out, kept)] == ["10.jpg"]
    assert chunks[0] == kept and [chunk.part for chunk in chunks[1:]] == [
        f"0002-00000{group}.parquet" for group in range(3)
    ]


def test_whoever_reads_a_chunk_reads_no_more_of_the_others_the_more_there_are(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_CHUNKS", 2)
    chunks = planned(lake, out).chunks
    assert [chunk.part for chunk in chunks] == [
        f"{part}.parquet" for part in ("0000-000000", "0000-000001", "0001-000000")
    ]
    names = [place.name for chunk in chunks for place in planning.places_of(out, chunk)]
    assert names == sorted(str(path.relative_to(lake)) for path in lake.rglob("*.jpg"))
    assert planned(lake, out).chunks == chunks


def test_no_collection_of_garbage_looks_at_all_names(lake: Path, out: Folder) -> None:
    """Many images bring many collections, so planning would take a time that grows with their square."""
    before = gc.get_freeze_count()

    def images() -> Iterator[Place]:
        yield Place("new.jpg", "new.jpg")
        assert not any(type(each) is set and b"0.jpg" in each for each in gc.get_objects())

    assert len(planned(lake, out).chunks) == 3
    assert Plan(out, str(lake), ORIGIN).extend(images(), 4) == 1
    assert gc.get_freeze_count() == before


def test_places_in_tar_files_are_corrected_a_chunk_at_a_time(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once would take twice the memory that planning takes."""
    calls = list[str]()

    def noting(name: str) -> Callable[[Any], Any]:
        function = getattr(planning, name)

        def note(given: Any) -> Any:
            calls.append(name)
            return function(given)

        return note

    write_tar(lake / "a.tar", {f"{number}.jpg": b"" for number in range(10)})
    chunks = planned(lake, out).chunks
    os.utime(lake / "a.tar", ns=(1, 1))
    for name in ("_table", "_places"):
        monkeypatch.setattr(planning, name, noting(name))
    assert planned(lake, out).chunks == chunks and len(chunks) == 5
    assert calls == ["_table", *["_places", "_table"] * 5]
    assert {place.stamp for chunk in chunks for place in planning.places_of(out, chunk)} == {
        None,
        ((lake / "a.tar").stat().st_size, 1),
    }


def test_a_tar_file_of_a_time_that_arrow_does_not_know_is_planned_as_any_other(lake: Path, out: Folder) -> None:
    write_tar(lake / "a.tar", {"10.jpg": b""})
    os.utime(lake / "a.tar", ns=(2**63, 2**63))  # in 2262
    chunks = planned(lake, out).chunks
    assert sum(chunk.images for chunk in chunks) == 11 and planned(lake, out).chunks == chunks


def test_parts_of_no_plan_are_not_taken_for_those_of_the_next_one(job: Job, lake: Path, out: Folder) -> None:
    """As where `_plan` was not copied along: other images may be in them, and other embeddings."""
    job.work()
    out.below("_plan").clear()
    (lake / "0.jpg").unlink()
    with pytest.raises(Mismatch, match=r"has 0000-000000\.parquet, which is in no plan of _plan; choose"):
        job.work()


def test_a_plan_for_other_embeddings_or_another_source_is_refused(lake: Path, out: Folder) -> None:
    planned(lake, out)
    for origin in (Origin("another", "embed_image", "False"), Origin(ORIGIN.fingerprint, "embed_image", "True")):
        with pytest.raises(Mismatch, match="fingerprint 0123456789abcdef, model embed_image, normalize False; now it"):
            planned(lake, out, origin)
    with pytest.raises(Mismatch, match="is of source"):
        planned(lake / "sub", out)


def test_a_plan_of_an_earlier_version_goes_on(job: Job, lake: Path, out: Folder) -> None:
    images = job.images()
    plan = job.plan()
    (path,) = Path(out.path, "_plan").iterdir()
    names = pq.read_table(path, columns=["name"])
    pq.write_table(names.cast(pa.schema({"name": pa.binary()}, names.schema.metadata)), path, row_group_size=4)
    write_tar(lake / "a.tar", {"10.jpg": drawing(10)})
    job.work()
    job.assert_embedded(images | {"a.tar/10.jpg": drawing(10)})
    assert set(out.tables()) == {*(chunk.part for chunk in plan.chunks), "0001-000000.parquet"}
