"""The bulk job's rooms without Ray: what is planned and when, what a worker writes, and what it makes of failures."""

import contextlib
import errno
import gc
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import RayError, RayTaskError

from service.bulk import cluster, command
from service.bulk import plan as planning
from service.bulk.cluster import Shares, divide
from service.bulk.command import _report, main
from service.bulk.embedder import Embedder, _watch
from service.bulk.folder import Folder
from service.bulk.plan import Mismatch, Plan
from service.bulk.reader import Reader
from service.bulk.strikes import Strikes
from service.bulk.worker import Facts, Site, Worker
from service.client.listing import LeftOut, Place, id_of
from service.client.locks import Busy
from service.client.progress import Progress
from service.client.rows import Origin
from service.cores import Cores
from service.demo.drawings import draw
from service.errors import ServiceFailure, StartupFault
from service.health.hangs import StageWatch
from service.metrics import Metrics
from service.model.encoder import Encoder
from service.process.environment import ENVIRONMENT
from service.settings import Settings, load_settings
from tests.images import sample

REPOSITORY = Path(__file__).parents[1]
SETTINGS = load_settings(["--dtype", "float32", "--max-batch-size", "4", "--max-image-bytes", "100000"])
ORIGIN = Origin("0123456789abcdef", "embed_image", "False")


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    """The one that all workers of these tests have; that each makes its own, tests/integration/test_ray.py holds."""
    shared = Embedder(SETTINGS, Cores())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.bulk.worker._build", lambda *_: shared)
        yield shared


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    (folder / "sub").mkdir(parents=True)
    for number in range(10):
        Path(folder, "sub" if number % 2 else "", f"{number}.jpg").write_bytes(_drawing(number))
    return folder


def _drawing(seed: int) -> bytes:
    content = io.BytesIO()
    draw(np.random.default_rng(seed)).image.save(content, "jpeg")
    return content.getvalue()


def _tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def out(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "out"))


def _plan(lake: Path, out: Folder, origin: Origin = ORIGIN) -> Plan:
    plan, source = Plan(out, id_of(str(lake)), origin), Folder.at(str(lake))
    plan.extend(source.images(LeftOut()), part_rows=4)
    return plan


def _work(
    lake: Path,
    out: Folder,
    embedder: Embedder,
    again: bool = False,
    settings: Settings = SETTINGS,
    plan: Plan | None = None,
) -> list[dict[str, Any]]:
    """Embed all chunks of a plan, or of a new one, with a worker of its own, as Ray would deal them."""
    origin = Origin(embedder.fingerprint, "embed_image", str(settings.default_normalize))
    worker = Worker(settings, 1, Site(Folder.at(str(lake)), out, origin))
    plan = plan or _plan(lake, out, origin)
    todo = plan.to_do(plan.failed(), again)
    return [worker({**chunk._asdict(), "to_do": todo.get(chunk, 0), "again": again}) for chunk in plan.chunks]


def _rows(out: Folder) -> dict[str, tuple[list[float], str | None]]:
    rows = pq.read_table(out.path).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["embedding"], row["error"]) for row in rows}


def _errors(out: Folder) -> dict[str, str]:
    return {name: error for name, (_, error) in _rows(out).items() if error}


@pytest.mark.parametrize(
    ("device", "worker_cpus", "nodes", "shares"),
    [
        ("auto", 0, [{"CPU": 8.0}, {"CPU": 4.0}], Shares(3, 4, 0)),
        ("cpu", 3, [{"CPU": 8.0, "GPU": 1.0}], Shares(2, 3, 0)),
        ("auto", 0, [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0}], Shares(8, 8, 1)),
        ("cuda", 16, [{"CPU": 64.0, "GPU": 8.0}], Shares(4, 16, 1)),
        ("cuda", 16, [{"CPU": 8.0, "GPU": 1.0}], "no machine has 16 cores for a worker and its GPU"),
        ("cuda", 0, [{"CPU": 8.0}], "the cluster has no GPU"),
        ("cpu", 9, [{"CPU": 8.0}], "no machine has 9 cores for a worker"),
    ],
)
def test_a_cluster_is_divided_into_workers_that_it_can_hold(
    monkeypatch: pytest.MonkeyPatch, device: str, worker_cpus: int, nodes: list[dict[str, float]], shares: Shares | str
) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 96.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
    if isinstance(shares, Shares):
        assert divide(device, worker_cpus) == shares
    else:
        with pytest.raises(StartupFault, match=shares):
            divide(device, worker_cpus)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0,cuda:1"])
def test_which_gpus_workers_get_is_for_ray_to_say(device: str, capsys: pytest.CaptureFixture[str]) -> None:
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
    run = [sys.executable, "-m", f"service.{command}", "lake", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        run, cwd=REPOSITORY, env=environment, check=False, timeout=60, capture_output=True, text=True
    )
    who = "job" if command == "bulk" else "client"
    said = f"error: No module named {name}; the {who} needs the packages of '.[{command}]'\n"
    assert (result.returncode, result.stderr) == (2, said)


