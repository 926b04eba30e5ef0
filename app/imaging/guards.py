"""What may pass as a photo: its type by content, its size by header, before a pixel is decoded."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import (
    AnimatedImage,
    BadImage,
    BodyTooLarge,
    EmptyImage,
    FoodDXError,
    TooFewPixels,
    TooManyPixels,
    TruncatedImage,
    UnsupportedMediaType,
)
from app.imaging import heif

# Decoders are called by class, not through Image.open: no other format can be reached, and an MPO, the
# JPEG with further pictures that phones write, is read as the JPEG it starts with.
DECODERS: dict[str, Callable[[BinaryIO], ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/bmp": BmpImageFile,
    "image/tiff": TiffImageFile,
    heif.HEIC: heif.open_heic,
    heif.AVIF: heif.open_avif,
}

SNIFF_BYTES = heif.SNIFF_BYTES
"""How many bytes from the start of a file ``sniff`` needs."""

_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"II+\0": "image/tiff",  # BigTIFF
    b"MM\0+": "image/tiff",
}

# A progressive JPEG may repeat its scans without end, each one a pass over all its pixels (6 ms for 50 MP):
# 16 MB of them could hold a decoder for hours. Encoders write about 10.
MAX_JPEG_SCANS = 64
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within a scan 00, RST0–7 and FF are not markers

# Pillow walks headers in Python, a few bytes a read: 16 MB of empty segments would hold the interpreter for
# seconds. This many take 0.1 s at most; a PNG of 16 MB in the usual chunks of 8 KiB needs under 10,000.
MAX_READS = 100_000

# What Pillow warns of, the checks below decide. The entry is added once, not inside catch_warnings, which
# is not thread-safe before Python 3.14.
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a photo may measure.

    ``max_pixels_whole`` takes the place of a higher ``max_pixels`` where the decoder cannot scale: a few
    hundred KB of PNG or TIFF would otherwise hold a second of a core, and hundreds of MB, for one photo.
    ``max_pixels_heif`` does so for HEIC and AVIF, where phones write up to 24.5 million.
    """

    max_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_pixels_whole: int = 16_000_000
    max_pixels_heif: int = 25_000_000
    min_side: int = 16

    def pixels_of(self, media_type: str) -> int:
        """How many pixels a photo of ``media_type`` may have."""
        if media_type == "image/jpeg":  # decoded at 1/2, 1/4 or 1/8 where it is large
            return self.max_pixels
        whole = self.max_pixels_heif if media_type in (heif.HEIC, heif.AVIF) else self.max_pixels_whole
        return min(self.max_pixels, whole)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header says.

    ``width`` and ``height`` are in pixels as the viewer sees the photo (upright). ``orientation`` is the
    EXIF value, 1–8, that still has to be applied to the decoded pixels: 1 for TIFF and HEIC, whose decoders
    apply it. ``mode`` is Pillow's name of the pixel format.
    """

    media_type: str
    width: int
    height: int
    orientation: int
    mode: str


def sniff(head: bytes) -> str | None:
    """The media type of a file by its first ``SNIFF_BYTES`` bytes; None if it is not one we read."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    signed = next((media for magic, media in _SIGNATURES.items() if head.startswith(magic)), None)
    return signed or heif.media_type(head)


def recognise(data: bytes) -> str:
    """The media type of a file, by its first bytes: what costs nothing, for whoever wants to know first.

    Raises:
        EmptyImage: no bytes.
        UnsupportedMediaType: not an image type we read.
    """
    if not data:
        raise EmptyImage
    media_type = sniff(data[:SNIFF_BYTES])
    if media_type is None:
        raise UnsupportedMediaType(f"The bytes are none of {', '.join(DECODERS)}")
    return media_type


