"""What decoding at a reduced scale does to the answer, against all pixels and one antialiased resize."""

from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from app.engines.inputs import input_spec
from app.engines.openvino import OpenVinoEngine
from app.food.assessment import read
from app.imaging.guards import ImageLimits
from app.imaging.prepare import prepare
from models.build import build
from models.manifest import load_catalogue, load_manifest
from tests.photos import encoded

BUILT = Path(__file__).parents[2] / "build" / "models"
MEALS = load_manifest("meals-lite2")
SPEC = input_spec(MEALS)
PHOTOS = ["coffee", "chelsea", "astronaut", "rocket"]
SIZES = [(640, 480), (1024, 768), (1500, 1000), (4032, 3024)]


@cache
def engine() -> OpenVinoEngine:
    return OpenVinoEngine(MEALS, build(MEALS, BUILT), threads=1)


@cache
def photo(name: str, size: tuple[int, int], image_format: str) -> bytes:
    image = Image.fromarray(getattr(skimage.data, name)()).resize(size, Image.Resampling.BICUBIC)
    options = {"JPEG": {"quality": 88}, "WEBP": {"quality": 80, "method": 0}, "AVIF": {"speed": 10}}
    return encoded(image, image_format, **options[image_format])


def golden(data: bytes) -> np.ndarray:
    image = Image.open(BytesIO(data)).convert("RGB")
    x, y, half = image.width / 2, image.height / 2, SPEC.crop_fraction * min(image.size) / 2
    box = (x - half, y - half, x + half, y + half)
    return np.asarray(image.resize((SPEC.size,) * 2, Image.Resampling.BICUBIC, box))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_answer_is_that_of_all_pixels(size, image_format):
    files = [photo(name, size, image_format) for name in PHOTOS]
    small = np.stack([prepare(data, ImageLimits(), [SPEC]).pixels[0] for data in files])
    whole = np.stack([golden(data) for data in files])
    assert np.abs(small.astype(int) - whole).mean() < 1.0

    catalogue, classes = load_catalogue(MEALS), MEALS.columns("classes")
    moved = []
    for one, other in zip(engine().predict(small), engine().predict(whole), strict=True):
        assert np.abs(one - other).max() < 0.1
        means = [read(output[classes], catalogue).traits[:5] @ np.arange(1, 6) for output in (one, other)]
        moved.append(abs(means[0] - means[1]))
    assert max(moved) < 0.2  # a cat's; the scores of what is no food are the least sure of themselves
    assert np.mean(moved) < 0.1
