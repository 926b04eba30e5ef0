"""Which JPEGs may be decoded on the GPU, and what is left of them for it. Imports no torch.

nvJPEG meets bytes of strangers in the process that holds the models, and has crashed on broken EXIF data
before (NVIDIA/CUDALibrarySamples#116). So it is given only what every camera writes, and of that only what
pixels need: no metadata, nothing after the picture. All else takes the CPU's way, with its errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.imaging.guards import ImageInfo  # whoever decodes on a GPU needs no image library

_START, _END = b"\xff\xd8", b"\xff\xd9"
_BASELINE, _SCAN, _ADOBE = 0xC0, 0xDA, 0xEE
_NEEDED = {_BASELINE, _SCAN, 0xC4, 0xDB, 0xDD}  # frame, scan, Huffman tables, quantisation tables, restarts
_OTHER_FRAMES = set(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}  # progressive, 12 bits, arithmetic, lossless, …
_SAMPLING = {0x11, 0x21, 0x12, 0x22}  # 4:4:4, 4:2:2, 4:4:0, 4:2:0
_RGB_NAMES = b"RGB"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within a scan 00, RST0–7 and FF are not markers


@dataclass(frozen=True, slots=True)
class BareJpeg:
    """A baseline JPEG without metadata: its measures as stored, and the EXIF orientation it had, 1–8."""

    data: bytes
    width: int
    height: int
    orientation: int


def bare_jpeg(data: bytes, info: ImageInfo) -> BareJpeg | None:
    """What the GPU gets of ``data``, which ``inspect`` described as ``info``; None if it should not get it.

    Taken are baseline JPEGs of 8 bits in grey or YCbCr, with one scan of all components and the usual chroma
    subsampling, that end with an end-of-image marker. (ITU-T T.81, annex B, has the syntax.)
    """
    if info.media_type != "image/jpeg":
        return None
    stored = (info.height, info.width) if info.orientation >= 5 else (info.width, info.height)
    parts = [_START]
    components = 0
    at = len(_START)
    while len(data) >= at + 4 and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # padding
            at += 1
            continue
        body = data[at + 4 : end]
        if marker in _OTHER_FRAMES or (marker == _ADOBE and not _is_ycbcr(body)):
            return None
        if marker == _BASELINE:
            if components or not _is_usual(body) or _measures(body) != stored:
                return None
            components = body[5]
        if marker in _NEEDED:
            parts.append(data[at:end])
        if marker == _SCAN:
            after = _MARKER.search(data, end)
            if not components or body[:1] != bytes([components]) or not after or after[0] != _END:
                return None
            parts.append(data[end : after.end()])
            return BareJpeg(b"".join(parts), *stored, info.orientation)
        at = end
    return None


def _is_usual(frame: bytes) -> bool:
    """Whether a frame header (8 bits, height, width, components of three bytes each) is one we hand on."""
    if len(frame) < 6 or frame[0] != 8 or len(frame) != 6 + 3 * frame[5]:
        return False
    names, sampling = frame[6::3], frame[7::3]
    if len(names) == 1:
        return sampling[0] == 0x11
    return (
        len(names) == 3 and names != _RGB_NAMES and sampling[0] in _SAMPLING and sampling[1:] == b"\x11\x11"
    )


def _measures(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])


def _is_ycbcr(app14: bytes) -> bool:
    """Whether an APP14 segment leaves the colours at YCbCr: no Adobe marker, or one with transform 1."""
    return not app14.startswith(b"Adobe") or (len(app14) >= 12 and app14[11] == 1)
