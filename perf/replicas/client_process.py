"""`python -m service.client embed` as a process of its own, which is fed as long as somebody wants load.

Comes in: pictures of known embedding. Goes out: what became of every image that the client was given.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perf.embeddings import Embeddings, cosines
from perf.findings import NotMeasured
from perf.hosts import Host
from perf.machine import REPOSITORY
from service.demo.drawings import COLOURS, SHAPES, draw

_END_SECONDS = 300.0
# The size of a batch changes the last bits; the nearest of other drawings is at 0.80.
_LEAST_COSINE = 0.99999


@dataclass(frozen=True)
class Account:
    """What became of the images that a client was given.

    Attributes:
        exit_code: the client's.
        given: images.
        lost: images without exactly one embedding.
        wrong: images with an embedding that is not theirs.
        said: the client's last words.
    """

    exit_code: int
    given: int
    lost: int
    wrong: int
    said: str


@dataclass(frozen=True)
class Pictures:
    """Images of known embedding: N files, and float32 `[N, D]`."""

    paths: Sequence[Path]
    embeddings: Embeddings


def draw_pictures(folder: Path, host: Host, url: str) -> Pictures:
    """A drawing of every colour and shape into the folder, embedded by the service at `url` while it is alone."""
    paths = [folder / f"{colour} {shape}.jpg" for colour in COLOURS for shape in SHAPES]
    for number, path in enumerate(paths):
        draw(np.random.default_rng(number), *path.stem.split()).image.save(path, quality=90)
    out = folder / "embeddings.npy"
    subprocess.run(host.command(*_client(str(folder), url, out)), cwd=REPOSITORY, check=True, capture_output=True)
    rows = dict(zip(_ids(out), np.load(out), strict=True))
    return Pictures(paths, np.stack([rows[path.name] for path in paths]))


class ClientProcess:
    """A client that waits for images until `finish`.

    Attributes:
        given: images that it was given so far.
    """

    def __init__(self, folder: Path, pictures: Pictures, host: Host, url: str, *options: str) -> None:
        self.given = 0
        self._folder = folder
        self._pictures = pictures
        self._out = folder / "embeddings.npy"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                host.command(*_client("-", url, self._out), *options),
                stdin=subprocess.PIPE,
                stderr=log,
                cwd=REPOSITORY,
                text=True,
            )

    def give(self, count: int) -> None:
        """So many images more: links to the pictures, in turn.

        Raises:
            BrokenPipeError: the client has ended.
        """
        assert self._process.stdin
        for number in range(self.given, self.given + count):
            path = self._folder / f"{number}.jpg"
            os.link(self._pictures.paths[number % len(self._pictures.paths)], path)
            self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        self.given += count

    def finish(self) -> Account:
        """There are no more images: wait for the client's end."""
        self._process.communicate(timeout=_END_SECONDS)
        ids, rows = (_ids(self._out), np.load(self._out)) if self._out.exists() else ([], self._pictures.embeddings[:0])
        numbers = [int(Path(name).stem) for name in ids]
        once = sum(count == 1 for count in Counter(numbers).values())
        expected = self._pictures.embeddings[np.array(numbers, int) % len(self._pictures.paths)]
        wrong = int(np.count_nonzero(~(cosines(rows, expected) >= _LEAST_COSINE)))
        return Account(self._process.returncode, self.given, self.given - once, wrong, self._said())

    def check_alive(self) -> None:
        """Whether it still runs.

        Raises:
            NotMeasured: it has ended.
        """
        if self._process.poll() is not None:
            raise NotMeasured(f"a client ended with exit code {self._process.returncode}: {self._said()}")

    def stop(self) -> None:
        """The last resort: end the client where it is."""
        self._process.kill()
        self._process.communicate()

    def _said(self) -> str:
        return self._log.read_text().strip().split("\n")[-1]


def _client(source: str, url: str, out: Path) -> Sequence[str]:
    return (sys.executable, "-m", "service.client", "embed", source, "--url", url, "--out", str(out))


def _ids(out: Path) -> list[str]:
    return Path(f"{out}.ids.txt").read_text().splitlines()
