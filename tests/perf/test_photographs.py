"""The shipped photograph-like pictures: their format, their photographic character and that they can be drawn again."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from perf import photographs
from perf.embeddings import cosines
from tests.integration.reference import embed

Pixels = npt.NDArray[np.uint8]


def _decode(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def _jpegs(path: Path) -> list[bytes]:
    """The JPEGs in a file of perf_analyzer input data."""
    entries = json.loads(path.read_text(encoding="ascii"))["data"]
    return [base64.b64decode(text, validate=True) for entry in entries for text in entry[photographs.INPUT_NAME]]


@pytest.fixture(scope="module")
def shipped() -> list[bytes]:
    """The JPEGs as they stand in the repository."""
    return _jpegs(photographs.BASE64_JSON)


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The JPEGs as the generator's command writes them now."""
    path = tmp_path_factory.mktemp("perf") / "base64.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "BASE64_JSON", path)
        photographs.main()
    return _jpegs(path)


def test_every_request_is_one_row_of_one_base64_text() -> None:
    document = json.loads(photographs.BASE64_JSON.read_text(encoding="ascii"))
    assert list(document) == ["data"]
    assert [list(entry) for entry in document["data"]] == [["INPUT_IMAGE"]] * 4
    assert all(len(entry["INPUT_IMAGE"]) == 1 for entry in document["data"])


def test_pictures_are_four_distinct_jpegs_of_the_size_of_a_web_photograph(shipped: list[bytes]) -> None:
    assert len(set(shipped)) == 4
    for jpeg, shot in zip(shipped, photographs.SHOTS, strict=True):
        picture = Image.open(io.BytesIO(jpeg))
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (shot.width, shot.height))
        assert 50_000 <= len(jpeg) <= 160_000


def test_the_embedded_checkpoint_tells_them_apart(shipped: list[bytes]) -> None:
    """Or another image's embedding would pass for the right one in the soak."""
    embeddings = embed(shipped)
    assert all(cosines(embeddings, np.roll(embeddings, turn, axis=0)).max() < 0.95 for turn in (1, 2))


def test_chroma_is_subsampled_as_cameras_do(shipped: list[bytes]) -> None:
    for jpeg in shipped:
        layers = Image.open(io.BytesIO(jpeg)).layer  # type: ignore[attr-defined]
        assert [layer[1:3] for layer in layers] == [(2, 2), (1, 1), (1, 1)]


def test_tones_span_the_range_without_clipping(shipped: list[bytes]) -> None:
    for jpeg in shipped:
        luma = np.asarray(_decode(jpeg).convert("L"))
        low, high = np.percentile(luma, (2, 98))
        assert high - low > 100
        assert 50 < luma.mean() < 190
        assert np.mean((luma == 0) | (luma == 255)) < 0.05


def test_every_area_has_grain_and_some_are_far_sharper_than_others(shipped: list[bytes]) -> None:
    for jpeg in shipped:
        detail = _detail(np.asarray(_decode(jpeg).convert("L")))
        assert np.percentile(detail, 5) > 1.0
        assert np.percentile(detail, 95) > 2 * np.percentile(detail, 5)


def _detail(luma: Pixels) -> npt.NDArray[np.float32]:
    """The standard deviation of the Laplacian in each tile of 25 x 25 pixels, in grey levels."""
    grey = luma.astype(np.float32)
    laplacian = grey[1:-1, 1:-1] - (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4
    rows, columns = (side // 25 for side in laplacian.shape)
    tiles = laplacian[: rows * 25, : columns * 25].reshape(rows, 25, columns, 25)
    return np.asarray(tiles.std(axis=(1, 3)), np.float32)


def test_encoding_again_keeps_the_size(shipped: list[bytes]) -> None:
    for jpeg, shot in zip(shipped, photographs.SHOTS, strict=True):
        again = photographs.encode_jpeg(_decode(jpeg), shot.quality)
        assert len(again) == pytest.approx(len(jpeg), rel=0.15)


def test_the_generator_draws_the_shipped_pictures(shipped: list[bytes], redrawn: list[bytes]) -> None:
    # The last bits of floating-point functions and of JPEG coders differ between builds, hence the tolerance.
    for old, new in zip(shipped, redrawn, strict=True):
        difference = np.abs(np.asarray(_decode(old), np.int16) - np.asarray(_decode(new), np.int16))
        assert difference.mean() < 1.0
        assert np.mean(difference > 16) < 0.01


@pytest.mark.parametrize("index", range(4))
def test_a_picture_keeps_its_composition_at_other_sizes(index: int, shipped: list[bytes]) -> None:
    original = _decode(shipped[index])
    small = photographs.render(index, original.width // 2, original.height // 2)
    coarse = [np.asarray(picture.resize((16, 16), Image.Resampling.BOX), np.float32) for picture in (original, small)]
    assert np.abs(coarse[0] - coarse[1]).mean() < 8


def test_pictures_beyond_the_fourth_are_new() -> None:
    first, fifth = (np.asarray(photographs.render(index, 120, 90), np.int16) for index in (3, 7))
    assert np.abs(first - fifth).mean() > 10
