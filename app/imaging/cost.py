"""What a photo will cost to decode, told from its header in microseconds, before anyone decodes it.

The time is linear in what the decoder works on: the pixels it makes and the bytes it unpacks. The rates below
are fitted to photos of 0.3 to 12 MP at several qualities, one core of a 2.6 GHz AMD EPYC (Zen 5); most of
them come within a third, small files and palette PNGs do not, and a progressive JPEG's scans are not counted.
Other machines differ by a factor that all formats share, roughly, so the figures compare photos anywhere and
time them only there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from app.imaging import heif
from app.imaging.guards import SNIFF_BYTES, sniff

UNKNOWN_MS = 200.0
"""Said of a file whose type is known and whose size is not where it should be: broken, or hiding it.

Too slow to go with the quick ones, too quick to be given up unread: decoding tells what is wrong with it.
"""


@dataclass(frozen=True, slots=True)
class _Rate:
    """Milliseconds per million pixels of the photo and per million bytes of the file."""

    pixels: float
    bytes: float = 0.0

    def ms(self, pixels: int, size: int) -> float:
        return _ANY_MS + (self.pixels * pixels + self.bytes * size) / 1e6


_ANY_MS = 2.0  # the checks, the last resize and the hash

_BASELINE, _PROGRESSIVE = _Rate(0.4, 6.5), _Rate(1.2, 29.0)
_LOSSY, _LOSSLESS = _Rate(7.5, 37.0), _Rate(12.0, 8.0)
_HEIC, _AVIF = _Rate(10.0, 100.0), _Rate(4.5, 85.0)
_GIF, _BMP = _Rate(8.0), _Rate(3.0)
_TIFF = _Rate(14.0)  # of 32-bit floats, the slowest; a tag more to read would tell
_PNG_PIXEL, _PNG_BYTE = 5.0, 5.0  # per million pixels, and per million bytes unpacked

_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_INTERLACED = 1.5
_MAX_SEGMENTS = 256  # before a JPEG's frame header; 16 MB of the largest
_MAX_TAGS = 64  # of a TIFF; size comes among the first
_META_BYTES = 1 << 15  # a HEIF file of 400 tiles describes itself in 20 KB


SLOW_MS = 20.0
"""Five times as long as a photo of a megapixel; what takes longer shares neither a call nor a thread."""


def is_slow(data: bytes) -> bool:
    """Whether a photo is better kept apart from those it would hold up."""
    return expected_ms(data) > SLOW_MS


def expected_ms(data: bytes) -> float:
    """How many milliseconds of one core ``prepare`` will take for this photo, at least 0.

    Reads the header alone, a bounded number of steps whatever the bytes are, and never raises. What is no
    image costs nothing: it is refused at once. That pixels are within their caps, it does not check.
    """
    media_type = sniff(data[:SNIFF_BYTES])
    if media_type is None:
        return 0.0
    try:
        return _COSTS[media_type](data)
    except (struct.error, IndexError, OverflowError):  # the header ends early, or points beyond any file
        return UNKNOWN_MS


def _jpeg(data: bytes) -> float:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker = data[at + 1]
        if data[at] != 0xFF:
            return UNKNOWN_MS
        if marker == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header, of 13 kinds
            height, width = struct.unpack_from(">HH", data, at + 5)
            rate = _BASELINE if marker in (0xC0, 0xC1) else _PROGRESSIVE
            return rate.ms(width * height, len(data))
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + length
    return UNKNOWN_MS


def _png(data: bytes) -> float:
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    unpacked = _PNG_SAMPLES.get(colour, 4) * depth / 8
    rate = (_PNG_PIXEL + _PNG_BYTE * unpacked) * (_INTERLACED if interlace else 1.0)
    return _Rate(rate).ms(width * height, len(data))


def _webp(data: bytes) -> float:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        rate = _LOSSLESS if b"VP8L" in data[30:_META_BYTES] else _LOSSY
    elif chunk == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        width, height, rate = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, _LOSSLESS
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        rate = _LOSSY
    return rate.ms(width * height, len(data))


def _gif(data: bytes) -> float:
    width, height = struct.unpack_from("<HH", data, 6)
    return _GIF.ms(width * height, len(data))


def _bmp(data: bytes) -> float:
    width, height = struct.unpack_from("<ii" if data[14] >= 40 else "<HH", data, 18)
    return _BMP.ms(abs(width * height), len(data))


def _tiff(data: bytes) -> float:
    end = "<" if data[:2] == b"II" else ">"
    if data[2] == 43 or data[3] == 43:  # BigTIFF
        directory, count, tag = struct.unpack_from(end + "Q", data, 8)[0], "Q", "HHQQ"
    else:
        directory, count, tag = struct.unpack_from(end + "I", data, 4)[0], "H", "HHII"
    (tags,) = struct.unpack_from(end + count, data, directory)
    first = directory + struct.calcsize(end + count)
    sides = {}
    for at in range(min(tags, _MAX_TAGS)):
        name, kind, _, value = struct.unpack_from(end + tag, data, first + at * struct.calcsize(end + tag))
        if name in (256, 257):
            short = kind == 3 and end == ">"  # a big-endian short stands at the front of its field
            sides[name] = value >> 8 * (struct.calcsize(tag[-1]) - 2) if short else value
    if len(sides) < 2:
        return UNKNOWN_MS
    return _TIFF.ms(sides[256] * sides[257], len(data))


def _heif(data: bytes, rate: _Rate) -> float:
    """The largest of the pictures it holds: of a grid and its tiles, the grid."""
    pixels, at = 0, 0
    for _ in range(_MAX_SEGMENTS):
        at = data.find(b"ispe", at, _META_BYTES) + 1
        if not at:
            break
        width, height = struct.unpack_from(">II", data, at + 7)
        pixels = max(pixels, width * height)
    return rate.ms(pixels, len(data)) if pixels else UNKNOWN_MS


_COSTS: dict[str, Callable[[bytes], float]] = {
    "image/jpeg": _jpeg,
    "image/png": _png,
    "image/webp": _webp,
    "image/gif": _gif,
    "image/bmp": _bmp,
    "image/tiff": _tiff,
    heif.HEIC: lambda data: _heif(data, _HEIC),
    heif.AVIF: lambda data: _heif(data, _AVIF),
}
