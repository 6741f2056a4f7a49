"""What to embed: a folder, a pattern or a list of names -> encoded images, each with its id.

Comes in: the source, and the ids that need no embedding. Goes out: bytes of files and of what is in tar files, read by
as many threads as ask. It must not know what becomes of them.

One thread lists ahead, so that it is soon known how many images there are. Names, and nothing else of the images that
are still to come, are held in memory.
"""

import contextlib
import errno
import glob
import os
import re
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tarfile import TarInfo
from typing import BinaryIO, NamedTuple

from service.client.tars import members_of

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
SUFFIXES = (*_JPEG, ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif")
TAR = ".tar"
# How many suffixes of files that are left out a report names, the most frequent first.
_KINDS = 5
# What a file's own name, kind or rights lead to, and not the disk or the network that it is on.
_OF_A_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
# All that some reader or other takes for the end of a line.
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Where a link leads that is broken, runs in a circle, or ends in a folder where nobody may look.
_NOTHING = 0

# What differs when a tar file has been written anew: its size in bytes, and its time in nanoseconds.
Stamp = tuple[int, int]
CHANGED = "the tar file has changed since it was listed"
ENDS_WITHIN = "the tar file ends within it"


class NothingToDo(Exception):
    """The source holds no image."""


class NotListed(Exception):
    """The source cannot be listed to its end, or not be read any more. `str(error)` is its name, and why."""


class Place(NamedTuple):
    """Where an image's bytes are: the whole of a file that is called like it, or a part of a tar file.

    Attributes:
        stamp: what tells whether the tar file is still the one that was listed.
    """

    name: str
    file: str
    offset: int = 0
    size: int | None = None
    stamp: Stamp | None = None


class Image(NamedTuple):
    """An image's bytes, or in one line why there are none."""

    id: str
    data: bytes
    error: str | None = None


@dataclass
class LeftOut:
    """What is below a folder and not listed as an image.

    Attributes:
        unlisted: folders and tar files that could not be listed to their end, images that tar files hold in a form that
            is not read, files with the id of another one, and why.
        repeated: how many names a tar file has that it had before.
        links: how many links to folders there are, and links in tar files.
        no_files: how many pipes, sockets and devices, and links to such.
        others: files that have no image's name, by what their names end in.
    """

    unlisted: list[str] = field(default_factory=list)
    repeated: int = 0
    links: int = 0
    no_files: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def add(self, other: "LeftOut") -> None:
        """What another one tells, too."""
        self.unlisted += other.unlisted
        self.repeated += other.repeated
        self.links += other.links
        self.no_files += other.no_files
        self.others += other.others

    def count(self, name: str) -> None:
        """A file of another name."""
        self.others[id_of(os.path.splitext(name)[1].lower()) or "none"] += 1

    def lines(self) -> Iterator[str]:
        """What a report tells of it."""
        for line in self.unlisted:
            yield f"not listed: {line}"
        if self.repeated:
            yield f"names that a tar file has more than once, of which the first counts: {self.repeated:,}"
        if self.links:
            yield f"links to folders or in tar files, which are not followed: {self.links:,}"
        if self.no_files:
            yield f"pipes, sockets and devices, which are not read: {self.no_files:,}"
        if self.others:
            kinds = [f"{suffix} {count:,}" for suffix, count in self.others.most_common(_KINDS)]
            more = ["..."] if len(self.others) > _KINDS else []
            yield f"{self.others.total():,} files left out by their names: {', '.join(kinds + more)}"

    def instead_of_images(self, source: str) -> str:
        """Why there are none in `source`."""
        return "; ".join(self.unlisted or [f"there are no images in {source}", *self.lines()])


class Images:
    """The images of a source, each once.

    Attributes:
        total: how many there are to embed; None until all are listed.
        done: how many are left out so far, as ids that are known.
        failure: why the source cannot be listed to its end, or not be read any more, if so.
        left_out: what else the source holds.
    """

    def __init__(self, source: str, known: set[str], max_bytes: int) -> None:
        """List `source`: a folder and all below it, a pattern or a file, or `-` for names on stdin, one a line.

        Ids in `known` are left out; the set loses those that are listed.
        """
        self.total: int | None = None
        self.done = 0
        self.failure: NotListed | None = None
        self.left_out = LeftOut()
        self._folder = folder_of(source)
        self._source = source
        self._known = known
        self._seen = set[str]()
        self._max_bytes = max_bytes
        self._read_well = ""
        self._places: SimpleQueue[Place | None] = SimpleQueue()
        self._closed = False
        # A thread that waits for stdin cannot be ended, so nobody is to wait for its end.
        threading.Thread(target=self._list, daemon=True, name="list").start()

    def read_next(self) -> Image | None:
        """The next image, which waits for its name and its file; None when there are no more, or after `close`."""
        place = self._places.get()
        if place is None or self._closed:
            self._places.put(None)  # for the others that wait
            return None
        image_id, path = id_of(place.name), os.path.join(self._folder, place.file)
        try:
            data = _read(path, place, self._max_bytes + 1)
        except (OSError, ValueError) as error:  # a ValueError: a name with a zero byte
            if isinstance(error, OSError) and self._is_gone(path):
                self.failure = NotListed(f"{path}: {_reason(error)}; the others cannot be read either")
                self.close()
                return None
            return Image(image_id, b"", f"unreadable: {_reason(error)}")
        self._read_well = path
        if len(data) > self._max_bytes:
            return Image(image_id, b"", f"too_many_bytes: over {self._max_bytes} bytes (--max-image-bytes)")
        return Image(image_id, data)

    def has(self, image_id: str) -> bool:
        """Whether the source has named it, so far."""
        return image_id in self._seen

    def close(self) -> None:
        """No more images, also for those that wait for one."""
        self._closed = True
        self._places.put(None)

    def _is_gone(self, path: str) -> bool:
        """Whether a file cannot be read as none can any more, as where a mount is gone or no more can be opened."""
        try:
            with os.scandir(_parent(path)) as entries:
                next(entries, None)
        except OSError as error:
            if error.errno not in _OF_A_FILE:
                return True
        if self._folder:
            return not has_entries(self._folder)
        # What a list or a pattern names has no such folder in common, and one file's may have been removed alone.
        return bool(self._read_well) and not any(has_entries(_parent(each)) for each in (path, self._read_well))

    def _list(self) -> None:
        total = 0
        try:
            for place in self._listed():
                if self._closed:
                    return
                if (image_id := id_of(place.name)) in self._known:
                    self._known.remove(image_id)  # one name an image in memory is enough
                    self.done += 1
                else:
                    self._places.put(place)
                    total += 1
            self.total = total
        except Exception as error:
            self.failure = NotListed(f"{self._source}: {_reason(error)}")
        finally:
            self._places.put(None)

    def _listed(self) -> Iterator[Place]:
        """Each image and each tar file once."""
        escaped = dict[str, str]()
        for name in self._names():
            image_id = id_of(name)
            if image_id in self._seen:
                if escaped.get(image_id, image_id) != name:
                    path = os.path.join(self._folder, image_id)
                    self.left_out.unlisted.append(f"{path}: another name has the same id")
                continue
            self._seen.add(image_id)
            if image_id != name:
                escaped[image_id] = name
            if name.lower().endswith(TAR):
                path = os.path.join(self._folder, name)
                yield from places_in(name, path, _opened(path), self.left_out, self._seen)
            else:
                yield Place(name, name)

    def _names(self) -> Iterator[str]:
        if self._source == "-":
            if sys.stdin is None:
                raise OSError(errno.EBADF, "stdin is closed")
            # Not sys.stdin itself, which Python locks at its end while this thread may still read.
            with open(sys.stdin.fileno(), errors="surrogateescape", newline="\n", closefd=False) as lines:
                yield from filter(None, (line.rstrip("\r\n") for line in lines))
        elif self._folder:
            yield from walk(self._folder, (*SUFFIXES, TAR), self.left_out)
        elif os.path.lexists(self._source) or not glob.has_magic(self._source):
            os.lstat(self._source)  # raises where nothing is, which a pattern just does not match
            yield self._source
        else:
            yield from (name for name in glob.iglob(self._source, recursive=True) if not os.path.isdir(name))


def places_in(
    name: str, path: str, opened: AbstractContextManager[tuple[BinaryIO, Stamp]], left_out: LeftOut, seen: set[str]
) -> Iterator[Place]:
    """The images in a tar file called `name`, but for ids that are `seen`, which gets theirs.

    Where it cannot be read any further, `left_out` is told so by its `path`. It is `opened` and closed here.
    """
    try:
        with opened as (file, stamp):
            for member in members_of(file):
                # Some are absolute (`tar -P`), and then of the same name in each of several tar files.
                below = member.name.removeprefix("./").lstrip("/")
                if not _is_readable(member, f"{path}/{below}", left_out):
                    continue
                place = Place(f"{name}/{below}", name, member.offset_data, member.size, stamp)
                if (image_id := id_of(place.name)) in seen:
                    left_out.repeated += 1
                else:
                    seen.add(image_id)
                    yield place
    except (OSError, ValueError) as error:
        left_out.unlisted.append(f"{id_of(path)}: {_reason(error)}")


def _is_readable(member: TarInfo, path: str, left_out: LeftOut) -> bool:
    """Whether a tar file's member is an image whose bytes lie in one piece."""
    if member.islnk() or member.issym():
        left_out.links += 1
    elif not member.isreg():
        left_out.no_files += not member.isdir()
    elif not path.lower().endswith(SUFFIXES):
        left_out.count(path)
    elif member.issparse():
        left_out.unlisted.append(f"{id_of(path)}: stored with holes (tar -S), which is not read")
    else:
        return True
    return False


def walk(folder: str, suffixes: tuple[str, ...], left_out: LeftOut) -> Iterator[str]:
    """Names of the files below a folder that end so, relative to it.

    Links to files are followed, links to folders are not. A link that leads nowhere counts as a file, to be told of. A
    pipe, which could be waited for for ever, does not.
    """
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                for entry in entries:
                    name = os.path.join(below, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif (kind := _kind(entry)) == stat.S_IFDIR:
                        left_out.links += 1
                    elif kind not in (stat.S_IFREG, _NOTHING):
                        left_out.no_files += 1
                    elif entry.name.lower().endswith(suffixes):
                        yield name
                    else:
                        left_out.count(entry.name)
        except OSError as error:
            left_out.unlisted.append(f"{Path(folder, below)}: {error.strerror}")


def _kind(entry: os.DirEntry[str]) -> int:
    """What an entry is, or what its link leads to: a kind of `stat`, or `_NOTHING`."""
    try:
        # Mostly, that is known without asking for each of many files.
        return stat.S_IFREG if entry.is_file(follow_symlinks=False) else stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return _NOTHING


def has_entries(folder: str) -> bool:
    """Whether a folder is there and not empty, which is what a place looks like where nothing is mounted any more."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def folder_of(source: str) -> str:
    """The folder that a source's ids are relative to; empty where they are names as they are given."""
    return source if source != "-" and os.path.isdir(source) else ""


def _reason(error: Exception) -> str:
    """What an exception says in one line, without the number and the name that an OSError puts around it."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _parent(path: str) -> str:
    return os.path.dirname(path) or os.curdir


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, Stamp]]:
    """A file to read. Whoever opens a pipe would wait for somebody to write to it."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield file, _stamp(file)


def _stamp(file: BinaryIO) -> Stamp:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _read(path: str, place: Place, most: int) -> bytes:
    """So many bytes of an image at most."""
    size = most if place.size is None else min(place.size, most)
    with _opened(path) as (file, (file_size, _)):
        file.seek(place.offset)
        data = file.read(min(size, file_size + 1))  # as Python makes room for all that is asked for
        # Asked when all is read: it may be written anew meanwhile, with another image in this one's place.
        if place.stamp not in (None, _stamp(file)):
            raise OSError(errno.EINVAL, CHANGED)
    if place.size is not None and len(data) < size:
        raise OSError(errno.EINVAL, ENDS_WITHIN)
    return data


def id_of(name: str) -> str:
    """A file's name as one line of UTF-8 text, which names on Linux need not be."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    line = _LINE_ENDS.sub(lambda end: end[0].encode("unicode_escape").decode(), text)
    return name if line == name else line  # of millions, one text each in memory and not two
