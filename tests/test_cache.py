"""The embeddings used last are remembered as they were, in as much memory as is allowed."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.cache import EmbeddingCache
from service.pipeline import Embedding

DIMENSION = 256
PRICE = 4 * DIMENSION + 400  # of an entry, in bytes


def _digest(number: int) -> bytes:
    return EmbeddingCache.digest(b"%d" % number)


def _embedding(number: int) -> Embedding:
    return np.full(DIMENSION, number, np.float32)


def _kept(cache: EmbeddingCache, numbers: range) -> list[int]:
    """Which of them are there; to look for all of them at once changes nothing of their order among each other."""
    found = cache.get_all(_digest(number) for number in numbers)
    assert all((found[_digest(n)] == _embedding(n)).all() for n in numbers if _digest(n) in found)
    return [number for number in numbers if _digest(number) in found]


def test_an_image_is_known_by_its_bytes_alone() -> None:
    assert EmbeddingCache.digest(b"image") == EmbeddingCache.digest(bytes(bytearray(b"image")))
    assert len({EmbeddingCache.digest(data) for data in (b"", b"\0", b"\0\0", b"image", b"Image")}) == 5


def test_what_was_not_used_for_the_longest_time_goes_first() -> None:
    cache = EmbeddingCache(3 * PRICE)
    for number in range(3):
        cache.put(_digest(number), _embedding(number))
    cache.get_all([_digest(0), _digest(99)])
    cache.put(_digest(3), _embedding(3))
    assert _kept(cache, range(4)) == [0, 2, 3]
    cache.put(_digest(2), _embedding(7))  # what is known stays as it is
    assert _kept(cache, range(4)) == [0, 2, 3]


@pytest.mark.parametrize("megabytes", [1, 3])
def test_the_memory_taken_stays_below_the_limit(megabytes: int) -> None:
    cache = EmbeddingCache(megabytes * 2**20)
    for number in range(5000):
        cache.put(_digest(number), _embedding(number))
    kept = cache.get_all(_digest(number) for number in range(5000))
    assert set(kept) == {_digest(number) for number in range(5000 - len(kept), 5000)}
    taken = sum(embedding.nbytes + sys.getsizeof(digest) + 112 for digest, embedding in kept.items())
    assert 0.7 * megabytes * 2**20 < taken < megabytes * 2**20


def test_nothing_fits_into_less_than_one() -> None:
    cache = EmbeddingCache(PRICE - 1)
    cache.put(_digest(1), _embedding(1))
    assert cache.get_all([_digest(1)]) == {}


def test_later_writes_do_not_show_and_none_are_taken() -> None:
    cache = EmbeddingCache(2**20)
    batch = np.stack([_embedding(number) for number in range(4)])
    for number, row in enumerate(batch):
        cache.put(_digest(number), row)
    batch[...] = -1
    assert _kept(cache, range(4)) == [0, 1, 2, 3]
    for embedding in cache.get_all(_digest(number) for number in range(4)).values():
        assert embedding.base is None  # and so does not keep its batch alive
        with pytest.raises(ValueError, match="read-only"):
            embedding[0] = 5


@pytest.mark.usefixtures("restless")
def test_threads_find_what_belongs_to_their_images() -> None:
    cache = EmbeddingCache(20 * PRICE)

    def use(_: int) -> None:
        # All in the same order, so that they meet.
        for number in np.random.default_rng(0).integers(0, 60, 1000).tolist():
            cache.put(_digest(number), _embedding(number))
            _kept(cache, range(number, number + 5))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert len(_kept(cache, range(60))) == 20
