"""What goes wrong with phone photos, one thing at a time, at one stated strength each: how robust is a model?

Functions from a Pillow RGB photo to another, pure but for the generator they are given. After Hendrycks and
Dietterich 2019 (arXiv:1903.12261), with the corruptions a kitchen brings in place of theirs.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Corrupt = Callable[[Image.Image, np.random.Generator], Image.Image]

SHORT_SIDE = 512
"""Photos are brought down to this many pixels first: a blur or JPEG's blocks would else mean something else
for 12 MP than for a thumbnail."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way to spoil a photo; ``strength`` says how much, for the reader of a report."""

    name: str
    strength: str
    apply: Corrupt


def blur(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    """Out of focus: a Gaussian whose standard deviation is 1 % of the shorter side."""
    return photo.filter(ImageFilter.GaussianBlur(0.01 * min(photo.size)))


def dark(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    """Three stops too dark: an eighth of the light; sRGB taken as a power of 2.2."""
    return _per_channel(photo, ((1 / 8) ** (1 / 2.2),) * 3)


def warm_light(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    """A lamp's light that the camera left as it was: red × 1.2, green × 1, blue × 0.65."""
    return _per_channel(photo, (1.2, 1.0, 0.65))


def rotation(photo: Image.Image, draw: np.random.Generator, *, degrees: float) -> Image.Image:
    """Tilted by ``degrees`` (under 45) to a side drawn at random, in a frame of the same size.

    What comes in at the corners is the photo mirrored at its edges: black corners are not what a phone sees,
    and cutting them off would enlarge the meal.
    """
    # No point of the frame comes from further outside it than half its length times the sine; one pixel more
    # for the interpolation.
    border = math.ceil(max(photo.size) / 2 * math.sin(math.radians(degrees))) + 1
    around = ((border, border), (border, border), (0, 0))
    mirrored = Image.fromarray(np.pad(np.asarray(photo), around, "reflect"))
    turned = mirrored.rotate(degrees * draw.choice([-1, 1]), Image.Resampling.BICUBIC)
    return turned.crop((border, border, border + photo.width, border + photo.height))


def off_centre(photo: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Aimed badly: 75 % of each side is left, in a corner drawn at random."""
    width, height = (max(1, round(0.75 * side)) for side in photo.size)
    left, top = draw.integers(0, 2, 2) * (photo.width - width, photo.height - height)
    return photo.crop((int(left), int(top), int(left) + width, int(top) + height))


def jpeg(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    """Compressed hard: JPEG of quality 15."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=15)
    return Image.open(file).convert("RGB")


def small(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    """A thumbnail: the shorter side is 96 pixels."""
    return _shrunk(photo, 96)


def unchanged(photo: Image.Image, _: np.random.Generator) -> Image.Image:
    """Nothing: what the others are compared with, since bringing a photo down to size changes it too."""
    return photo


CORRUPTIONS = (
    Corruption("none", "as taken", unchanged),
    Corruption("blur", "Gaussian, standard deviation 1 % of the shorter side", blur),
    Corruption("dark", "three stops under-exposed", dark),
    Corruption("warm light", "red × 1.2, blue × 0.65", warm_light),
    Corruption("rotated 5°", "to either side, corners mirrored", partial(rotation, degrees=5)),
    Corruption("rotated 10°", "to either side, corners mirrored", partial(rotation, degrees=10)),
    Corruption("off-centre", "a corner with 75 % of each side", off_centre),
    Corruption("JPEG", "quality 15 at 512 px", jpeg),
    Corruption("small", "shorter side 96 px", small),
)
"""Every corruption, the unharmed photo first."""


def corrupted(data: bytes, corruption: Corruption) -> bytes:
    """A photo's file → a file, lossless, of the photo upright, at SHORT_SIDE at most, and corrupted.

    The same photo always meets with the same fate, whatever is evaluated beside it.

    Raises:
        OSError: Pillow cannot read the photo.
    """
    with Image.open(io.BytesIO(data)) as stored:
        photo = _shrunk(ImageOps.exif_transpose(stored).convert("RGB"), SHORT_SIDE)
    seed = hashlib.sha256(corruption.name.encode() + b"\0" + data).digest()
    file = io.BytesIO()
    corruption.apply(photo, np.random.default_rng(int.from_bytes(seed))).save(file, "BMP")
    return file.getvalue()


def _shrunk(photo: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(photo.size)
    if scale >= 1:
        return photo
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)


def _per_channel(photo: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    table = [min(255, round(value * factor)) for factor in factors for value in range(256)]
    return photo.point(table)
