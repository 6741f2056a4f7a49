"""A checkpoint as the settings name it: its model, its preprocessor, and the fingerprint of their embeddings.

Comes in: the settings. Goes out: the loaded parts, which agree with each other. It must not know of devices or servers.
"""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from transformers import SiglipVisionModel

from service.errors import StartupFault
from service.model.encoder import load_model
from service.model.fingerprint import fingerprint
from service.preprocessing.preprocess import Preprocessor
from service.settings import Settings

logger = logging.getLogger(__name__)

_DEMO_CHECKPOINT = Path(__file__).parents[1] / "demo" / "checkpoint"


def load_checkpoint(settings: Settings) -> tuple[SiglipVisionModel, Preprocessor]:
    """The vision tower in float32 on the CPU, and the preprocessor that feeds it.

    Raises:
        StartupFault: it cannot be found or read, is not supported, or contradicts itself.
    """
    checkpoint = settings.checkpoint
    if checkpoint == "demo":
        checkpoint = str(_DEMO_CHECKPOINT)
        logger.warning("serving the embedded demo checkpoint, which knows simple drawings and nothing of photographs")
    model = load_model(checkpoint, settings.revision, settings.random_weights)
    preprocessor = Preprocessor.from_pretrained(checkpoint, settings.revision, settings.exact_pixels)
    if model.config.image_size != preprocessor.size:
        raise StartupFault(
            f"checkpoint {checkpoint!r} contradicts itself: its model reads images of {model.config.image_size} pixels,"
            f" its image processor makes {preprocessor.size}"
        )
    return model, preprocessor


def checkpoint_fingerprint(
    settings: Settings, model: SiglipVisionModel, preprocessor: Preprocessor, dtypes: Iterable[str]
) -> str:
    """The fingerprint of what they make of images when they compute in these dtypes, such as `torch.float32`."""
    return fingerprint(
        model,
        preprocessor=asdict(preprocessor),
        exif_orientation=settings.exif_orientation,
        background=settings.background_rgb,
        dtypes=sorted(set(dtypes)),
    )
