"""The bytes of a folder's images, also of those in tar files, for many threads at a time.

Comes in: places. Goes out: bytes. It must not know what they are for.
"""

import threading

import pyarrow as pa

from service.bulk.folder import Folder
from service.client.listing import ENDS_WITHIN, Place

# Tar files that stay open to be read. A batch's images are mostly in one or two.
_OPEN = 16


class Reader:
    """Reads a folder's images for many threads. The latest tar files stay open: opening asks a store."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._tars: dict[str, _Tar] = {}
        self._lock = threading.Lock()

    def read(self, place: Place, most: int) -> bytes:
        """An image's first bytes, at most so many.

        Raises:
            OSError, ValueError: it cannot be read, or has a name that Arrow does not take.
        """
        if place.size is not None:
            return self._tar(place.file).read(place.offset, min(place.size, most))
        with self._folder.filesystem.open_input_stream(self._folder.path_of(place.file)) as stream:
            data: bytes = stream.read(most)
            return data

    def _tar(self, name: str) -> "_Tar":
        with self._lock:
            tar = self._tars.setdefault(name, _Tar(self._folder, name))
            if len(self._tars) > _OPEN:
                del self._tars[next(iter(self._tars))]  # closed by Arrow when its last reader is done
            return tar


class _Tar:
    """A tar file that is opened at the first read."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._file: pa.NativeFile | None = None
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            if self._file is None:
                self._file = self._folder.filesystem.open_input_file(self._folder.path_of(self._name))
        data: bytes = self._file.read_at(size, offset)  # as many threads as like to
        if len(data) < size:
            raise OSError(ENDS_WITHIN)
        return data
