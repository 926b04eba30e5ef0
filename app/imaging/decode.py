"""From the bytes of an inspected photo to the uint8 arrays the models take.

A photo is decoded once, at the smallest scale that still feeds the largest input, and everything after
works on that small image. Where libjpeg can halve its output up to three times, it does so itself; other
formats are decoded whole and averaged down, a band of rows at a time, so that beside the decoded photo no
second one in another mode is ever held.

At 16 MP, the most that is decoded whole, a photo costs one core and above the idle process at the peak: RGBA
PNG 0.3 s and 66 MB, float TIFF 0.23 s and 72 MB, 16-bit TIFF 0.1 s and 35 MB, palette PNG 0.08 s and 19 MB;
lossless RGBA WebP 0.36 s and 258 MB, nearly all of it libwebp's own. A JPEG of 50 MP: 0.2 s and 10 MB;
progressive, 0.3 s and up to 290 MB, since libjpeg keeps all coefficients. At 12 MP, HEIC costs
0.45 s and 90 MB, AVIF 0.2 s and 107 MB.

Colour profiles are ignored: the backbones were trained on images read without them, and a profile is one
more structure that hostile bytes could abuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.guards import ImageInfo, reading
from app.imaging.inputs import InputSpec

Pixels = NDArray[np.uint8]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LUMA_SIDE = 1024  # PDQ looks at 64 × 64 points; this bounds the cost of very long photos
_HASHED_SIDE = 128.0  # no spec may leave fewer pixels than the two points for each of PDQ's 64
_BAND_PIXELS = 1 << 18  # large enough that the loop over bands costs nothing
_REDUCING_GAP = 2  # averaging stops at twice the needed size, so that the resize still sets the quality


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
        # All bytes at once: no copies of pieces, and the GIL, released for each, is asked back only once.
        image.decodermaxblock = len(data)
        image.load()
        factor = max(1, int(min(width, height) / (short_side * _REDUCING_GAP)))
        small = _reduced(image, factor)

    crops = [_centre_crop(small, width / factor, height / factor, spec) for spec in specs]
    luma = small.convert("L")
    if max(luma.size) > _LUMA_SIDE:
        size = min(luma.width, _LUMA_SIDE), min(luma.height, _LUMA_SIDE)
        luma = luma.resize(size, Image.Resampling.BOX)
    return Decoded(
        pixels=tuple(upright(crop, info.orientation) for crop in crops),
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


def _centre_crop(image: Image.Image, width: float, height: float, spec: InputSpec) -> Pixels:
    half = spec.crop_fraction * min(width, height) / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    filtered = image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box=box)  # antialiased
    return np.asarray(filtered)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """The whole image as RGB on white, each side ``factor`` times smaller, rounded up."""
    if factor == 1 and image.mode == "RGB" and not image.has_transparency_data:
        return image
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    span = _span(image, factor) if image.mode in ("I", "F") else (0.0, 0.0)
    for top, band in _bands(image, factor):
        small.paste(_on_white(_averageable(band, span).reduce(factor)), (0, top // factor))
    return small


def _bands(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """Copies of neighbouring rows, multiples of ``factor`` but for the last, each with its top."""
    rows = factor * max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _averageable(image: Image.Image, span: tuple[float, float]) -> Image.Image:
    """The image in a mode whose numbers may be averaged: not an index, a single bit or 16 bits."""
    match image.mode:
        case "I" | "F":  # 32 bits a sample say nothing of where white is
            return _stretched(image, *span)
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


def _span(image: Image.Image, factor: int) -> tuple[float, float]:
    """The least and the greatest finite sample; (inf, -inf) where there is none."""
    low, high = math.inf, -math.inf
    for _, band in _bands(image, factor):
        samples = np.asarray(band, np.float64)
        finite = np.isfinite(samples)
        low = min(low, float(samples.min(where=finite, initial=math.inf)))
        high = max(high, float(samples.max(where=finite, initial=-math.inf)))
    return low, high


def _stretched(image: Image.Image, low: float, high: float) -> Image.Image:
    """A greyscale image in which ``low`` is 0 and ``high`` is 255; so is 0 what is no finite number."""
    samples = np.asarray(image, np.float64)
    finite = np.isfinite(samples)
    scale = 255 / (high - low) if high > low else 0.0
    grey = np.zeros(samples.shape, np.uint8)
    grey[finite] = (samples[finite] - low) * scale
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; where the photo is transparent, on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
