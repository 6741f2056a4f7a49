"""A checkpoint is loaded as the settings say, and its fingerprint tells what of them an embedding depends on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import StartupFault
from service.model import checkpoint as room
from service.model.checkpoint import checkpoint_fingerprint, load_checkpoint
from service.preprocessing.preprocess import Preprocessor
from service.settings import load_settings


def _fingerprint(*arguments: str, dtypes: Sequence[str] = ("torch.float32",)) -> str:
    settings = load_settings(arguments)
    return checkpoint_fingerprint(settings, *load_checkpoint(settings), dtypes)


def test_whatever_changes_an_embedding_changes_the_fingerprint() -> None:
    """How many devices compute in a dtype, and in which order they are named, does not."""
    changes = (), ("--exif-orientation", "false"), ("--background", "none"), ("--exact-pixels", "true")
    different = {_fingerprint(*change) for change in changes}
    mixed = [_fingerprint(dtypes=dtypes) for dtypes in (("b", "a"), ("a", "b", "a"))]
    assert len({*different, *mixed}) == len(changes) + 1


def test_other_pixels_of_the_same_settings_change_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _fingerprint()
    monkeypatch.setattr(room, "PIXELS_VERSION", -1)
    assert _fingerprint() != before


def test_a_model_and_an_image_processor_of_other_sizes_are_told(tmp_path: Path) -> None:
    shutil.copytree(room._DEMO_CHECKPOINT, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    size = {"size": {"height": 48, "width": 48}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**config, **size}))
    with pytest.raises(StartupFault, match=r"its model reads images of 64 pixels, its image processor makes 48$"):
        load_checkpoint(load_settings(["--checkpoint", str(tmp_path)]))


def test_all_of_it_is_of_the_revision_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(_: str, revision: str | None, *options: bool) -> Any:
        asked.append((revision, options))
        return SimpleNamespace(config=SimpleNamespace(image_size=1), size=1)

    monkeypatch.setattr(room, "load_model", load)
    monkeypatch.setattr(Preprocessor, "from_pretrained", load)
    load_checkpoint(load_settings(["--checkpoint", "some/model", "--revision", "abc"]))
    assert asked == [("abc", (False,)), ("abc", (False,))]
