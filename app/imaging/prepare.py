"""The one call that turns an uploaded photo into what the models and the result need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.imaging.decode import Pixels, decode
from app.imaging.guards import ImageInfo, ImageLimits, inspect
from app.imaging.hashes import pdq
from app.imaging.inputs import InputSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photo ready to be scored: ``pixels`` holds one (size, size, 3) uint8 RGB array per spec."""

    info: ImageInfo
    pdq: str
    pixels: tuple[Pixels, ...]


def prepare(data: bytes, limits: ImageLimits, specs: Sequence[InputSpec]) -> Prepared:
    """Inspect, decode once, crop for every spec, and hash what the photo shows.

    Raises:
        BodyTooLarge, UnsupportedMediaType, BadImage: see ``inspect`` and ``decode``; nothing else.
    """
    info = inspect(data, limits)
    decoded = decode(data, info, specs)
    return Prepared(info, pdq(decoded.luma), decoded.pixels)
