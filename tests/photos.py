"""Photos made on the spot: scikit-image's cup of coffee, in any size, format, mode and orientation."""

import io
from functools import lru_cache
from typing import Any

from PIL import ExifTags, Image
from skimage.data import coffee

_TURN = Image.Transpose
# How an upright picture has to be stored so that a viewer who applies the orientation sees it upright.
STORED = {
    1: None,
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_90,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_270,
}


def coffee_image(width: int = 600, height: int = 400, mode: str = "RGB") -> Image.Image:
    """The upright photo; yours to change."""
    return _coffee(width, height, mode).copy()


@lru_cache(maxsize=16)
def _coffee(width: int, height: int, mode: str) -> Image.Image:
    return Image.fromarray(coffee()).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, image_format: str, orientation: int | None = None, **options: Any) -> bytes:
    """``image`` as a file, stored and tagged for ``orientation`` if one is given."""
    if orientation is not None:
        turn = STORED[orientation]
        image = image if turn is None else image.transpose(turn)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


@lru_cache(maxsize=64)
def coffee_jpeg(
    width: int = 600,
    height: int = 400,
    quality: int = 90,
    orientation: int | None = None,
    progressive: bool = False,
) -> bytes:
    """A JPEG that shows the photo upright at width × height, whatever its EXIF orientation."""
    image = coffee_image(width, height)
    return encoded(image, "JPEG", orientation, quality=quality, progressive=progressive)


def coffee_png(
    width: int = 600, height: int = 400, mode: str = "RGB", orientation: int | None = None
) -> bytes:
    """A PNG of the photo in any mode that PNG has."""
    return encoded(coffee_image(width, height, mode), "PNG", orientation)
