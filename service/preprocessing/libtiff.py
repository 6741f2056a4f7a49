"""What libtiff must be told or asked past Pillow, which has no words for it.

Comes in: the bytes of a TIFF. Goes out: whether it can be decoded without a look at others' memory. It must not know of
pixels or limits.
"""

import ctypes
import os
from contextlib import suppress

from PIL import _imaging

# libtiff reads a hundred; encoders write one into a TIFF, and ten where it is progressive.
MAX_SCANS = 20
_JPEG_COLOUR_MODE, _RGB = 65538, 1


def prepare() -> None:
    """Once a process, before it reads a TIFF."""
    os.environ["LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER"] = str(MAX_SCANS + 1)  # the first that it refuses
    # libtiff writes a line on every damaged image straight to stderr; Pillow's exceptions say the same. A Pillow that
    # was built without libtiff, or with it inside, has no such functions.
    with suppress(AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def fills_memory(data: bytes) -> bool:
    """Whether the first strip or tile fills all of the memory that it is decoded to; also where it cannot be read.

    Where a fax ends early, and before version 4.7.2 where a JPEG is smaller than its strip, libtiff says nothing and
    leaves in memory what stood there before, such as another client's picture, and Pillow shows it. Further strips and
    tiles get the same memory.
    """
    library = ctypes.CDLL(_imaging.__file__)
    library.TIFFFdOpen.restype = ctypes.c_void_p
    try:
        descriptor = os.memfd_create("tiff")
    except OSError as error:  # too many open files, for one: no fault of the image
        raise MemoryError(str(error)) from error
    with os.fdopen(descriptor, "r+b") as file:
        file.write(data)
        file.seek(0)
        tiff = ctypes.c_void_p(library.TIFFFdOpen(file.fileno(), b"", b"rC"))
        if not tiff:
            return True
        try:
            return _fills_memory(library, tiff)
        finally:
            library.TIFFCleanup(tiff)


def _fills_memory(library: ctypes.CDLL, tiff: ctypes.c_void_p) -> bool:
    library.TIFFSetField(tiff, _JPEG_COLOUR_MODE, _RGB)  # as Pillow does
    part = "Tile" if library.TIFFIsTiled(tiff) else "Strip"
    size_of, read = getattr(library, f"TIFF{part}Size"), getattr(library, f"TIFFReadEncoded{part}")
    size_of.restype = read.restype = ctypes.c_ssize_t
    read.argtypes = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_ssize_t
    size = size_of(tiff)
    memory = ctypes.create_string_buffer(max(size, 1))
    # What is not filled is at its end. That may be filled with what stood there, but not with both of these.
    for before in (b"\0", b"\xff"):
        ctypes.memset(memory, before[0], size)
        filled = read(tiff, 0, memory, size)
        if filled <= 0 or memory[filled - 1] != before:
            return True
    return False