def inspect(data: bytes, limits: ImageLimits) -> ImageInfo:
    """Check a photo by its header alone.

    Raises:
        EmptyImage: no bytes.
        BodyTooLarge: more than ``limits.max_bytes``.
        UnsupportedMediaType: content of no type we read, whatever its name says.
        TooManyPixels, TooFewPixels: outside ``limits``.
        AnimatedImage: a GIF, PNG, WebP or AVIF of several frames, a HEIC sequence. Stills with further
            pictures (MPO, TIFF pages, HEIC collections) are read as their first, or their primary one.
        TruncatedImage: the data ends within the header.
        BadImage: anything else that keeps the header from being read.
    """
    media_type = recognise(data)
    if len(data) > limits.max_bytes:
        raise BodyTooLarge(f"The photo has {len(data)} bytes; at most {limits.max_bytes} are taken")

    with reading(data, media_type) as image:
        width, height = image.size
        most = limits.pixels_of(media_type)
        if width * height > most:
            raise TooManyPixels(
                f"{width} × {height} is {width * height} pixels; of {media_type} at most {most} are taken"
            )
        if min(width, height) < limits.min_side:
            raise TooFewPixels(f"{width} × {height}: both sides need at least {limits.min_side} pixels")
        if _is_animated(image, data, media_type):
            raise AnimatedImage
        if media_type == "image/jpeg":
            _check_scans(image, data)
        orientation = 1 if media_type in ("image/tiff", heif.HEIC) else _orientation(image)

    if orientation >= 5:  # the stored rows are the viewer's columns
        width, height = height, width
    return ImageInfo(media_type, width, height, orientation, image.mode)


class _BoundedReader(io.BytesIO):
    """A file in memory that gives up on a decoder which reads and reads."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise BadImage("The photo is in too many pieces")
        return super().read(size)


@contextmanager
def reading(data: bytes, media_type: str) -> Iterator[ImageFile]:
    """The opened, not yet decoded image. Whatever Pillow raises in the block becomes a BadImage.

    Its decoders meet hostile bytes with nearly every exception there is (struct.error, KeyError,
    OverflowError, MemoryError, …), so all are caught: keep anything else out of the block.
    """
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield DECODERS[media_type](_BoundedReader(data))
    except FoodDXError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixels from error
    except Exception as error:
        if _ends_early(data, media_type) or _says_truncated(error):
            raise TruncatedImage from error
        raise BadImage from error


def _is_animated(image: ImageFile, data: bytes, media_type: str) -> bool:
    if media_type == heif.HEIC:
        return heif.is_sequence(data[:SNIFF_BYTES])
    return media_type != "image/tiff" and getattr(image, "is_animated", False)


def _orientation(image: ImageFile) -> int:
    """The EXIF orientation, 1 where there is none or none that can be read.

    Asked of the base class, because Pillow's PNG decodes all pixels to look for EXIF data behind them.
    """
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - broken metadata does not make a photo unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_scans(image: ImageFile, data: bytes) -> None:
    """Refuse a JPEG whose first picture has more than ``MAX_JPEG_SCANS`` scans."""
    header_end = image.fp.tell() if image.fp else 0  # Pillow has just read the header of the first scan
    at = data.rfind(_START_OF_SCAN, 0, header_end)
    if not image.info.get("progressive") and data[at + 4] == len(image.getbands()):
        return  # one scan with all components, after which libjpeg takes no other
    if data.count(_START_OF_SCAN, at) <= MAX_JPEG_SCANS:  # what follows the picture only adds to the count
        return
    scans = 0
    while found := _JPEG_MARKER.search(data, at):
        marker, at = found[0], found.end()
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            raise BadImage(f"The photo is a JPEG of more than {MAX_JPEG_SCANS} scans")
        at += int.from_bytes(data[at : at + 2])  # over the segment, which counts its own length


def _ends_early(data: bytes, media_type: str) -> bool:
    """Whether the end that the format asks for is missing. TIFF asks for none."""
    match media_type:
        case "image/jpeg":
            return data.rfind(_END_OF_IMAGE) <= data.rfind(_START_OF_SCAN)
        case "image/png":
            return b"IEND" not in data
        case "image/webp":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        case "image/gif":
            return not data.endswith(b"\0;")  # the end of the last block, and the trailer
        case "image/bmp":
            return int.from_bytes(data[2:6], "little") > len(data)
        case heif.HEIC | heif.AVIF:
            return heif.ends_early(data)
    return False


def _says_truncated(error: Exception) -> bool:
    return isinstance(error, EOFError) or "truncated" in str(error).lower()
