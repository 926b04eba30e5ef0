"""What a phone, a kitchen lamp and a hurry do to a photo, done to training photos at random."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

_BILINEAR = v2.InterpolationMode.BILINEAR


class Light(v2.Transform):  # type: ignore[misc]
    """White balance, dim or harsh light, contrast and saturation; uint8 (3, H, W) in and out.

    The colour of the light multiplies each channel, by up to ``tint`` either way; the exposure is a gamma
    between ``1/gamma`` and ``gamma``, which darkens without cutting off; contrast and saturation are mixed
    with grey.
    """

    def __init__(
        self, tint: float = 0.15, gamma: float = 1.7, contrast: float = 0.3, saturation: float = 0.3
    ) -> None:
        super().__init__()
        self.tint, self.gamma, self.contrast, self.saturation = tint, math.log(gamma), contrast, saturation

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # noqa: D102 - the class says it
        chance = 2 * torch.rand(6) - 1
        tint, gamma, contrast, saturation = chance[:3], chance[3], chance[4], chance[5]
        pixels = image.float().div_(255)
        pixels = pixels.mul_(1 + self.tint * tint[:, None, None]).clamp_(0, 1)
        pixels = pixels.pow_(torch.exp(self.gamma * gamma))
        grey = pixels.mean(0, keepdim=True)
        pixels = torch.lerp(grey.expand_as(pixels), pixels, 1 + self.saturation * saturation)
        pixels = torch.lerp(pixels.mean().expand_as(pixels), pixels, 1 + self.contrast * contrast)
        return pixels.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


class Jpeg(v2.Transform):  # type: ignore[misc]
    """Compressed once more, at a quality between ``low`` and ``high``; uint8 (3, H, W) in and out."""

    def __init__(self, low: int = 25, high: int = 90) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # noqa: D102 - the class says it
        # By Pillow, as torchvision is giving its own encoder up.
        quality = int(torch.randint(self.low, self.high + 1, ()))
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        with Image.open(file, formats=("JPEG",)) as photo:
            return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def phone_photo(size: int, smallest_crop: float) -> Any:
    """The augmentation: uint8 (3, H, W) → uint8 (3, size, size), drawn from torch's global generator.

    ``smallest_crop`` is the least share of the photo's area that a crop keeps.
    """
    return v2.Compose(
        [
            # Enlarged as it is turned, so that few black corners come into view.
            v2.RandomApply([v2.RandomAffine(degrees=12, scale=(1.05, 1.2), interpolation=_BILINEAR)], 0.3),
            v2.RandomResizedCrop(size, scale=(smallest_crop, 1.0), interpolation=_BILINEAR, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([Light()], 0.8),
            v2.RandomApply([v2.GaussianBlur(7, sigma=(0.3, 2.0))], 0.1),
            v2.RandomApply([Jpeg()], 0.2),
        ]
    )


def accidental_photos(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """What a camera takes in a pocket, against a wall or in the dark: uint8 (count, side, side, 3).

    Plain colours, gradients, noise and stripes, from black to white, dark and near-grey ones most often. They
    teach the gate that nothing is not food, which photos of things do not.
    """
    draw = np.random.default_rng(seed)
    down, across = np.mgrid[0:side, 0:side] / side
    photos = np.empty((count, side, side, 3), np.uint8)
    for photo in photos:
        light = draw.beta(0.6, 1.0)
        colour = np.clip(light + draw.normal(0, 0.12, 3), 0, 1)
        angle = draw.uniform(0, 2 * math.pi)
        slope = draw.normal(0, 0.4) * (math.cos(angle) * (across - 0.5) + math.sin(angle) * (down - 0.5))
        stripes = draw.choice([0.0, 0.2]) * np.sin(
            draw.uniform(5, 120) * (math.cos(angle) * across + math.sin(angle) * down)
        )
        noise = draw.exponential(0.03) * draw.standard_normal((side, side, 3))
        picture = colour + (slope + stripes)[..., None] + noise
        photo[:] = np.round(255 * np.clip(picture, 0, 1))
    return photos
