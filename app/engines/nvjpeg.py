"""JPEGs in, model inputs out, without leaving the GPU: for nodes where CPU decoders are the limit.

A photo is decoded whole by nvJPEG, averaged down by the factor that libjpeg and Pillow would have reached
together, cropped and resized with Pillow's own filters. Only a small luma comes back, for the perceptual
hash.

Decoding is torchvision's, which has deprecated it in favour of TorchCodec; only ``_decode_all`` knows that.
"""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from app.engines import EngineError
from app.imaging.bare import BareJpeg
from app.imaging.hashes import pdq
from app.imaging.inputs import InputSpec

MAX_PIXELS_AT_ONCE = 64_000_000
"""Decoded at a time: 192 MB of bytes, beside what nvJPEG takes. One larger photo goes alone."""

_HASHED_SIDE = 128.0  # as on the CPU: at least two points for each of PDQ's 64
_REDUCING_GAP = 2  # as on the CPU: averaging stops at twice the needed size
_LUMA_SIDE = 1024
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
_MATRICES_KEPT = 64  # of at most half a megabyte each; photos come in few sizes

# Added once, not within catch_warnings, which is not thread-safe before Python 3.14.
_DEPRECATION = "The image decoding and encoding capabilities of TorchVision"
_IGNORED = ("ignore", re.compile(_DEPRECATION, re.IGNORECASE), DeprecationWarning, None, 0)


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Photos that are ready to be scored.

    Attributes:
        kept: places, among the given photos, of those that could be decoded, ascending.
        pixels: for each spec uint8 (len(kept), size, size, 3) on the device, complete.
        pdq: for each kept photo its perceptual hash, see ``app.imaging.hashes``.
    """

    kept: tuple[int, ...]
    pixels: tuple[torch.Tensor, ...]
    pdq: tuple[str, ...]


class JpegDecoder:
    """Decodes batches of JPEGs for the given inputs, one batch at a time; more callers wait.

    torchvision 0.29 allocates on the caller's stream and lets nvJPEG write on another at once, whatever the
    caller's stream still has to read there (pytorch/vision#9606); nvJPEG's hardware engine does so by itself
    (meta-pytorch/torchcodec#1634). Hence a stream of our own that is idle before each decode.
    """

    def __init__(self, specs: Sequence[InputSpec], *, device: str = "cuda") -> None:
        """``device``: a torch device name; "cpu" decodes with libjpeg, for tests. Raises EngineError."""
        self._specs = tuple(specs)
        self._device = torch.device(device)
        self._short_side = max([_HASHED_SIDE, *(spec.short_side for spec in specs)])
        self._one_call = threading.Lock()
        self._matrix = lru_cache(_MATRICES_KEPT)(self._make_matrix)
        try:
            on_cuda = self._device.type == "cuda"
            self._stream = torch.cuda.Stream(self._device) if on_cuda else None  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f"photos cannot be decoded on {device}: {error}") from error

    def decode(self, photos: Sequence[BareJpeg]) -> OnDevice:
        """Decode, crop, resize, turn upright and hash photos; those that cannot be decoded are left out.

        Which of them are broken and which only unusual, the CPU's decoder can tell. Raises EngineError when
        the device fails.
        """
        kept: list[int] = []
        inputs: list[list[torch.Tensor]] = [[] for _ in self._specs]
        lumas: list[torch.Tensor] = []
        try:
            with self._one_call, torch.inference_mode(), torch.cuda.stream(self._stream):
                for places in _groups(photos):
                    for place, planes in zip(places, self._decoded([photos[i] for i in places]), strict=True):
                        if planes is None:
                            continue
                        factor = _factor(planes.shape[2], planes.shape[1], self._short_side)
                        small = _averaged(planes, factor, factor)
                        for spec, made in zip(self._specs, inputs, strict=True):
                            pixels = self._cropped(small, photos[place], factor, spec)
                            made.append(_upright(pixels, photos[place].orientation))
                        luma = _upright(_luma(small), photos[place].orientation)
                        lumas.append(luma.to("cpu", non_blocking=True))
                        kept.append(place)
                stacked = tuple(
                    torch.stack(made) if made else self._none(spec)
                    for made, spec in zip(inputs, self._specs, strict=True)
                )
                self._wait()
        except RuntimeError as error:
            raise EngineError(f"decoding on {self._device} failed: {error}") from error
        return OnDevice(tuple(kept), stacked, tuple(pdq(luma.contiguous().numpy()) for luma in lumas))

    def _decoded(self, photos: Sequence[BareJpeg]) -> list[torch.Tensor | None]:
        """uint8 (3, height, width) of each photo; None where it cannot be decoded."""
        self._wait()
        try:
            return list(_decode_all(photos, self._device))
        except RuntimeError:  # where it was the device, and not a photo, the next wait raises
            if len(photos) == 1:
                return [None]
        return [planes for photo in photos for planes in self._decoded([photo])]

    def _wait(self) -> None:
        """Until nothing is under way on the own stream, without the GIL."""
        if self._stream:
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._stream)
            done.synchronize()

    def _cropped(self, small: torch.Tensor, photo: BareJpeg, factor: int, spec: InputSpec) -> torch.Tensor:
        """The centre crop of a spec, uint8 (size, size, 3)."""
        width, height = photo.width / factor, photo.height / factor
        half = spec.crop_fraction * min(width, height) / 2
        left, columns = self._matrix(small.shape[2], width / 2 - half, width / 2 + half, spec)
        top, rows = self._matrix(small.shape[1], height / 2 - half, height / 2 + half, spec)
        cut = small[:, top : top + rows.shape[1], left : left + columns.shape[1]]
        return _as_bytes(rows @ (cut @ columns.T)).permute(1, 2, 0)

    def _make_matrix(
        self, length: int, start: float, end: float, spec: InputSpec
    ) -> tuple[int, torch.Tensor]:
        first, weights = resampling(length, start, end, spec.size, spec.interpolation)
        return first, torch.from_numpy(weights).to(self._device)

    def _none(self, spec: InputSpec) -> torch.Tensor:
        return torch.empty((0, spec.size, spec.size, 3), dtype=torch.uint8, device=self._device)


def resampling(
    length: int, start: float, end: float, size: int, interpolation: Literal["bicubic", "bilinear"]
) -> tuple[int, NDArray[np.float32]]:
    """An antialiased resize of ``start`` to ``end``, on an axis of ``length`` points, to ``size`` points.

    Returns:
        The first of the points it looks at, and weights (size, points) float32 that sum to 1 for each point
        it makes. The filter is a triangle or Keys' cubic with a = -1/2, as wide as the points it makes are
        apart, or as those it looks at where it enlarges: what Pillow's ``resize(box=…)`` does.
    """
    step = (end - start) / size
    scale = max(step, 1.0)
    reach = _SUPPORT[interpolation] * scale
    first, last = max(math.floor(start - reach), 0), min(math.ceil(end + reach), length)
    centres = start + (np.arange(size) + 0.5) * step
    distance = np.abs(np.arange(first, last) + 0.5 - centres[:, None]) / scale
    if interpolation == "bilinear":
        weights = np.clip(1 - distance, 0, None)
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    return first, weights.astype(np.float32)


def _decode_all(photos: Sequence[BareJpeg], device: torch.device) -> list[torch.Tensor]:
    """Every photo as RGB, uint8 (3, height, width). One that fails raises RuntimeError for all of them."""
    if _IGNORED not in warnings.filters:
        warnings.filterwarnings("ignore", _DEPRECATION, DeprecationWarning)
    encoded = [torch.frombuffer(bytearray(photo.data), dtype=torch.uint8) for photo in photos]
    decoded: list[torch.Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded


def _groups(photos: Sequence[BareJpeg]) -> Iterator[list[int]]:
    """Places of neighbouring photos that have at most ``MAX_PIXELS_AT_ONCE`` together."""
    group: list[int] = []
    pixels = 0
    for place, photo in enumerate(photos):
        pixels += photo.width * photo.height
        if group and pixels > MAX_PIXELS_AT_ONCE:
            yield group
            group, pixels = [], photo.width * photo.height
        group.append(place)
    if group:
        yield group


def _factor(width: int, height: int, short_side: float) -> int:
    """How far ``app.imaging.decode`` reduces a JPEG: libjpeg by 8, 4 or 2, then whole averages."""
    needed = math.ceil(short_side)
    within = min(width // needed, height // needed)
    drafted = next((scale for scale in (8, 4, 2) if scale <= within), 1)
    return drafted * max(1, int(min(width, height) / drafted / (short_side * _REDUCING_GAP)))


def _averaged(planes: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """Means of ``down`` × ``across`` points of (C, H, W), rounded, float32; its edges repeat to fill up."""
    for axis, step in ((1, down), (2, across)):
        if missing := -planes.shape[axis] % step:
            last = planes.narrow(axis, planes.shape[axis] - 1, 1)
            planes = torch.cat((planes, *[last] * missing), axis)
    count, height, width = planes.shape
    blocks = planes.reshape(count, height // down, down, width // across, across)
    return blocks.mean(dim=(2, 4), dtype=torch.float32).round()


def _luma(small: torch.Tensor) -> torch.Tensor:
    """Luma of (3, h, w), uint8 (h, w) with at most 1024 on a side."""
    red, green, blue = (part * weight for part, weight in zip(small, _LUMA, strict=True))
    luma = (red + green + blue)[None]
    down, across = (math.ceil(side / _LUMA_SIDE) for side in luma.shape[1:])
    return _as_bytes(_averaged(luma, down, across)[0])


def _as_bytes(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _upright(stored: torch.Tensor, orientation: int) -> torch.Tensor:
    """As ``app.imaging.decode.upright``, for tensors (height, width, …)."""
    if orientation >= 5:
        stored = stored.transpose(0, 1)
    flipped = [axis for axis, turns in enumerate(((3, 4, 7, 8), (2, 3, 6, 7))) if orientation in turns]
    return stored.flip(flipped) if flipped else stored
