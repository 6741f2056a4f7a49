"""On CUDA the numbers stay the reference's, in every dtype. Run with `python -m pytest tests/gpu`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from service.decode import Decoder
from service.encoder import Encoder, load_model, resolve_devices, resolve_dtype
from service.pipeline import Pipeline, Row
from service.preprocess import Preprocessor
from tests import images
from tests.cosines import cosines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

REPOSITORY = Path(__file__).parents[2]
CHECKPOINTS = {
    "demo": (REPOSITORY / "service" / "demo" / "checkpoint", False),
    "base-224": (REPOSITORY / "perf" / "architectures" / "base-patch16-224", True),
    "so400m-384": (REPOSITORY / "perf" / "architectures" / "so400m-patch14-384", True),
}
LEAST_COSINE = {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.999}


@pytest.mark.parametrize("dtype", LEAST_COSINE)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_batch_of_60_has_the_reference_embeddings(checkpoint: str, dtype: str) -> None:
    """Sixty awkward images through the pipeline on CUDA, against transformers' model in float32 on the CPU."""
    folder, random_weights = CHECKPOINTS[checkpoint]
    model = load_model(str(folder), None, random_weights)
    preprocessor = Preprocessor.from_pretrained(str(folder))
    rows = [Row(images.sample(name).data, False) for name in images.NAMES if name != "10000x3000"]
    expected = np.concatenate([_reference(model, preprocessor, row) for row in rows])
    (device,) = resolve_devices("cuda")
    encoder = Encoder(model, device, resolve_dtype(dtype, device), preprocessor.scale, preprocessor.offset)
    encoder.warm_up(60)
    batch = (rows * 60)[:60]
    with ThreadPoolExecutor(4) as threads:
        outcomes = Pipeline(_DECODER, preprocessor, encoder, threads).embed(batch)
    embeddings = np.stack([outcome for outcome in outcomes if isinstance(outcome, np.ndarray)])
    assert embeddings.shape == (60, encoder.dimension)
    assert cosines(embeddings, np.concatenate([expected] * 60)[:60]).min() >= LEAST_COSINE[dtype]


def test_auto_is_the_first_cuda_device_in_a_dtype_it_has_units_for() -> None:
    (device,) = resolve_devices("auto")
    assert device == torch.device("cuda:0")
    assert resolve_dtype("auto", device) in (torch.bfloat16, torch.float16)


_DECODER = Decoder(2**25, 50_000_000)


def _reference(model: torch.nn.Module, preprocessor: Preprocessor, row: Row) -> npt.NDArray[np.float32]:
    pixels = np.empty((preprocessor.size, preprocessor.size, 3), np.uint8)
    preprocessor.resize_into(_DECODER.decode(row.data, False), pixels)
    values = pixels * np.array(preprocessor.scale, np.float32) - np.array(preprocessor.offset, np.float32)
    with torch.inference_mode():
        tensor = torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32))
        embedding: npt.NDArray[np.float32] = model(pixel_values=tensor).pooler_output.numpy()
    return embedding
