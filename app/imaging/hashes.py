"""PDQ, a hash of what a photo shows: photos that look alike differ in few bits.

PDQ is Facebook's published perceptual hash ("The TMK+PDQF Video-Hashing Algorithm and the PDQ
Image-Hashing Algorithm", 2019): blur the luma twice with a box, sample it at 64 × 64, take the 16 × 16
lowest frequencies of its DCT without the constant, and set a bit for each coefficient above the median.
Everything before the median is linear and separable, so here it is one matrix per axis.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_SAMPLES = 64
_FREQUENCIES = 16
_BLURS = 2

# OpenBLAS splits a product of more multiplications than this among threads, which then spin for a while and
# burn a second core for nothing.
_ONE_THREAD = 1 << 18


def pdq(luma: NDArray[np.uint8]) -> str:
    """The PDQ hash of a greyscale image, 64 lower-case hex digits.

    Args:
        luma: (height, width) uint8, the whole upright image at any scale; about 512 on a side is plenty.
    """
    height, width = luma.shape
    down, across = _transform(height), _transform(width).T
    rows = max(1, _ONE_THREAD // (_FREQUENCIES * width))
    bands = [luma[top : top + rows].astype(np.float32) @ across for top in range(0, height, rows)]
    coefficients = down @ np.concatenate(bands)
    bits = coefficients.ravel()
    median = np.partition(bits, bits.size // 2 - 1)[bits.size // 2 - 1]  # the lower one of the two middle
    # Bit 0, the lowest frequency, is the last bit of the text.
    return np.packbits((bits > median)[::-1]).tobytes().hex()


@lru_cache(maxsize=128)  # 32 KiB each for 512 pixels; photos come in few sizes
def _transform(length: int) -> NDArray[np.float32]:
    """(16, length): blur twice, sample 64 points, keep frequencies 1–16, along one axis."""
    sampled = ((np.arange(_SAMPLES) + 0.5) * length / _SAMPLES).astype(int)
    k, n = np.arange(1, _FREQUENCIES + 1)[:, None], np.arange(_SAMPLES)
    dct = np.sqrt(2 / _SAMPLES) * np.cos(np.pi / (2 * _SAMPLES) * k * (2 * n + 1))
    blur = _box_blur(length)
    transform = dct @ np.linalg.matrix_power(blur, _BLURS)[sampled]
    return np.ascontiguousarray(transform, dtype=np.float32)


def _box_blur(length: int) -> NDArray[np.float64]:
    """(length, length): the mean over a window of 1/128 of the axis, cut off at both ends."""
    window = -(-length // (2 * _SAMPLES))
    ahead = (window + 2) // 2  # one more ahead than behind where the window is even, as the reference has it
    offset = np.arange(length) - np.arange(length)[:, None]
    inside = (offset >= ahead - window) & (offset < ahead)
    blur: NDArray[np.float64] = inside / inside.sum(axis=1, keepdims=True)
    return blur
