"""From the bytes of an inspected photo to the uint8 arrays the models take.

A photo is decoded once, at the smallest scale that still feeds the largest input, and everything after
works on that small image. Where libjpeg can halve its output up to three times, it does so itself; other
formats are decoded whole and averaged down.

Colour profiles are ignored: the backbones were trained on images read without them, and a profile is one
more structure that hostile bytes could abuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.guards import ImageInfo, reading

Pixels = NDArray[np.uint8]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LUMA_SIDE = 1024  # PDQ looks at 64 × 64 points; this bounds the cost of very long photos
_HASHED_SIDE = 128.0  # no spec may leave fewer pixels than the two points for each of PDQ's 64
_REDUCING_GAP = 2  # averaging stops at twice the needed size, so that the resize still sets the quality


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One model's input: a centre crop of the upright photo, resized to ``size`` × ``size`` RGB.

    The crop is a square with ``crop_fraction`` of the photo's shorter side. 0.875 = 224/256 is the usual
    ImageNet evaluation: resize the shorter side to 256, crop 224 from the centre.
    """

    size: int
    crop_fraction: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.crop_fraction <= 1 or self.interpolation not in _FILTERS:
            raise ValueError(f"not a usable input: {self}")

    @property
    def short_side(self) -> float:
        """The shorter side, in pixels, of the smallest photo that need not be enlarged for this input."""
        return self.size / self.crop_fraction


@dataclass(frozen=True, slots=True)
class Decoded:
    """``pixels``: one C-contiguous (size, size, 3) uint8 RGB array per spec. ``luma``: the whole photo.

    Both are upright. ``luma`` is (height, width) uint8, ITU-R 601, at most 1024 on a side; its aspect ratio
    need not be the photo's.
    """

    pixels: tuple[Pixels, ...]
    luma: Pixels


def decode(data: bytes, info: ImageInfo, specs: Sequence[InputSpec]) -> Decoded:
    """Decode ``data``, which ``inspect`` described as ``info``, for every spec at once.

    Raises:
        TruncatedImage: the data ends before the pixels do.
        BadImage: the pixels cannot be decoded, or their colour space is one we cannot turn to RGB.
    """
    short_side = max([_HASHED_SIDE, *(spec.short_side for spec in specs)])
    with reading(data, info.media_type) as image:
        # draft() scales by 1/8, 1/4 or 1/2 within JPEG's inverse DCT; other formats have no such thing.
        # It rounds sizes up; its box says where, in the small image, the photo really ends.
        drafted = image.draft("RGB", (math.ceil(short_side),) * 2)
        width, height = drafted[1][2:] if drafted else image.size
        image.load()
        small = _averageable(image)

    factor = int(min(width, height) / (short_side * _REDUCING_GAP))
    if factor > 1:
        small = small.reduce(factor)
        width, height = width / factor, height / factor
    small = _on_white(small)
    crops = [_centre_crop(small, width, height, spec) for spec in specs]
    luma = small.convert("L")
    if max(luma.size) > _LUMA_SIDE:
        size = min(luma.width, _LUMA_SIDE), min(luma.height, _LUMA_SIDE)
        luma = luma.resize(size, Image.Resampling.BOX)
    return Decoded(
        pixels=tuple(upright(np.asarray(crop), info.orientation) for crop in crops),
        luma=upright(np.asarray(luma), info.orientation),
    )


def upright(stored: Pixels, orientation: int) -> Pixels:
    """Turn stored rows and columns into what the viewer sees, by EXIF orientation 1–8; C-contiguous.

    A centre crop keeps its place under all eight, so turning the crop equals cropping the turned photo.
    """
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


def _centre_crop(image: Image.Image, width: float, height: float, spec: InputSpec) -> Image.Image:
    half = spec.crop_fraction * min(width, height) / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    return image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box=box)  # antialiased


def _averageable(image: Image.Image) -> Image.Image:
    """The image in a mode whose numbers may be averaged: not an index, a single bit or 16 bits."""
    match image.mode:
        case "I" | "F":  # 32 bits a sample say nothing of where white is
            return _stretched(np.asarray(image))
        case mode if mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    match image.mode:
        case "1":
            return image.convert("L")
        case "P":
            return image.convert("RGB")
    return image


def _stretched(samples: NDArray[np.int32] | NDArray[np.float32]) -> Image.Image:
    """A greyscale image whose darkest finite sample is 0 and whose brightest is 255."""
    finite = np.isfinite(samples)
    inside = samples[finite]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    grey = np.zeros(samples.shape, np.uint8)
    grey[finite] = (inside - low) * scale
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; where the photo is transparent, on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
