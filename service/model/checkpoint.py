"""A checkpoint as the settings name it: its model, its preprocessor, and the fingerprint of their embeddings.

Comes in: the settings. Goes out: the loaded parts, which agree with each other. It must not know of devices or servers.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from service.errors import StartupFault
from service.model.fingerprint import fingerprint
from service.preprocessing.preprocess import PIXELS_VERSION, Preprocessor
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
        pixels=PIXELS_VERSION,
        exif_orientation=settings.exif_orientation,
        background=settings.background_rgb,
        dtypes=sorted(set(dtypes)),
    )


def load_model(checkpoint: str, revision: str | None, random_weights: bool) -> SiglipVisionModel:
    """The vision tower of a SigLIP checkpoint (a hub id or a folder), in float32 on the CPU.

    Raises:
        StartupFault: the checkpoint cannot be found or read, is no SigLIP, lacks weights, or has some that are NaN or
            infinite. What the loaders raise comes from half a dozen packages, so any exception of theirs counts.
    """
    # It reports at length that the text tower's weights are left over, which is on purpose.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = _load_vision_config(checkpoint, revision)
    if random_weights:
        logger.warning("RANDOM WEIGHTS: the embeddings of this service mean nothing; use it for load tests only")
        return _random_model(checkpoint, config)
    try:
        model, report = SiglipVisionModel.from_pretrained(
            checkpoint,
            config=config,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # or it would be told without a name
        )
    except Exception as error:
        raise StartupFault(
            f"checkpoint {checkpoint!r} has no readable weights ({_first_line(error)});"
            " to run a bare config.json for a load test, add --random-weights true"
        ) from error
    _refuse_misfit(checkpoint, report)
    # A sum is finite where all of them are, and takes a tenth of the time of a look at each.
    if damaged := next((name for name, weight in model.named_parameters() if not weight.sum().isfinite()), None):
        raise StartupFault(f"checkpoint {checkpoint!r} has weights that are NaN or infinite: {damaged}")
    return model


def _load_vision_config(checkpoint: str, revision: str | None) -> SiglipVisionConfig:
    if checkpoint.startswith(("/", ".", "~")) and not Path(checkpoint).is_dir():
        raise StartupFault(f"checkpoint {checkpoint!r} is no folder")
    try:
        # Not told, it would ask at the terminal whether to run the checkpoint's own code, and wait.
        config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
        adapter = find_adapter_config_file(checkpoint, revision=revision)
    except Exception as error:
        raise StartupFault(f"checkpoint {checkpoint!r} cannot be read: {_first_line(error)}") from error
    vision_config = getattr(config, "vision_config", config)
    if not isinstance(vision_config, SiglipVisionConfig):
        raise StartupFault(f"checkpoint {checkpoint!r} is no SigLIP: its model type is {config.model_type!r}")
    if vision_config.num_channels != 3:
        raise StartupFault(f"checkpoint {checkpoint!r} reads images of {vision_config.num_channels} channels, not RGB")
    # Their weights are codes, which would be taken for the numbers that they stand for.
    if any(getattr(each, "quantization_config", None) for each in (config, vision_config)):
        raise StartupFault(f"checkpoint {checkpoint!r} is quantised; serve the one that it was made of")
    if not getattr(vision_config, "vision_use_head", True):
        raise StartupFault(f"checkpoint {checkpoint!r} has no pooling head, so it gives no embeddings")
    # transformers adds it to the weights where peft is installed, and passes over it without a word where it is not.
    if adapter:
        raise StartupFault(f"checkpoint {checkpoint!r} has an adapter beside its weights; merge the two or take it out")
    # The name of the weights' file where it is not the usual one, which may be there as well.
    vision_config.transformers_weights = getattr(config, "transformers_weights", None)
    return vision_config


def _refuse_misfit(checkpoint: str, report: Mapping[str, Any]) -> None:
    """Where weights and configuration are not of one model: transformers makes them fit, and goes on.

    What the weights lack, or have in another shape, it fills with random numbers; layers that are too many it leaves
    out, as it does the text tower.
    """
    if missing := sorted(report["missing_keys"]):
        raise StartupFault(f"checkpoint {checkpoint!r} lacks weights: {', '.join(missing[:3])}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise StartupFault(
            f"checkpoint {checkpoint!r} contradicts itself: its weights have {name} in the shape {list(found)},"
            f" its config.json makes it {list(expected)}"
        )
    if spare := sorted(name for name in report["unexpected_keys"] if name.startswith("encoder.")):
        raise StartupFault(f"checkpoint {checkpoint!r} has weights that its config.json leaves out: {spare[0]}")


def _random_model(checkpoint: str, config: SiglipVisionConfig) -> SiglipVisionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return SiglipVisionModel(config).eval()
        except Exception as error:
            raise StartupFault(f"checkpoint {checkpoint!r} describes no model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
