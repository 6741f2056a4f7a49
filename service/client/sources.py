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
import stat
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import BinaryIO, NamedTuple

from service.client.listing import (
    CHANGED,
    ENDS_WITHIN,
    SUFFIXES,
    TAR,
    LeftOut,
    Place,
    Stamp,
    has_entries,
    id_of,
    places_in,
    reason_of,
    stamp_of,
    walk,
)

# What a file's own name, kind or rights lead to, and not the disk or the network that it is on.
_OF_A_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}


class NothingToDo(Exception):
    """The source holds no image."""


class NotListed(Exception):
    """The source cannot be listed to its end, or not be read any more. `str(error)` is its name, and why."""


class Image(NamedTuple):
    """An image's bytes, or in one line why there are none, and the time of its file, as far as that is known."""

    id: str
    data: bytes
    error: str | None = None
    file_time: int | None = None


class Images:
    """The images of a source, each once.

    Attributes:
        total: how many there are to embed; None until all are listed.
        done: how many are left out so far, as ids that are known.
        failure: why the source cannot be listed to its end, or not be read any more, if so.
        left_out: what else the source holds.
        is_there: whether an image was found, now or in an earlier run, or at least what should be the folder of one.
    """

    def __init__(self, source: str, known: dict[str, int | None], max_bytes: int, changed: bool = False) -> None:
        """List `source`: a folder and all below it, a pattern or a file, or `-` for names on stdin, one a line.

        Ids in `known` are left out, with `changed` only where their files are of the same times as there; it loses
        those that are listed.
        """
        self.total: int | None = None
        self.done = 0
        self.failure: NotListed | None = None
        self.left_out = LeftOut()
        self.is_there = False
        self._folder = folder_of(source)
        self._source = source
        self._known = known
        self._changed = changed
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
            data, time = _read(path, place, self._max_bytes + 1)
        except (OSError, ValueError) as error:  # a ValueError: a name with a zero byte
            if isinstance(error, OSError) and self._is_gone(path):
                self.failure = NotListed(f"{path}: {reason_of(error)}; the others cannot be read either")
                self.close()
                return None
            self.is_there = self.is_there or has_entries(_parent(path))
            return Image(image_id, b"", f"unreadable: {reason_of(error)}")
        self._read_well, self.is_there = path, True
        if len(data) > self._max_bytes:
            return Image(image_id, b"", f"too_many_bytes: over {self._max_bytes} bytes (--max-image-bytes)", time)
        return Image(image_id, data, None, time)

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
                image_id = id_of(place.name)
                # Not there any more: one name an image in memory is enough.
                if image_id in self._known and not self._has_changed(place, self._known.pop(image_id)):
                    self.done, self.is_there = self.done + 1, True
                else:
                    self._places.put(place)
                    total += 1
            self.total = total
        except Exception as error:
            self.failure = NotListed(f"{self._source}: {reason_of(error)}")
        finally:
            self._places.put(None)

    def _has_changed(self, place: Place, time: int | None) -> bool:
        """Whether a known image is wanted anew, as its file is of another time; what is gone stays as it is."""
        with contextlib.suppress(OSError, ValueError):
            if self._changed:
                stamp = place.stamp or stamp_of(os.stat(os.path.join(self._folder, place.file)))
                return stamp[1] != time
        return False

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
                # Without the mark that editors of Windows put before the first one.
                yield from filter(None, (line.rstrip("\r\n").removeprefix("\ufeff") for line in lines))
        elif self._folder:
            yield from walk(self._folder, (*SUFFIXES, TAR), self.left_out)
        elif os.path.lexists(self._source) or not glob.has_magic(self._source):
            os.lstat(self._source)  # raises where nothing is, which a pattern just does not match
            yield self._source
        else:
            yield from (name for name in glob.iglob(self._source, recursive=True) if not os.path.isdir(name))


def folder_of(source: str) -> str:
    """The folder that a source's ids are relative to; empty where they are names as they are given."""
    return source if source != "-" and os.path.isdir(source) else ""


def _parent(path: str) -> str:
    return os.path.dirname(path) or os.curdir


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, Stamp]]:
    """A file to read. Whoever opens a pipe would wait for somebody to write to it."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG((status := os.fstat(file.fileno())).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield file, stamp_of(status)


def _read(path: str, place: Place, most: int) -> tuple[bytes, int]:
    """So many bytes of an image at most, and the time of its file."""
    size = most if place.size is None else min(place.size, most)
    with _opened(path) as (file, (file_size, file_time)):
        file.seek(place.offset)
        data = file.read(min(size, file_size + 1))  # as Python makes room for all that is asked for
        # Asked when all is read: it may be written anew meanwhile, with another image in this one's place.
        if place.stamp not in (None, stamp_of(os.fstat(file.fileno()))):
            raise OSError(errno.EINVAL, CHANGED)
    if place.size is not None and len(data) < size:
        raise OSError(errno.EINVAL, ENDS_WITHIN)
    return data, file_time
