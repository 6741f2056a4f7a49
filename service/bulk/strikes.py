"""What was in the works when a worker died, so that an image that kills every worker is found and given up.

Comes in: which chunk, and of a suspect one which image, is begun and done with. Goes out: what was begun and never done
with. It must not know why a worker died.

Each beginning is an empty file in `OUT/_strikes` that goes when the chunk's part is written. Where a worker dies, all
chunks that it had in the works are suspects.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

from service.bulk.folder import Folder
from service.bulk.plan import Chunk

_STRIKES = "_strikes"


class Strikes:
    """The beginnings of one `--out`, since the run began."""

    def __init__(self, out: Folder) -> None:
        self._folder = out.below(_STRIKES)

    def forget(self) -> None:
        """A run begins: whatever ended the last one, no image is suspected."""
        self._folder.clear()

    def begin(self, chunk: Chunk) -> int:
        """How often the chunk was begun before."""
        before = len(self._folder.names(f"{chunk.part}.chunk-"))
        self._folder.touch(f"{chunk.part}.chunk-{before}")
        return before

    def end(self, chunk: Chunk) -> None:
        """The chunk's part is written."""
        for name in self._folder.names(f"{chunk.part}."):
            self._folder.remove(name)

    @contextlib.contextmanager
    def image(self, chunk: Chunk, number: int, deaths: int) -> Iterator[None]:
        """The chunk's image of this number is in the works, as it was at so many deaths; once done, it is cleared."""
        names = [f"{chunk.part}.image-{number}-{death}" for death in range(deaths + 1)]
        self._folder.touch(names[-1])
        yield
        for name in names:
            self._folder.remove(name)

    def deaths(self, chunk: Chunk) -> Counter[int]:
        """How often a worker died with an image in the works, by the image's number."""
        return Counter(int(name.split("-")[-2]) for name in self._folder.names(f"{chunk.part}.image-"))
