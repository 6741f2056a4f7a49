"""Finds the libpython of this very interpreter for Triton's Python stub.

The stub loads `libpython3.X` by name through the dynamic linker. The system's own copy may be another patch release,
which fails in ways that show only as a start that times out; a virtual environment or pyenv has none on the linker's
path at all.
"""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from service.errors import StartupFault

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def link_libpython(stub: Path, folder: Path) -> None:
    """Fill `folder` with links to this interpreter's libpython, under every name that the `stub` binary asks for.

    Raises:
        StartupFault: this interpreter has no shared library.
    """
    library = find_libpython()
    folder.mkdir()
    for name in _names_asked_for(stub):
        (folder / name).symlink_to(library)


def find_libpython() -> Path:
    """The shared library of this interpreter, in this exact version.

    Raises:
        StartupFault: none is to be found.
    """
    for path in _mapped_libraries():
        return path
    for path in _candidates():
        if path.is_file() and _version_of(path) == sys.version.split()[0]:
            return path
    raise StartupFault(
        f"no shared libpython{_VERSION} of Python {sys.version.split()[0]} was found; install the one that belongs to"
        f" {sys.executable} (Debian and Ubuntu: libpython{_VERSION}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _names_asked_for(stub: Path) -> set[str]:
    return {match.decode() for match in re.findall(rb"libpython3[\w.\-]*\.so[\d.]*", stub.read_bytes())}


def _mapped_libraries() -> Iterator[Path]:
    """The library that this process itself runs on, unless its interpreter is linked statically."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if re.fullmatch(rf"libpython{re.escape(_VERSION)}\.so[\d.]*", path.name):
            yield path


def _candidates() -> Iterator[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    # LIBDIR is where the interpreter was built for, which a moved or relocatable build has left.
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", "/usr/lib", "/usr/local/lib"):
        if folder:
            yield Path(folder) / f"libpython{_VERSION}.so.1.0"
            yield Path(folder) / multiarch / f"libpython{_VERSION}.so.1.0"


def _version_of(library: Path) -> str:
    """The version that the library itself reports, asked in a process of its own: loading a wrong one may crash."""
    code = (
        "import ctypes, sys; version = ctypes.CDLL(sys.argv[1]).Py_GetVersion;"
        " version.restype = ctypes.c_char_p; print(version().decode())"
    )
    report = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=False)
    return report.stdout.split()[0] if report.returncode == 0 and report.stdout else ""
