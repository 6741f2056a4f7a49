"""Train the embedded checkpoint, a small SigLIP, on captioned drawings.

    python -m service.demo.train [--output DIR] [--seed 0] [--steps N]

The images and captions are drawn here, so neither a data set nor a model hub is needed. How good a checkpoint is, say
`tests/test_demo.py` and `tests/integration/test_demo_checkpoint.py`, whose drawings it has not seen.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from service.demo.drawings import COLOURS, POSITIONS, SHAPES, SIZES, Drawing, describe, draw

logger = logging.getLogger(__name__)

CHECKPOINT = Path(__file__).parent / "checkpoint"
IMAGE_SIZE = 64  # pixels a side, as the vision tower takes them
EMBEDDING_SIZE = 128  # elements of `pooler_output`, to which captions are projected too
TEXT_LENGTH = 16  # tokens; SigLIP pads every caption to this length and pools the last token
STEPS = 1600
BATCH = 64
POOL = 24_000  # drawings made at the start; drawing afresh at every step would cost more time than it gains
THREADS = 2  # fixed, as the order of floating-point sums, and so the weights, depend on it
MATRIX_RATE, OTHER_RATE = 0.02, 1e-3  # the full learning rates of Muon and AdamW
WARM_UP = 50  # steps
NAMING_WEIGHT = 5.0  # of the loss of naming colours and shapes, against that of matching captions
SHIFT = 4  # pixels a drawing may be moved by in any direction whenever it is shown again
LOG_EVERY = 50  # steps

# A caption names everything, or leaves out the size, the position or both: embeddings then follow the colour
# and shape before all else, and short captions work for zero-shot classification.
_ANY = -1
_NAMED = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 0, 0]], dtype=bool)
_NAMED_SHARES = np.array([0.15, 0.15, 0.2, 0.5])

_MIRRORED = np.array([list(POSITIONS.values()).index((2 - column, row)) for column, row in POSITIONS.values()])

Codes = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and hold it to deterministic algorithms and `THREADS` threads; the latter two are put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of one token per word of the captions; pads with and ends in "</s>", as SigLIP's own does."""
    captions = [
        describe(colour, shape, size, position)
        for colour in COLOURS for shape in SHAPES for size in SIZES for position in POSITIONS
    ]  # fmt: skip
    words = sorted({word for caption in captions for word in caption.split()} | {"an"})
    vocabulary = {word: index for index, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids"],
    )
    return wrapped


def build_model(tokenizer: PreTrainedTokenizerFast) -> SiglipModel:
    """Untrained SigLIP of about 0.8 million float32 parameters with embeddings of `EMBEDDING_SIZE`."""
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH, "projection_size": EMBEDDING_SIZE,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "pad_token_id": end, "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip
    vision = {
        "image_size": IMAGE_SIZE, "patch_size": 8,
        "hidden_size": EMBEDDING_SIZE, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
    }  # fmt: skip
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():  # where SigLIP's authors start: scale 10, and a bias for mostly negative pairs
        model.logit_scale.fill_(float(np.log(10.0)))
        model.logit_bias.fill_(-10.0)
    return model


def write_image_processor(folder: Path) -> None:
    """Write preprocessor_config.json for bicubic resizing to `IMAGE_SIZE` and pixel values from -1 to 1."""
    # Written by hand, as the processor's class, and with it the name it would save, depends on what is installed.
    settings = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor", "resample": int(Image.Resampling.BICUBIC), "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def encode(drawing: Drawing) -> list[int]:
    """Colour, shape, size and position of a drawing as 4 indices into `COLOURS`, `SHAPES`, `SIZES`, `POSITIONS`."""
    kinds = (list(COLOURS), list(SHAPES), list(SIZES), list(POSITIONS))
    values = (drawing.colour, drawing.shape, drawing.size, drawing.position)
    return [kind.index(value) for kind, value in zip(kinds, values, strict=True)]


def decode(codes: Sequence[int]) -> str:
    """Caption for 4 indices as `encode` gives them; a size or position of -1 is left out."""
    colour, shape, size, position = codes
    return describe(
        list(COLOURS)[colour],
        SHAPES[shape],
        None if size == _ANY else list(SIZES)[size],
        None if position == _ANY else list(POSITIONS)[position],
    )


