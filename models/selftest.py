"""The question every engine answers before it serves: does it still see what the build saw?

Two drawn patterns on which ImageNet backbones are sure of themselves (a grid of thin lines, a wavy
grating). The build writes down what the fp32 torch network says; an engine that disagrees has wrong
weights, a wrong input layout or a broken device, and must not serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.1
"""Largest accepted difference of one probability: bf16 against fp32 was at most 0.04 on these patterns."""

TOP = 5


def pixels(size: int) -> NDArray[np.uint8]:
    """The two patterns, uint8 (2, size, size, 3)."""
    down, across = np.mgrid[0:size, 0:size] / size
    grid = np.where(((30 * across) % 1 < 0.2) | ((30 * down) % 1 < 0.2), 30.0, 200.0)
    wave = 127.0 + 120.0 * np.sin(40.0 * across + 8.0 * np.sin(9.0 * down))
    return np.repeat(np.stack([grid, wave])[..., None], 3, axis=3).astype(np.uint8)


def expectation(probabilities: NDArray[np.float32]) -> list[dict[str, float]]:
    """The ``TOP`` most probable columns of each pattern, for JSON: ``{"<column>": probability}``."""
    best = np.argsort(-probabilities, axis=1)[:, :TOP]
    return [
        {str(column): round(float(row[column]), 6) for column in columns}
        for row, columns in zip(probabilities, best, strict=True)
    ]


def disagreement(probabilities: NDArray[np.float32], expected: Sequence[Mapping[str, float]]) -> float:
    """Largest difference to ``expected`` over its columns; infinite where a value is not a number."""
    differences = [
        abs(float(row[int(column)]) - value)
        for row, columns in zip(probabilities, expected, strict=True)
        for column, value in columns.items()
    ]
    worst = max(differences)
    return worst if np.isfinite(probabilities).all() else float("inf")
