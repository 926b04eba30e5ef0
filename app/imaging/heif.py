"""HEIC and AVIF, the formats of newer phones: two kinds of HEIF file, told apart by their brands.

Their decoders are loaded when the first such photo comes: HEIC's takes up to 30 ms and 5 MB, which a service
that sees only JPEGs never pays. Both run in one thread, so that a photo costs one core, as of other formats.

Neither can decode at a reduced scale. The thumbnail that many HEIC files carry is not used in place of the
photo: it may be too small for the models, and nothing makes it show what the photo shows.

A HEIC whose picture is larger than its header says is refused by libheif before it is decoded. An AVIF is
not: libavif decodes up to 268 million pixels and scales them to what the header says (144 million of one
colour: 0.3 s and 260 MB).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from PIL.ImageFile import ImageFile

HEIC, AVIF = "image/heic", "image/avif"

SNIFF_BYTES = 64
"""How many bytes from the start of a file ``media_type`` looks at: a brand and 12 compatible ones."""

_SEQUENCE_BRANDS = frozenset((b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"))
_CODING_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), HEIC),
    **dict.fromkeys(_SEQUENCE_BRANDS - {b"msf1"}, HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
}

_MAX_BOXES = 64  # at the top level of a file; phones write three or four


def media_type(head: bytes) -> str | None:
    """``HEIC`` or ``AVIF`` by the brands in a file's first bytes; None if it is neither.

    The major brand ``mif1`` says no more than "a HEIF file": then the first compatible brand that names a
    coding decides.
    """
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4]), SNIFF_BYTES, len(head))
    brands = (head[8:12], *(head[at : at + 4] for at in range(16, end, 4)))
    return next((_CODING_BRANDS[brand] for brand in brands if brand in _CODING_BRANDS), None)


def is_sequence(head: bytes) -> bool:
    """Whether a HEIC file calls itself, first of all, a sequence of pictures."""
    return head[8:12] in _SEQUENCE_BRANDS


def ends_early(data: bytes) -> bool:
    """Whether the last box at the top level ends behind the data."""
    at = 0
    for _ in range(_MAX_BOXES):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        elif size == 0:  # to the end of the file
            return at >= len(data) and at > 0
        at += max(size, 8)
        if at >= len(data):
            break
    return at > len(data)


def open_heic(file: BinaryIO) -> ImageFile:
    """A HEIC file's primary picture, not yet decoded; the decoder turns and mirrors it as the file says."""
    from pillow_heif import options  # noqa: PLC0415
    from pillow_heif.as_plugin import HeifImageFile  # noqa: PLC0415

    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    opened: Callable[[BinaryIO], ImageFile] = HeifImageFile  # which has no types of its own
    return opened(file)


def open_avif(file: BinaryIO) -> ImageFile:
    """An AVIF file, not yet decoded; its EXIF orientation is what the file says the viewer has to turn."""
    from PIL import AvifImagePlugin  # noqa: PLC0415

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return AvifImagePlugin.AvifImageFile(file)
