"""How a model wants to see a photo. Imports no image library: who runs a model needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One model's input: a centre crop of the upright photo, resized to ``size`` × ``size`` RGB.

    The crop is a square with ``crop_fraction`` of the photo's shorter side. 0.875 = 224/256 is the usual
    ImageNet evaluation: resize the shorter side to 256, crop 224 from the centre.
    """

    size: int
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if (
            self.size < 1
            or not 0 < self.crop_fraction <= 1
            or self.interpolation not in get_args(Interpolation)
        ):
            raise ValueError(f"not a usable input: {self}")

    @property
    def short_side(self) -> float:
        """The shorter side, in pixels, of the smallest photo that need not be enlarged for this input."""
        return self.size / self.crop_fraction
