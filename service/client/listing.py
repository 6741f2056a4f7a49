"""What below a folder and in tar files counts as an image: where its bytes are, its id, and what is left out.

Comes in: folders and opened tar files. Goes out: places of images, without a look at their bytes. It must not know who
reads them: the client and the bulk job list the same here.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarInfo
from typing import BinaryIO, NamedTuple

from service.client.tars import members_of

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
SUFFIXES = (*_JPEG, ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif")
TAR = ".tar"
# How many suffixes of files that are left out a report names, the most frequent first.
_KINDS = 5
# All that some reader or other takes for the end of a line.
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Where a link leads that is broken, runs in a circle, or ends in a folder where nobody may look.
_NOTHING = 0

# What differs when a file has been written anew: its size in bytes, and its time in nanoseconds.
Stamp = tuple[int, int]
# Some file systems know times beyond the year 2262, which Arrow's integers do not hold.
_INT64 = 2**63 - 1
CHANGED = "the tar file has changed since it was listed"
ENDS_WITHIN = "the tar file ends within it"


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
        left_out.unlisted.append(f"{id_of(path)}: {reason_of(error)}")


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


def stamp_of(status: os.stat_result) -> Stamp:
    """A file's, in numbers of 63 bits."""
    return status.st_size, status.st_mtime_ns & _INT64


def has_entries(folder: str) -> bool:
    """Whether a folder is there and not empty, which is what a place looks like where nothing is mounted any more."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except (OSError, ValueError):  # a ValueError: a name with a zero byte
        return False


def reason_of(error: Exception) -> str:
    """What an exception says in one line, without the number and the name that an OSError puts around it."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def id_of(name: str) -> str:
    """A file's name as one line of UTF-8 text, which names on Linux need not be."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    line = _LINE_ENDS.sub(lambda end: end[0].encode("unicode_escape").decode(), text)
    return name if line == name else line  # of millions, one text each in memory and not two
