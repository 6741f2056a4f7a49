"""A tar file, such as large sets of images are kept in -> what is where in it.

Comes in: an open file. Goes out: its members. It must not know what they are for.
"""

import errno
import sys
import tarfile
from collections.abc import Iterator
from typing import BinaryIO


def members_of(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file that is not compressed; their `offset_data` and `size` tell where their bytes are.

    Raises:
        OSError: it is no tar file, or is damaged beyond what came so far.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or they are all kept in memory
                if not 0 <= member.size <= sys.maxsize - member.offset_data:
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                yield member
            file.seek(tar.offset)
            # Where tarfile cannot read on, it takes that for the end; only zeros are.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end and no member after {tar.offset} bytes")
            # Such as a second tar file behind the first one, or what a download has left behind a hole.
            while behind := file.read(tarfile.RECORDSIZE):
                if behind.strip(b"\0"):
                    raise tarfile.ReadError(f"there is more behind its end after {tar.offset} bytes")
    # A header may announce more than memory or a number holds, and each one for a long name is a call within a call.
    except (tarfile.TarError, MemoryError, OverflowError, RecursionError) as error:
        raise OSError(errno.EINVAL, f"not a whole tar file: {str(error) or type(error).__name__}") from error
