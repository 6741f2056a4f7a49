"""Triton's stub gets this interpreter's own libpython, under the name it asks for, or the start ends in clear words."""

import ctypes
import sys
from pathlib import Path

import pytest
from pytriton.utils.distribution import get_stub_path

from service.errors import StartupFault
from service.pytriton_compat import libpython
from service.pytriton_compat.libpython import find_libpython, link_libpython

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
NAME = f"libpython{MINOR}.so.1.0"
VERSION = sys.version.split()[0]
SYSTEM_LIBRARIES = [path for path in Path("/usr/lib").glob("*-linux-gnu/libpython3*.so.1.0") if path.is_file()]


def _map(monkeypatch: pytest.MonkeyPatch, *paths: str) -> None:
    """Let this process have mapped these paths."""
    read_text = Path.read_text
    lines = [f"7f00-7f01 r-xp 00000000 fe:00 26933      {path}" for path in paths]
    maps = "\n".join([*lines, "7f02-7f03 rw-p 00000000 00:00 0"])
    monkeypatch.setattr(
        Path, "read_text", lambda path, *args: maps if str(path) == "/proc/self/maps" else read_text(path, *args)
    )


@pytest.fixture
def unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is linked statically: it has mapped nothing but itself and odd neighbours."""
    _map(monkeypatch, "/usr/bin/python3", f"/opt/{NAME} (deleted)", "/opt/libpython2.7.so.1.0", "[heap]")


def _candidates(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    monkeypatch.setattr(libpython, "_candidates", lambda: iter(paths))


def _reported_version(library: Path) -> str:
    get_version = ctypes.CDLL(str(library)).Py_GetVersion
    get_version.restype = ctypes.c_char_p
    version: bytes = get_version()
    return version.decode()


def test_the_library_is_this_interpreters() -> None:
    library = find_libpython()
    assert library.is_absolute() and library.name.startswith(f"libpython{MINOR}.so")
    # In this process: loading it again gives the one that runs.
    assert _reported_version(library) == sys.version


def test_the_library_that_runs_wins_over_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    _map(monkeypatch, "/usr/bin/python3", f"/an odd place/{NAME}", f"/later/{NAME}")
    assert find_libpython() == Path(f"/an odd place/{NAME}")


@pytest.mark.usefixtures("unmapped")
def test_a_statically_linked_interpreter_finds_it_by_its_version() -> None:
    library = find_libpython()
    assert library.name == NAME and library in libpython._candidates()
    assert libpython._version_of(library) == VERSION


@pytest.mark.usefixtures("unmapped")
def test_another_patch_release_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [tmp_path / folder / NAME for folder in ("absent", "broken", "older", "own")]
    for path in paths[1:]:
        path.parent.mkdir()
        path.touch()
    versions = {paths[1]: "", paths[2]: f"{MINOR}.999", paths[3]: VERSION}
    monkeypatch.setattr(libpython, "_version_of", versions.__getitem__)
    _candidates(monkeypatch, *paths)
    assert find_libpython() == paths[3]
    _candidates(monkeypatch, *paths[:3])
    with pytest.raises(StartupFault) as caught:
        find_libpython()
    line = str(caught.value)
    assert all(words in line for words in (VERSION, sys.executable, f"Debian and Ubuntu: libpython{MINOR}"))
    assert line.isprintable()


@pytest.mark.parametrize("library", SYSTEM_LIBRARIES, ids=str)
def test_the_version_is_the_librarys_own(library: Path) -> None:
    reported = libpython._version_of(library)
    assert library.name.startswith(f"libpython{reported.rpartition('.')[0]}.so")


def test_what_is_no_library_has_no_version(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\x7fELF, but not really")
    assert libpython._version_of(tmp_path / NAME) == ""


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\0libc.so.6\0libpython3.10.so.1.0\0libz.so.1", ["libpython3.10.so.1.0"]),
        (b"\0libpython3-419a3a08.13.so.1.0\0", ["libpython3-419a3a08.13.so.1.0"]),
        (b"\0libpython3.12.so.1.0\0x\0libpython3.so\0", ["libpython3.12.so.1.0", "libpython3.so"]),
    ],
    ids=["plain", "renamed", "two"],
)
def test_a_link_stands_under_each_name_asked_for(tmp_path: Path, content: bytes, names: list[str]) -> None:
    (tmp_path / "stub").write_bytes(content)
    link_libpython(tmp_path / "stub", tmp_path / "links")
    links = list((tmp_path / "links").iterdir())
    assert sorted(link.name for link in links) == names
    assert {link.resolve() for link in links} == {find_libpython().resolve()}


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ("3.10", "libpython3.10.so.1.0"),
        ("3.11", "libpython3.11.so.1.0"),
        ("3.12", "libpython3.12.so.1.0"),
        # Renamed by the tool that built the wheel; the name from before stands in the file, too.
        ("3.13", "libpython3-419a3a08.13.so.1.0"),
    ],
)
def test_the_name_that_each_real_stub_needs_is_found(version: str, needed: str) -> None:
    names = libpython._names_asked_for(Path(get_stub_path(version)))
    assert {needed} <= names <= {needed, f"libpython{version}.so.1.0"}
