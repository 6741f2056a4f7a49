"""The bytes of a folder's images, also of those in tar files, for many threads at a time.

Comes in: places. Goes out: bytes. It must not know what they are for.
"""

import os
import stat
import threading
from functools import lru_cache

import pyarrow as pa

from service.bulk.folder import Folder
from service.client.listing import ENDS_WITHIN, Place

# Tar files that stay open to be read. A batch's images are mostly in one or two.
_OPEN = 16


class Reader:
    """Reads a folder's images for many threads. The latest tar files stay open: opening asks a store."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._opened = lru_cache(_OPEN)(self._open)  # closed by Arrow when its last reader is done
        self._lock = threading.Lock()

    def read(self, place: Place, most: int) -> bytes:
        """An image's first bytes, at most so many.

        Raises:
            OSError, ValueError: it cannot be read, or has a name that Arrow does not take.
        """
        if place.size is None:
            with self._folder.filesystem.open_input_stream(self._path(place.file)) as stream:
                whole: bytes = stream.read(most)
                return whole
        with self._lock:  # or a tar file is opened by all that begin with it
            tar = self._opened(place.file)
        part: bytes = tar.read_at(min(place.size, most), place.offset)  # as many threads as like to
        if len(part) < min(place.size, most):
            raise OSError(ENDS_WITHIN)
        return part

    def _open(self, name: str) -> pa.NativeFile:
        return self._folder.filesystem.open_input_file(self._path(name))

    def _path(self, name: str) -> str | bytes:
        path = self._folder.path_of(name)
        # Whoever opened a pipe that has taken an image's place would wait for somebody to write to it.
        if self._folder.is_local and not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is no regular file")
        return path
