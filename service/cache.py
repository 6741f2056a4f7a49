"""Embeddings of images seen before, by a digest of the encoded image.

It must not know how an embedding comes about.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

# What an entry takes beside the embedding's numbers: the digest, the array object, its place in the dictionary.
_ENTRY_BYTES = 400


class EmbeddingCache:
    """The embeddings used last, as many as fit. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def digest(data: bytes | memoryview) -> bytes:
        """What an encoded image is known by. SHA-256: nobody can craft an image that is taken for another."""
        return hashlib.sha256(data).digest()

    def get_all(self, digests: Iterable[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """The embeddings (float32 `[D]`, not to be written to) that are here, by the digests of their images."""
        with self._lock:
            found = {digest: self._entries[digest] for digest in digests if digest in self._entries}
            for digest in found:
                self._entries.move_to_end(digest)
            return found

    def put(self, digest: bytes, embedding: npt.NDArray[np.float32]) -> None:
        """Remember an embedding (float32 `[D]`), at the price of those not used for the longest time."""
        own = embedding.copy()  # a row would keep its whole batch alive
        own.flags.writeable = False
        with self._lock:
            if digest in self._entries:
                return
            self._entries[digest] = own
            self._bytes += own.nbytes + _ENTRY_BYTES
            while self._bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.nbytes + _ENTRY_BYTES
