"""The rooms that embed, put together as the settings say: checkpoint -> encoders -> pipelines.

Comes in: the settings, and the cores to share. Goes out: a pipeline a device, and what it makes of a known image. It
must not know who sends images: the server and the bulk job build the same here.
"""

from collections.abc import Sequence
from functools import partial

from service.cache import EmbeddingCache
from service.cores import Cores
from service.errors import Fault, StartupFault
from service.health.canary import Embed, canary_image, same_direction
from service.metrics import Metrics
from service.model.checkpoint import checkpoint_fingerprint, load_checkpoint
from service.model.devices import resolve_devices, resolve_dtype
from service.model.encoder import Encoder
from service.pipeline import Embedding, Pipeline, Row
from service.preprocessing.decode import Decoder
from service.preprocessing.preprocess import Preprocessor
from service.settings import Settings


def load_encoders(settings: Settings, cores: Cores, metrics: Metrics) -> tuple[Preprocessor, list[Encoder], str]:
    """The checkpoint's preprocessor, one warm encoder a device, and the fingerprint of their embeddings.

    Raises:
        StartupFault: the checkpoint cannot be loaded, a device is not there, is of no use, or has too little memory.
    """
    devices = resolve_devices(settings.device)
    model, preprocessor = load_checkpoint(settings)
    normalisation = preprocessor.scale, preprocessor.offset
    try:
        encoders = [
            Encoder(model, device, resolve_dtype(settings.dtype, device), *normalisation, cores, metrics)
            for device in devices
        ]
        for encoder in encoders:
            encoder.warm_up(settings.max_batch_size)
    except RuntimeError as error:  # what torch makes of a device that is full, too old or out of order
        raise StartupFault(f"cannot compute on {settings.device}: {str(error).strip().splitlines()[0]}") from error
    dtypes = (str(encoder.dtype) for encoder in encoders)
    return preprocessor, encoders, checkpoint_fingerprint(settings, model, preprocessor, dtypes)


def build_pipelines(
    settings: Settings, preprocessor: Preprocessor, encoders: Sequence[Encoder], cores: Cores, metrics: Metrics
) -> list[Pipeline]:
    """A pipeline for each encoder; they share the cores, the threads that decode, and the cache."""
    decoder = Decoder(
        settings.max_image_bytes,
        settings.max_image_pixels,
        preprocessor.least_side,
        settings.exif_orientation,
        settings.background_rgb,
    )
    cache = EmbeddingCache(settings.cache_mb * 2**20) if settings.cache_mb else None
    shared = (cores, cores.threads("decode"), metrics, cache, canary_image())
    return [Pipeline(decoder, preprocessor, encoder, *shared) for encoder in encoders]


def by_device(pipelines: Sequence[Pipeline]) -> list[Embed]:
    """For each device a function that embeds the canary's image there."""

    def embed(pipeline: Pipeline) -> Embedding | Fault:
        (outcome,) = pipeline.embed([Row(canary_image(), False)])
        return outcome

    return [partial(embed, pipeline) for pipeline in pipelines]


def known_embedding(pipelines: Sequence[Pipeline]) -> Embedding:
    """The embedding (float32 `[D]`) of the canary's image, as each device computes it now.

    Raises:
        StartupFault: a device cannot embed it, its embedding is zero or not finite, or two devices disagree.
    """
    embeddings: list[Embedding] = []
    for embed in by_device(pipelines):
        outcome = embed()
        if isinstance(outcome, Fault):
            raise StartupFault(f"the image that the service tests itself with cannot be embedded: {outcome}")
        embeddings.append(outcome)
    if not all(same_direction(embedding, embeddings[0]) for embedding in embeddings):
        raise StartupFault("an encoder's embeddings are no numbers, or others on another device; try another --dtype")
    return embeddings[0]