def _ray_error(cause: Exception) -> RayError:
    """One of a worker, to whose message Ray adds what it likes."""
    fault: Any = RayTaskError  # which has no types
    error: RayError = fault("submit", "Traceback of several processes", cause)
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayError(""), "RayError"),
        (RayError("Traceback\n  it\nodd\n"), "odd"),
        (_ray_error(ServiceFailure("the disk is full\nTo change retry attempts, configure Ray")), "the disk is full"),
    ],
)
def test_what_ray_says_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RayError, told: str
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


def test_workers_find_what_is_set_here_and_the_services_own_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, names, utils = dict[str, Any](), list(ENVIRONMENT), ray._private.utils
    monkeypatch.setattr(utils, "set_sigterm_handler", utils.set_sigterm_handler)  # as it was, when this is over
    monkeypatch.setattr(ray, "init", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(ray, "shutdown", asked.clear)
    monkeypatch.setenv(names[0], "as set here")
    for name in names[1:]:
        monkeypatch.delenv(name, raising=False)
    with cluster.cluster("local"):
        assert asked["runtime_env"] == {"env_vars": {**ENVIRONMENT, names[0]: "as set here"}}
        assert asked["num_cpus"] and asked["object_store_memory"]
    assert not asked, "its processes end with the run"
    with cluster.cluster("auto"):  # which has its own, and Ray would refuse ours
        assert asked["num_cpus"] is asked["object_store_memory"] is None


def test_who_tells_what_a_worker_would_be_has_a_workers_share_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict[str, Any]()

    def remote(**options: object) -> Any:
        asked.update(options)
        return lambda function: SimpleNamespace(remote=function)

    def build(settings: Settings, cores: Cores) -> Any:
        return SimpleNamespace(fingerprint=settings.device, lanes=cores.count)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr("service.bulk.embedder.Embedder", build)
    assert cluster.ask(SETTINGS, Shares(3, 2, 1)) == Facts(SETTINGS.device, 2)
    assert asked == {"num_cpus": 2, "num_gpus": 1}
    settings = SETTINGS.model_copy(update={"cpu_threads": 5})
    assert cluster.ask(settings, Shares(3, 2, 1)).lanes == 5, "or as many threads as the settings say"

    def fail(_: object) -> None:
        raise _ray_error(StartupFault("no checkpoint there"))

    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(StartupFault, match=r"^no checkpoint there$"):
        cluster.ask(SETTINGS, Shares(3, 2, 1))


def test_each_chunk_is_dealt_by_itself_and_to_no_more_workers_than_there_are_chunks(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = dict[str, Any]()

    class Items:
        def __init__(self, items: Sequence[dict[str, Any]], override_num_blocks: int) -> None:
            self._items = items
            dealt["blocks"] = override_num_blocks

        def map(self, worker: Callable[..., Any], fn_constructor_args: Sequence[Any], **options: Any) -> Any:
            dealt.update(options)
            return SimpleNamespace(iter_rows=lambda: map(worker(*fn_constructor_args), self._items))

    context = SimpleNamespace()
    monkeypatch.setattr(ray.data.DataContext, "get_current", lambda: context)
    monkeypatch.setattr(ray.data, "from_items", Items)
    monkeypatch.setattr(cluster, "Worker", lambda *told: lambda item: (told, item))
    site, chunks = Site(Folder.at(str(lake)), out, ORIGIN), _plan(lake, out).chunks
    answers: list[Any] = list(cluster.work({chunks[0]: 4, chunks[2]: 1}, True, SETTINGS, Shares(8, 2, 1), 3, site))
    items = [{**chunks[number]._asdict(), "to_do": count, "again": True} for number, count in ((0, 4), (2, 1))]
    assert answers == [((SETTINGS, 2, site), item) for item in items]
    pool = dealt.pop("compute")
    assert dealt == {"blocks": 2, "num_cpus": 2, "num_gpus": 1} and (pool.min_size, pool.max_size) == (2, 2)
    assert (pool.max_tasks_in_flight_per_actor, pool.max_concurrent_calls_per_actor) == (3, 3)
    assert pool.enable_true_multi_threading
    assert context.raise_original_map_exception and context.execution_no_progress_timeout_s < 0


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that has one, whose embeddings are those of `ORIGIN`."""
    monkeypatch.setattr(cluster, "cluster", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cluster, "divide", lambda *_: Shares(1, 1, 0))
    monkeypatch.setattr(cluster, "ask", lambda *_: Facts(ORIGIN.fingerprint, 1))
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def test_a_run_that_is_ended_tells_by_which_signal(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.usefixtures("one_worker")
def test_a_link_that_leads_elsewhere_is_another_source(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "work", lambda *_: ())
    link = lake.with_name("link")
    link.symlink_to(lake)
    assert main([str(link), "--out", out.path]) == 1
    link.unlink()
    link.symlink_to(lake / "sub")
    assert main([str(link), "--out", out.path]) == 2
    said = capsys.readouterr().err
    assert f"is of source {lake}, " in said and f"it would be source {lake}/sub, " in said


@pytest.mark.usefixtures("one_worker")
def test_a_source_that_has_no_images_any_more_is_told_whatever_earlier_runs_have_planned(
    lake: Path, out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    _plan(lake, out)
    lake.rename(lake.with_name("elsewhere"))
    lake.mkdir()
    assert main([str(lake), "--out", out.path]) == 2
    assert capsys.readouterr().err == f"error: there are no images in {lake}\n"


@pytest.mark.usefixtures("one_worker")
def test_other_embeddings_than_those_of_earlier_runs_are_refused(
    lake: Path, out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    _plan(lake, out, Origin("another", "embed_image", "False"))
    assert main([str(lake), "--out", out.path]) == 2
    said, is_now = capsys.readouterr().err.split("; now it would be ")
    assert said.endswith(", fingerprint another, model embed_image, normalize False")
    assert is_now.endswith(f", fingerprint {ORIGIN.fingerprint}, model embed_image, normalize False\n")


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("gpus", [0, 1])
def test_workers_are_told_of_their_device_and_of_what_their_embeddings_are(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    told = list[Any]()

    def work(*given: object) -> tuple[()]:
        told.append(given)
        return ()

    monkeypatch.setattr(cluster, "divide", lambda *_: Shares(1, 1, gpus))
    monkeypatch.setattr(cluster, "work", work)
    arguments = [str(lake), "--out", out.path, "--part-rows", "4"]
    with out.for_one_run():
        assert main(arguments) == 2 and not told, "one run at a time"
    assert main([*arguments, "--default-normalize", "true"]) == 1
    ((todo, again, settings, shares, lanes, site),) = told
    assert sum(todo.values()) == 10 and not again and settings.device == ("cuda" if gpus else "cpu")
    assert (shares, lanes, site.source.path, site.out.path) == (Shares(1, 1, gpus), 1, str(lake), out.path)
    assert site.origin == Origin(ORIGIN.fingerprint, "embed_image", "True")
    assert main(arguments) == 2, "plain embeddings are others"


def test_where_nobody_watches_a_line_tells_how_far_a_job_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_LINE_SECONDS", 0.0)
    assert command._follow([{"images": 2, "failed": 1}] * 2, 5).done == 4
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["2/5", "4/5"]


def test_a_plan_stays_and_new_images_become_a_plan_of_their_own(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _plan(lake, out)
    assert [(chunk.part, chunk.images) for chunk in first.chunks] == [
        ("0000-000000.parquet", 4),
        ("0000-000001.parquet", 4),
        ("0000-000002.parquet", 2),
    ]
    (lake / "0.jpg").unlink()
    (lake / "00.jpg").touch()
    later = _plan(lake, out).chunks
    assert later[:3] == first.chunks and [(chunk.part, chunk.images) for chunk in later[3:]] == [
        ("0001-000000.parquet", 1)
    ]
    assert _plan(lake, out).chunks == later
    assert Plan(out, str(lake), ORIGIN).extend([Place(name, name) for name in ("0.jpg", "0.jpg", "00.jpg")], 4) == 2
    monkeypatch.setattr(planning, "_BATCH", 1)  # a name that comes twice is one image, however far apart
    last = Plan(out, str(lake), ORIGIN)
    last.extend([Place("10.jpg", "10.jpg")] * 2, 4)
    assert [chunk.images for chunk in last.chunks[4:]] == [1]


def test_whoever_reads_a_chunk_reads_no_more_of_the_others_the_more_there_are(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_CHUNKS", 2)
    chunks = _plan(lake, out).chunks
    assert [chunk.part for chunk in chunks] == [
        f"{part}.parquet" for part in ("0000-000000", "0000-000001", "0001-000000")
    ]
    names = [place.name for chunk in chunks for place in planning.places_of(out, chunk)]
    assert names == sorted(str(path.relative_to(lake)) for path in lake.rglob("*.jpg"))
    assert _plan(lake, out).chunks == chunks


def test_no_collection_of_garbage_looks_at_all_names(lake: Path, out: Folder) -> None:
    """Many images bring many collections, so planning would take a time that grows with their square."""
    before = gc.get_freeze_count()

    def images() -> Iterator[Place]:
        yield Place("new.jpg", "new.jpg")
        assert not any(type(each) is set and b"0.jpg" in each for each in gc.get_objects())

    assert len(_plan(lake, out).chunks) == 3
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

    _tar(lake / "a.tar", {f"{number}.jpg": b"" for number in range(10)})
    chunks = _plan(lake, out).chunks
    os.utime(lake / "a.tar", ns=(1, 1))
    for name in ("_table", "_places"):
        monkeypatch.setattr(planning, name, noting(name))
    assert _plan(lake, out).chunks == chunks and len(chunks) == 5
    assert calls == ["_table", *["_places", "_table"] * 5]
    assert {place.stamp for chunk in chunks for place in planning.places_of(out, chunk)} == {
        None,
        ((lake / "a.tar").stat().st_size, 1),
    }


def test_parts_of_no_plan_are_not_taken_for_those_of_the_next_one(lake: Path, out: Folder, embedder: Embedder) -> None:
    """As where `_plan` was not copied along: other images may be in them, and other embeddings."""
    _work(lake, out, embedder)
    out.below("_plan").clear()
    (lake / "0.jpg").unlink()
    with pytest.raises(Mismatch, match=r"has 0000-000000\.parquet, which is in no plan of _plan; choose"):
        _work(lake, out, embedder)


def test_a_plan_for_other_embeddings_or_another_source_is_refused(lake: Path, out: Folder) -> None:
    _plan(lake, out)
    for origin in (Origin("another", "embed_image", "False"), Origin(ORIGIN.fingerprint, "embed_image", "True")):
        with pytest.raises(Mismatch, match="fingerprint 0123456789abcdef, model embed_image, normalize False; now it"):
            _plan(lake, out, origin)
    with pytest.raises(Mismatch, match="is of source"):
        _plan(lake / "sub", out)


def test_an_object_store_is_listed_and_read_like_a_local_folder(lake: Path) -> None:
    for other in ("notes.TXT", "sub/movie.mp4", "sub/more.txt"):
        (lake / other).touch()
    images = {f"{number}.jpg": str(number).encode() * 500 for number in range(300)}  # more than is listed at a time
    for number in range(40):
        _tar(lake / "sub" / f"{number}.tar", {"./0.jpg": b"all of it"} if number else {**images, "0.json": b"{}"})
    # Not a LocalFileSystem any more, so listed as every other file system is.
    store = Folder(pa.fs.SubTreeFileSystem(str(lake.parent), pa.fs.LocalFileSystem()), "lake")
    local = Folder.at(lake.as_uri())
    assert local.is_local and not store.is_local
    names = {str(path.relative_to(lake)) for path in lake.rglob("*.jpg")}
    names |= {f"sub/{number}.tar/0.jpg" for number in range(40)} | {f"sub/0.tar/{name}" for name in images}
    infos = store.filesystem.get_file_info(pa.fs.FileSelector("lake", recursive=True))
    listed: Any = SimpleNamespace(get_file_info=lambda _: infos)
    assert len(list(Folder(listed, "lake")._walk((".jpg",), LeftOut()))) == 10
    assert not infos, "or what is listed of millions would be in memory beside their names"
    for folder in (store, local):
        left_out, reader, open_files = LeftOut(), Reader(folder), len(os.listdir("/proc/self/fd"))
        places = {place.name: place for place in folder.images(left_out)}
        assert places.keys() == names
        assert list(left_out.lines()) == ["4 files left out by their names: .txt 2, .mp4 1, .json 1"]
        assert reader.read(places["sub/1.jpg"], 2**20) == (lake / "sub/1.jpg").read_bytes()
        read = {name: reader.read(place, 500) for name, place in places.items() if place.file != place.name}
        assert [read.pop(f"sub/{number}.tar/0.jpg") for number in range(1, 40)] == [b"all of it"] * 39
        assert read == {f"sub/0.tar/{name}": data[:500] for name, data in images.items()}
        assert len(os.listdir("/proc/self/fd")) < open_files + 20, "of thousands of tar files few may stay open"


class _Counted(io.BytesIO):
    """A file that counts what is read of it."""

    def __init__(self, path: str, counts: list[int]) -> None:
        super().__init__(Path(path).read_bytes())
        self._counts = counts

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._counts.append(len(data))
        return data


def test_of_a_tar_file_in_an_object_store_only_images_and_headers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tar(tmp_path / "a.tar", {"0.bin": bytes(2**23), "1.jpg": b"first", "2.bin": bytes(2**23), "3.jpg": b"second"})
    opened: list[list[int]] = []

    def open_input_file(path: str) -> pa.NativeFile:
        opened.append([])
        return pa.PythonFile(_Counted(path, opened[-1]), "r")

    store = _Store()
    monkeypatch.setattr(store, "open_input_file", open_input_file)
    folder = Folder(store, str(tmp_path))
    reader, places = Reader(folder), list(folder.images(LeftOut()))
    (headers,) = opened
    assert len(headers) < 10 and sum(headers) < 2**22
    assert [reader.read(place, 2**20) for place in places] == [b"first", b"second"]
    assert opened == [headers, [5, 6]]


@pytest.mark.parametrize("size", [-512, 2**70])
def test_a_size_that_cannot_be_ends_no_more_than_its_tar_file(lake: Path, out: Folder, size: int) -> None:
    _tar(lake / "a.tar", {"0.jpg": b"sound"})
    odd = tarfile.TarInfo("1.jpg")
    odd.size = size
    with open(lake / "a.tar", "r+b") as file:
        file.seek(1024)
        file.write(odd.tobuf(tarfile.GNU_FORMAT))
    left_out = LeftOut()
    assert Plan(out, str(lake), ORIGIN).extend(Folder.at(str(lake)).images(left_out), 4) == 11
    assert left_out.unlisted == [f"{lake}/a.tar: not a whole tar file: a member of {size} bytes"]


def test_one_run_at_a_time_writes_into_a_folder(out: Folder) -> None:
    with out.for_one_run(), pytest.raises(Busy), Folder.at(out.path).for_one_run():
        pass
    with out.for_one_run():
        pass


def test_rows_hold_what_the_pipeline_makes_of_each_image(lake: Path, out: Folder, embedder: Embedder) -> None:
    (lake / "large.png").write_bytes(bytes(100_001))
    (lake / "gone.png").symlink_to("nowhere")
    (lake / "turned.jpg").write_bytes(sample("jpeg_turned").data)
    answers = _work(lake, out, embedder)
    assert [answer["images"] for answer in answers] == [4, 4, 4, 1]
    rows = _rows(out)
    errors = {name: error.partition(":")[0] for name, error in _errors(out).items()}
    assert sum(answer["failed"] for answer in answers) == 2
    assert errors == {"large.png": "too_many_bytes", "gone.png": "unreadable"}
    assert rows["gone.png"][1] == "unreadable: No such file or directory"
    names = sorted(rows.keys() - errors.keys())
    expected = embedder.embed([(lake / name).read_bytes() for name in names])
    for name, outcome in zip(names, expected, strict=True):
        assert isinstance(outcome, np.ndarray) and rows[name][0] == pytest.approx(outcome.tolist(), abs=1e-4)


def _assert_embedded(out: Folder, embedder: Embedder, images: Mapping[str, bytes]) -> None:
    """These and no others, each under its name."""
    rows = {name: embedding for name, (embedding, error) in _rows(out).items() if not error}
    assert rows.keys() == images.keys()
    for name, outcome in zip(images, embedder.embed(list(images.values())), strict=True):
        assert isinstance(outcome, np.ndarray) and rows[name] == pytest.approx(outcome.tolist(), abs=1e-4)


def test_names_on_this_machine_are_bytes(lake: Path, out: Folder, embedder: Embedder) -> None:
    images = {str(path.relative_to(lake)): path.read_bytes() for path in lake.rglob("*.jpg")}
    lake = lake.rename(os.fsdecode(os.fsencode(lake) + b"\xe9"))
    odd = Path(os.fsdecode(os.fsencode(lake) + b"/caf\xe9"))
    odd.mkdir()
    (odd / "10.jpg").write_bytes(_drawing(10))
    _tar(odd / "a.tar", {"11.jpg": _drawing(11)})
    _work(lake, out, embedder)
    odd_images = {"caf\\xe9/10.jpg": _drawing(10), "caf\\xe9/a.tar/11.jpg": _drawing(11)}
    _assert_embedded(out, embedder, images | odd_images)


def test_images_in_tar_files_are_embedded_as_those_beside_them(lake: Path, out: Folder, embedder: Embedder) -> None:
    """One tar file has names as `tar -P` writes them and ends within an image; another one joins the lake later."""
    images = {str(path.relative_to(lake)): path.read_bytes() for path in lake.rglob("*.jpg")}
    shards = [{f"{seed}.jpg": _drawing(seed) for seed in seeds} for seeds in ((10, 11), (12, 13), (14, 15, 16))]
    _tar(lake / "a.TAR", shards[0])
    _tar(lake / "sub/b.tar", {f"/data/{name}": data for name, data in shards[1].items()})
    os.truncate(lake / "sub/b.tar", 3 * 512 + len(shards[1]["12.jpg"]))
    left_out = LeftOut()
    assert len(list(Folder.at(str(lake)).images(left_out))) == 14
    assert left_out.unlisted == [f"{lake}/sub/b.tar: not a whole tar file: unexpected end of data"]
    _work(lake, out, embedder)
    parts = {path: path.stat().st_mtime_ns for path in Path(out.path).glob("*.parquet")}
    images |= {f"a.TAR/{name}": data for name, data in shards[0].items()}
    images["sub/b.tar/data/12.jpg"] = shards[1]["12.jpg"]
    _assert_embedded(out, embedder, images)
    assert _errors(out) == {"sub/b.tar/data/13.jpg": "unreadable: the tar file ends within it"}
    _tar(lake / "c.tar", shards[2])
    _work(lake, out, embedder)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts and len(out.tables()) == len(parts) + 1
    _assert_embedded(out, embedder, images | {f"c.tar/{name}": data for name, data in shards[2].items()})


def test_a_tar_file_that_changes_gives_no_image_under_another_ones_name(
    lake: Path, out: Folder, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written anew while it is read, in another order, with an image less and one more."""
    images = {str(path.relative_to(lake)): path.read_bytes() for path in lake.rglob("*.jpg")}
    before, after = ({f"{seed}.jpg": _drawing(seed) for seed in seeds} for seeds in ((10, 11, 12), (13, 11, 10)))
    _tar(lake / "a.tar", before)
    read = Reader.read

    def change_and_read(self: Reader, place: Place, most: int) -> bytes:
        data = read(self, place, most)
        if place.name == "a.tar/10.jpg":
            _tar(lake / "a.tar", after)
        return data

    plan = _plan(lake, out, Origin(embedder.fingerprint, "embed_image", "False"))
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", change_and_read)
        _work(lake, out, embedder, plan=plan)
    changed = "unreadable: the tar file has changed since it was listed"
    assert _errors(out) == {f"a.tar/{name}": changed for name in before}
    _assert_embedded(out, embedder, images)
    _work(lake, out, embedder)  # lists it once more, but what has failed waits for `--retry-failed`
    _assert_embedded(out, embedder, images | {"a.tar/13.jpg": after["13.jpg"]})
    _work(lake, out, embedder, again=True)
    assert _errors(out) == {"a.tar/12.jpg": changed}
    _assert_embedded(out, embedder, images | {f"a.tar/{name}": data for name, data in after.items()})
    later = _plan(lake, out, Origin(embedder.fingerprint, "embed_image", "False"))
    assert later.chunks[:-1] == plan.chunks and later.chunks[-1].images == 1


def test_a_plan_of_an_earlier_version_goes_on(lake: Path, out: Folder, embedder: Embedder) -> None:
    images = {str(path.relative_to(lake)): path.read_bytes() for path in lake.rglob("*.jpg")}
    plan = _plan(lake, out, Origin(embedder.fingerprint, "embed_image", "False"))
    (path,) = Path(out.path, "_plan").iterdir()
    names = pq.read_table(path, columns=["name"])
    pq.write_table(names.cast(pa.schema({"name": pa.binary()}, names.schema.metadata)), path, row_group_size=4)
    _tar(lake / "a.tar", {"10.jpg": _drawing(10)})
    _work(lake, out, embedder)
    _assert_embedded(out, embedder, images | {"a.tar/10.jpg": _drawing(10)})
    assert set(out.tables()) == {*(chunk.part for chunk in plan.chunks), "0001-000000.parquet"}


def test_embeddings_have_norm_1_where_the_settings_say_so(lake: Path, out: Folder, embedder: Embedder) -> None:
    settings = SETTINGS.model_copy(update={"default_normalize": True})
    (lake / "empty.jpg").touch()
    _work(lake, out, embedder, settings=settings)
    rows = _rows(out)
    assert rows.pop("empty.jpg")[1] and len(rows) == 10
    (plain,) = embedder.embed([(lake / "0.jpg").read_bytes()])
    assert isinstance(plain, np.ndarray) and np.linalg.norm(plain) != pytest.approx(1, abs=0.01)
    assert rows["0.jpg"][0] == pytest.approx((plain / np.linalg.norm(plain)).tolist(), abs=1e-5)
    assert [np.linalg.norm(values) for values, _ in rows.values()] == pytest.approx([1] * 10)


def test_a_worker_whose_embeddings_are_others_than_the_jobs_ends_it(lake: Path, out: Folder) -> None:
    with pytest.raises(ServiceFailure, match=f"the job's fingerprint is {ORIGIN.fingerprint}, here it is "):
        Worker(SETTINGS, 1, Site(Folder.at(str(lake)), out, ORIGIN))


def test_a_chunk_that_is_dealt_again_keeps_its_part_unless_that_is_broken(
    lake: Path, out: Folder, embedder: Embedder
) -> None:
    _work(lake, out, embedder)
    parts = sorted(Path(out.path).glob("*.parquet"))
    before = [part.stat().st_mtime_ns for part in parts]
    parts[1].write_bytes(parts[1].read_bytes()[:-5])  # as after a power failure
    assert len(Plan(out, str(lake), Origin(embedder.fingerprint, "embed_image", "False")).failed()) == 2
    _work(lake, out, embedder)
    after = [part.stat().st_mtime_ns for part in parts]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert len(_rows(out)) == 10 and not _errors(out)


def test_parts_that_cannot_be_read_do_not_count_as_embedded(
    lake: Path, out: Folder, embedder: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    _work(lake, out, embedder)
    plan = _plan(lake, out, Origin(embedder.fingerprint, "embed_image", "False"))
    assert _report("OUT", out, plan, Progress(), LeftOut()) == 0
    assert _report("OUT", out, plan, Progress(), LeftOut(["a.tar: not a whole tar file"])) == 1
    Path(out.path, plan.chunks[0].part).unlink()
    assert _report("OUT", out, plan, Progress(), LeftOut()) == 1
    said = capsys.readouterr().err
    assert "OUT: 10 embeddings" in said and "OUT: 6 embeddings" in said and "the parts of 4 images cannot be" in said


@pytest.mark.parametrize("filesystem", [pa.fs.LocalFileSystem(), pa.fs.SubTreeFileSystem("/", pa.fs.LocalFileSystem())])
def test_a_source_that_is_gone_ends_the_worker_and_blames_no_image(
    lake: Path, out: Folder, embedder: Embedder, filesystem: pa.fs.FileSystem
) -> None:
    origin = Origin(embedder.fingerprint, "embed_image", "False")
    chunk, worker = (
        _plan(lake, out, origin).chunks[0],
        Worker(SETTINGS, 1, Site(Folder(filesystem, str(lake)), out, origin)),
    )
    lake.rename(lake.with_name("elsewhere"))
    with pytest.raises(ServiceFailure, match="is out of reach"):
        worker({**chunk._asdict(), "to_do": chunk.images, "again": False})
    assert not out.tables()


class _Store:
    """An object store that cannot move an object, as Azure's without hierarchical namespaces."""

    type_name = "abfs"

    def __init__(self) -> None:
        self._files = pa.fs.LocalFileSystem()

    def __getattr__(self, name: str) -> Any:
        if name == "move":
            raise NotImplementedError
        return getattr(self._files, name)


def test_an_object_store_that_cannot_move_objects_is_enough(tmp_path: Path) -> None:
    store = Folder(_Store(), str(tmp_path))
    table = pa.table({"id": ["a"]})
    store.write_table("0.parquet", table)
    assert store.tables() == ["0.parquet"] and store.open_table("0.parquet").read() == table


def test_a_full_disk_is_told_in_one_line_and_not_kept_full(
    lake: Path, out: Folder, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan = _plan(lake, out, Origin(embedder.fingerprint, "embed_image", "False"))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ServiceFailure, match=r"^OSError: \[Errno 28\] No space left on device$"):
        _work(lake, out, embedder, plan=plan)
    assert sorted(os.listdir(out.path)) == ["_plan", "_strikes"]


def test_a_folder_whose_names_cannot_be_kept_on_purpose_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that know no fsync of a folder."""
    fsync = os.fsync

    def fail_at_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_at_folders)
    out = Folder.at(str(tmp_path))
    out.write_table("0.parquet", pa.table({"id": ["a"]}))
    assert out.tables() == ["0.parquet"]


def test_what_killed_processes_have_left_unfinished_goes_with_the_next_run(lake: Path, out: Folder) -> None:
    _plan(lake, out)
    left = [Path(folder.path, ".0000.parquet.0123.unfinished") for folder in (out, out.below("_plan"))]
    for path in left:
        path.touch()
    assert len(_plan(lake, out).chunks) == 3
    assert not any(path.exists() for path in left)


def test_two_workers_may_be_done_with_the_same_chunk(lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, strikes, names = _plan(lake, out).chunks[0], Strikes(out), Folder.names

    def list_and_lose(self: Folder, start: str = "") -> list[str]:
        listed = names(self, start)
        self.clear() if start.endswith(".parquet.") else None
        return listed

    strikes.begin(chunk)
    monkeypatch.setattr(Folder, "names", list_and_lose)
    strikes.end(chunk)


def test_what_failed_is_embedded_again_on_demand_only(lake: Path, out: Folder, embedder: Embedder) -> None:
    sound = {name: (lake / name).read_bytes() for name in ("0.jpg", "2.jpg")}
    for name, data in sound.items():
        (lake / name).write_bytes(data[:300])
    _work(lake, out, embedder)
    before = _rows(out)
    assert _errors(out).keys() == sound.keys() and np.isnan(before["2.jpg"][0]).all()
    part = Path(out.path, "0000-000000.parquet")
    pq.write_table(pq.read_table(part).take([3, 2, 1, 0]), part)  # as earlier versions left some
    (lake / "4.jpg").unlink()  # what is embedded is not read again
    for name, data in sound.items():
        still = _errors(out).keys()
        (lake / name).write_bytes(data)
        assert [answer["images"] for answer in _work(lake, out, embedder)] == [0, 0, 0]
        assert _errors(out).keys() == still
        # Both are in the first chunk, of which nothing else is embedded and counted.
        answers = _work(lake, out, embedder, again=True)
        assert [answer["images"] for answer in answers] == [len(still), 0, 0]
        assert answers[0]["failed"] == len(still) - 1
        assert _errors(out).keys() == still - {name}
    after = _rows(out)
    assert after.keys() == before.keys() and after["4.jpg"] == before["4.jpg"]


def test_of_two_images_with_one_id_the_one_that_failed_is_embedded_again(
    tmp_path: Path, out: Folder, embedder: Embedder
) -> None:
    failed, sound = tmp_path / "lake" / "a\nb.jpg", tmp_path / "lake" / r"a\nb.jpg"
    failed.parent.mkdir()
    failed.touch()
    sound.write_bytes(_drawing(1))
    _work(failed.parent, out, embedder)
    for _ in range(2):  # it stays where it is in the part
        _work(failed.parent, out, embedder, again=True)
        assert [bool(error) for error in pq.read_table(out.path)["error"].to_pylist()] == [True, False]
    failed.write_bytes(_drawing(0))
    _work(failed.parent, out, embedder, again=True)
    rows = pq.read_table(out.path)
    assert rows["id"].to_pylist() == [sound.name] * 2
    for embedding, outcome in zip(rows["embedding"], embedder.embed([_drawing(0), _drawing(1)]), strict=True):
        assert isinstance(outcome, np.ndarray) and embedding.as_py() == pytest.approx(outcome.tolist(), abs=1e-4)


@pytest.mark.usefixtures("one_worker")
def test_what_is_gone_before_it_is_embedded_is_no_failure(
    lake: Path, out: Folder, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ask", lambda *_: Facts(embedder.fingerprint, 1))
    monkeypatch.setattr(cluster, "work", lambda *_: _work(lake, out, embedder))
    _plan(lake, out, Origin(embedder.fingerprint, "embed_image", "False"))
    (lake / "2.jpg").unlink()
    assert main([str(lake), "--out", out.path]) == 0
    assert _errors(out) == {"2.jpg": "unreadable: No such file or directory"}


@pytest.mark.usefixtures("one_worker")
def test_what_failed_and_is_not_there_any_more_is_no_failure(
    lake: Path, out: Folder, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "ask", lambda *_: Facts(embedder.fingerprint, 1))
    for name in ("0.jpg", "2.jpg"):
        (lake / name).write_text("no image")
    _work(lake, out, embedder)

    def run() -> tuple[int, str]:
        return main([str(lake), "--out", out.path]), capsys.readouterr().err

    (lake / "2.jpg").unlink()
    code, said = run()
    assert code == 1 and "1 failed in earlier runs, and are not in this source\n1 failed, and are tried" in said
    (lake / "0.jpg").unlink()
    code, said = run()
    assert code == 0 and "2 failed in earlier runs" in said and "are tried" not in said and "8 embeddings" in said


def test_an_image_that_kills_its_workers_gets_a_row_in_the_end(lake: Path, out: Folder, embedder: Embedder) -> None:
    """Three workers have died of its chunk, and two more when they embedded the images one by one.

    Of another image one has died, which may have been for any reason; and one died after it had embedded it.
    """
    origin = Origin(embedder.fingerprint, "embed_image", "False")
    first, second, _ = _plan(lake, out, origin).chunks
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
    _work(lake, out, embedder)
    assert len(_rows(out)) == 10 and _errors(out).keys() == {"2.jpg"}
    assert _errors(out)["2.jpg"] == "worker_died: 2 times, the process ended at this image"
    assert os.listdir(out.below("_strikes").path) == []
    _work(lake, out, embedder, again=True)
    assert not _errors(out)


@pytest.mark.usefixtures("one_worker")
def test_whatever_ended_an_earlier_run_no_image_is_suspected_of_it(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "work", lambda *_: ())
    chunk, strikes = _plan(lake, out).chunks[0], Strikes(out)
    assert [strikes.begin(chunk) for _ in range(3)] == [0, 1, 2]
    assert main([str(lake), "--out", out.path]) == 1
    assert strikes.begin(chunk) == 0


def test_of_all_suspects_one_image_at_a_time_is_in_the_works(
    lake: Path, out: Folder, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the death of a worker that embeds two of them would be told of both."""
    origin = Origin(embedder.fingerprint, "embed_image", "False")
    chunks, embed, in_the_works, seen = _plan(lake, out, origin).chunks, Embedder.embed, list[bytes](), list[int]()

    def note(self: Embedder, images: Sequence[bytes]) -> Any:
        in_the_works.extend(images)
        seen.append(len(in_the_works))
        outcomes = embed(self, images)
        del in_the_works[: len(images)]
        return outcomes

    monkeypatch.setattr(Embedder, "embed", note)
    for chunk in chunks:
        assert [Strikes(out).begin(chunk) for _ in range(3)] == [0, 1, 2]
    worker = Worker(SETTINGS, 1, Site(Folder.at(str(lake)), out, origin))
    with ThreadPoolExecutor(len(chunks)) as threads:
        list(threads.map(worker, [{**chunk._asdict(), "to_do": chunk.images, "again": False} for chunk in chunks]))
    assert seen == [1] * 10 and len(_rows(out)) == 10


class _Broken(Exception):
    """In place of the end of this process."""


def _fail_at(monkeypatch: pytest.MonkeyPatch, fails: Sequence[bool]) -> None:
    """Let the encoder's next calls fail or not; all that follow do not."""
    encode, left = Encoder.encode, list(fails)

    def fail_or_encode(self: Encoder, pixels: Any) -> Any:
        if left and left.pop(0):
            raise RuntimeError("a device that does not answer")
        return encode(self, pixels)

    def end(code: int) -> None:
        raise _Broken(code)

    monkeypatch.setattr(Encoder, "encode", fail_or_encode)
    monkeypatch.setattr(os, "_exit", end)


def test_what_the_encoder_fails_at_is_tried_again_image_by_image(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = sample("jpeg_photo").data
    _fail_at(monkeypatch, [True, False, False, True])  # the batch; the known image; the first, the second image
    first, second, third = embedder.embed([drawing, drawing, drawing])
    assert isinstance(first, np.ndarray) and isinstance(third, np.ndarray)
    assert str(second).startswith("internal_error: ")


def test_a_worker_whose_batch_does_not_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    run, codes, over = Encoder._run_batch, list[int](), threading.Event()

    def hang(self: Encoder, images: Any) -> Any:
        if not over.wait(10):
            pytest.fail("nobody has ended it")  # no Exception, which would be taken for the device's
        return run(self, images)

    def end(code: int) -> None:
        codes.append(code)
        over.set()

    monkeypatch.setattr("service.health.hangs._STAGE_SECONDS", 0.3)
    monkeypatch.setattr("service.health.hangs._STAGE_TIMES", 0.0)
    monkeypatch.setattr("service.bulk.embedder._LOOK_SECONDS", 0.1)
    embedder = Embedder(SETTINGS.model_copy(update={"lanes": 3}), Cores(1))
    assert embedder.lanes == 3, "and not the two that one core has"
    monkeypatch.setattr(Encoder, "_run_batch", hang)
    monkeypatch.setattr(os, "_exit", end)
    embedder.embed([_drawing(1)])
    assert codes == [1]


def test_time_in_which_a_worker_was_frozen_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, ends, here = iter([0.0, 1.0, *np.arange(1000.0, 1100.0)]), list[str](), threading.current_thread()

    def monotonic() -> float:
        """Embedders of other tests are still watched, each by a thread."""
        return next(seconds) if threading.current_thread() is here else time.monotonic()

    monkeypatch.setattr("service.health.hangs.time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr("service.bulk.embedder._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("service.bulk.embedder._end", ends.append)
    metrics = Metrics()
    stages = StageWatch(metrics, 0, 0.0)
    monkeypatch.setattr(metrics, "longest_stage", lambda: stages._looked_at)  # since it was made
    _watch(stages)
    assert ends and next(seconds) == 1022.0


def test_a_worker_whose_device_is_broken_ends(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_at(monkeypatch, [True, True])
    with pytest.raises(_Broken):
        embedder.embed([sample("jpeg_photo").data])
