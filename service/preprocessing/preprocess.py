"""An RGB image -> uint8 pixels `[S, S, 3]`, as the checkpoint's own image processor says.

Comes in: uint8 RGB pixels `[H, W, 3]`. Goes out: resized uint8 pixels, upright; rescaling and normalising are the
device's work, and only their two constants stand here. It must not know of encoded bytes, threads or models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from service.errors import StartupFault

# Of what this package and its libraries make of an image. It is part of the fingerprint: raise it where any pixels
# become others by more than rounding, or clients go on comparing embeddings that are not comparable any more.
PIXELS_VERSION = 1

_PROCESSOR_TYPES = ("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil")
_CARRIED_OUT = {
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
}
# Keys that change no pixel here: names, the form of the reference's output, and sizes that only a switch brings alive.
_WITHOUT_EFFECT = {
    "image_processor_type", "processor_class", "do_convert_rgb", "default_to_square", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "crop_size", "pad_size",
}  # fmt: skip
# torch's own Pillow-like filters for uint8, vectorised: three to four times as fast as Pillow's, within 1 or 2 of 255.
# Not by torch.ops, which lets go of the GIL once more. torch's stubs leave out the overload with `out`.
_TORCH_FILTERS: Mapping[Image.Resampling, Callable[..., torch.Tensor]] = {
    Image.Resampling.BILINEAR: torch._C._nn._upsample_bilinear2d_aa,
    Image.Resampling.BICUBIC: torch._C._nn._upsample_bicubic2d_aa,
}
# What turns an image's height into its width.
_ON_SIDE = (
    Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
)  # fmt: skip


@dataclass(frozen=True)
class Preprocessor:
    """The checkpoint's image processor, split between the host (resize) and the device (rescale and normalise).

    Safe to share between threads.

    Attributes:
        size: S, the side in pixels of the square that every image is resized to.
        resample: Pillow's resampling filter.
        scale, offset: per RGB channel; the model's pixel values are `pixels * scale - offset`, which is the
            reference's `(pixels * rescale_factor - image_mean) / image_std`.
        exact: resize with Pillow, bit for bit as the reference does, and not with torch's faster filters.
    """

    size: int
    resample: Image.Resampling
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    exact: bool = False

    @classmethod
    def from_pretrained(cls, checkpoint: str, revision: str | None = None, exact: bool = False) -> "Preprocessor":
        """Read the image processor configuration of a hub id or folder.

        Raises:
            StartupFault: it is missing, or it asks for something that is not carried out here.
        """
        try:
            config, _ = SiglipImageProcessorPil.get_image_processor_dict(checkpoint, revision=revision)
            if not isinstance(config, dict):
                raise ValueError("it holds something else than settings")
        except Exception as error:  # the reader takes any JSON for settings
            raise StartupFault(f"checkpoint {checkpoint!r} has no readable preprocessor_config.json") from error
        return cls.from_config(config, exact)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], exact: bool = False) -> "Preprocessor":
        """Build from the content of a `preprocessor_config.json`; what it leaves out has `transformers`' defaults.

        Raises:
            StartupFault: a key or a value that is not carried out here, by its name.
        """
        _refuse_unknown(config)

        def value(key: str) -> Any:
            return config.get(key, getattr(SiglipImageProcessorPil, key))

        _require(value("do_resize") is True, "do_resize", value("do_resize"))
        rescale = _numbers("rescale_factor", [value("rescale_factor")], 1)[0] if value("do_rescale") else 1.0
        mean = _numbers("image_mean", value("image_mean"), 3) if value("do_normalize") else [0.0] * 3
        std = _numbers("image_std", value("image_std"), 3) if value("do_normalize") else [1.0] * 3
        _require(all(std), "image_std", std)
        resample = _resampling(value("resample"))
        return cls(
            size=_square_side(value("size")),
            resample=resample,
            scale=tuple(rescale / s for s in std),
            offset=tuple(m / s for m, s in zip(mean, std, strict=True)),
            exact=exact or resample not in _TORCH_FILTERS,
        )

    @property
    def least_side(self) -> int | None:
        """The least side, in pixels, that a JPEG may be decoded at; None where every pixel counts.

        From three times S the resized pixels of photographs differ by 0.1 to 0.3 of 255 on average from those of the
        full size, from twice S by up to 0.4; by up to 0.5 where colours are halved in width already, as in 4:2:2, and
        reduced as much as the brightness.
        """
        return None if self.exact else 3 * self.size

    def resize_into(
        self,
        square: npt.NDArray[np.uint8],
        pixels: npt.NDArray[np.uint8],
        extent: tuple[float, float],
        transpose: Image.Transpose | None = None,
    ) -> None:
        """Resize `pixels` (uint8 RGB `[H, W, 3]`), turn them upright, and write them into `square` (uint8 `[S, S, 3]`).

        Args:
            extent: width and height of the picture in `pixels`, from its upper left corner.
            transpose: what turns the image upright.
        """
        if self.exact:
            # The reference resizes the upright image, and its two passes do not round alike in the other order.
            upright = _turn(Image.fromarray(pixels), transpose)
            square[...] = np.asarray(upright.resize((self.size, self.size), self.resample))
        else:
            self._resize_into(square, pixels, extent, self._is_height_first(extent, transpose))
            if transpose is not None:  # the small result is turned at a fraction of the cost of turning the image
                square[...] = np.asarray(_turn(Image.fromarray(square), transpose))

    def _is_height_first(self, extent: tuple[float, float], transpose: Image.Transpose | None) -> bool:
        """Whether Pillow, of the upright image, resizes first what is the height here.

        That of a tall and narrow image it does first, of any other the width; in the other order the two passes neither
        round nor clip alike.
        """
        width, height = extent[::-1] if transpose in _ON_SIDE else extent
        is_tall = height - self.size > 2 * max(width - self.size, 0)
        return is_tall != (transpose in _ON_SIDE)

    def _resize_into(
        self,
        square: npt.NDArray[np.uint8],
        pixels: npt.NDArray[np.uint8],
        extent: tuple[float, float],
        is_height_first: bool,
    ) -> None:
        scales = self.size / extent[1], self.size / extent[0]
        if is_height_first:
            low = np.empty((self.size, *pixels.shape[1:]), np.uint8)
            self._filter_into(low, pixels, (scales[0], 1.0))
            pixels, scales = low, (1.0, scales[1])
        self._filter_into(square, pixels, scales)

    def _filter_into(
        self, target: npt.NDArray[np.uint8], pixels: npt.NDArray[np.uint8], scales: tuple[float, float]
    ) -> None:
        """One operator, which writes where the result belongs: each lets go of the GIL, and must get it back."""
        size = target.shape[:2]
        _TORCH_FILTERS[self.resample](_channels_first(pixels), size, False, *scales, out=_channels_first(target))


def _channels_first(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """The same memory, uint8 `[H, W, 3]`, as `[1, 3, H, W]`."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[np.newaxis])


def _turn(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    processor_type = config.get("image_processor_type", _PROCESSOR_TYPES[0])
    _require(processor_type in _PROCESSOR_TYPES, "image_processor_type", processor_type)
    for key, value in config.items():
        harmless = key in _CARRIED_OUT | _WITHOUT_EFFECT or key.startswith("_")
        _require(harmless or value in (None, False), key, value)


def _square_side(size: Any) -> int:
    square = isinstance(size, Mapping) and set(size) == {"height", "width"} and size["height"] == size["width"]
    _require(square and type(size["height"]) is int and size["height"] > 0, "size", size)
    return int(size["height"])


def _resampling(value: Any) -> Image.Resampling:
    _require(value in list(Image.Resampling) and not isinstance(value, bool), "resample", value)
    return Image.Resampling(value)


def _numbers(key: str, values: Any, count: int) -> list[float]:
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    _require(numbers and len(values) == count, key, values)
    return [float(value) for value in values]


def _require(understood: bool, key: str, value: Any) -> None:
    if not understood:
        raise StartupFault(f"the checkpoint's image processor asks for {key} = {value!r}, which is not supported here")