def make_pool(rng: np.random.Generator, count: int) -> tuple[Pixels, Codes]:
    """Pixels, uint8 [count, height, width, 3], and codes, int64 [count, 4], of as many drawings."""
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    codes = np.empty((count, 4), dtype=np.int64)
    for index in range(count):
        drawing = draw(rng)
        # What the image processor does before it rescales, without its cost per call.
        pixels[index] = np.asarray(drawing.image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
        codes[index] = encode(drawing)
        if (index + 1) % 4000 == 0:
            logger.info("drawn %d of %d", index + 1, count)
    return pixels, codes


def batches(rng: np.random.Generator, count: int, size: int) -> Iterator[Codes]:
    """Indices below `count`, int64 [size] at a time, without end; reshuffled when fewer than `size` are left."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def vary(rng: np.random.Generator, pixels: Pixels, codes: Codes) -> tuple[Pixels, Codes]:
    """Mirror about half of the drawings left to right and shift all by a few pixels; codes follow the mirroring.

    Takes and gives uint8 [count, height, width, 3] and int64 [count, 4]. Without this the shapes are learned by
    heart: all but perfect on the pool, but only 96 % right on other drawings.
    """
    mirrored = rng.random(len(codes)) < 0.5
    pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    codes = codes.copy()
    codes[mirrored, 3] = _MIRRORED[codes[mirrored, 3]]
    padded = np.pad(pixels, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * SHIFT + 1, (len(codes), 2))
    shifted = [image[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] for image, (y, x) in zip(padded, corners, strict=True)]
    return np.stack(shifted), codes


def matching_loss(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """SigLIP's pairwise sigmoid loss, a float32 scalar, over logits [captions, images] and equal-sized bool labels.

    A caption counts as positive for every image it is true of: in a batch many images share a caption's colour and
    shape, and calling those pairs negative, as SiglipModel's own loss does, would push the class apart.
    """
    signs = torch.where(positive, 1.0, -1.0)
    return -torch.nn.functional.logsigmoid(signs * logits).sum(dim=1).mean()


def train(output: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train for `steps` steps and write the checkpoint to the folder `output`, which is made if need be."""
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels, codes = make_pool(rng, min(POOL, steps * BATCH))
    tokenizer = build_tokenizer()
    with reproducible(seed):
        model = build_model(tokenizer)
        _fit(model, tokenizer, pixels, codes, rng, steps)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_image_processor(output)
    # save_pretrained leaves the weights to their owner alone, but a service may run as another user.
    (output / "model.safetensors").chmod(0o644)


def _fit(
    model: SiglipModel,
    tokenizer: PreTrainedTokenizerFast,
    pixels: Pixels,
    codes: Codes,
    rng: np.random.Generator,
    steps: int,
) -> None:
    naming = torch.nn.Linear(EMBEDDING_SIZE, len(COLOURS) + len(SHAPES))
    optimisers = _optimisers(model, naming)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, steps)) for each in optimisers]
    started = time.monotonic()
    model.train()
    for step, chosen in zip(range(1, steps + 1), batches(rng, len(codes), BATCH), strict=False):
        matching, named = _batch_losses(model, naming, tokenizer, *vary(rng, pixels[chosen], codes[chosen]), rng)
        model.zero_grad()
        naming.zero_grad()
        torch.autograd.backward(matching + NAMING_WEIGHT * named)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        if step % LOG_EVERY == 0 or step == steps:
            seconds = time.monotonic() - started
            losses = f"matching loss {matching.item():.4f}, naming loss {named.item():.4f}"
            logger.info("step %d of %d: %s, %.0f s", step, steps, losses, seconds)


def _optimisers(model: SiglipModel, naming: torch.nn.Linear) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, with which shapes are told apart in far fewer steps, and AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    others = list(naming.parameters())
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embedding" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.1),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _rate(step: int, steps: int) -> float:
    """Share of the full learning rate: up in a line, then down half a cosine to nothing."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + float(np.cos(np.pi * (step - WARM_UP) / max(1, steps - WARM_UP))))


def _batch_losses(
    model: SiglipModel,
    naming: torch.nn.Linear,
    tokenizer: PreTrainedTokenizerFast,
    pixels: Pixels,
    codes: Codes,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of matching images with captions, and of naming each image's colour and shape with the linear layer.

    The second is there because captions alone leave the shapes unlearned for most of so short a run: the text
    tower must first spread its captions out before they can teach the vision tower anything.
    """
    captioned = np.where(_NAMED[rng.choice(len(_NAMED), len(codes), p=_NAMED_SHARES)], codes, _ANY)
    positive = ((captioned[:, None] == _ANY) | (captioned[:, None] == codes[None])).all(axis=2)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    output = model(input_ids=_tokens(tokenizer, [decode(row) for row in captioned]), pixel_values=images)
    names = naming(output.vision_model_output.pooler_output).split([len(COLOURS), len(SHAPES)], dim=1)
    truth = torch.from_numpy(codes)
    named = [torch.nn.functional.cross_entropy(names[kind], truth[:, kind]) for kind in range(2)]
    return matching_loss(output.logits_per_text, torch.from_numpy(positive)), named[0] + named[1]


def _tokens(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Token ids, int64 [captions, TEXT_LENGTH]."""
    tokens: torch.Tensor = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    ).input_ids
    return tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write a checkpoint as the command line says."""
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint on captioned drawings.")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of drawings and weights (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.monotonic()
    train(options.output, options.seed, options.steps)
    logger.info("wrote %s after %.0f s", options.output, time.monotonic() - started)


if __name__ == "__main__":
    main()
