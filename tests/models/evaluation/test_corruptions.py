import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.imaging.guards import ImageLimits
from app.imaging.inputs import InputSpec
from app.imaging.prepare import prepare
from models.evaluation.corruptions import (
    CORRUPTIONS,
    SHORT_SIDE,
    blur,
    corrupted,
    dark,
    jpeg,
    off_centre,
    rotation,
    small,
    warm_light,
)
from tests.photos import coffee_image, coffee_jpeg, coffee_png


def draw(seed=0):
    return np.random.default_rng(seed)


def grey(level, size=(60, 40)):
    return Image.new("RGB", size, (level,) * 3)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.name)
def test_every_corruption_is_repeatable_and_servable(corruption):
    data = coffee_jpeg(300, 200)
    spoilt = corrupted(data, corruption)
    assert spoilt == corrupted(data, corruption)
    prepared = prepare(spoilt, ImageLimits(), [InputSpec(64)])
    original = prepare(data, ImageLimits(), [InputSpec(64)])
    same = np.array_equal(prepared.pixels[0], original.pixels[0])
    assert same == (corruption.name == "none")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CORRUPTIONS), st.integers(16, 300), st.integers(16, 300), st.integers(0, 2**32))
def test_any_shape_survives_and_the_given_photo_is_left_alone(corruption, width, height, seed):
    photo = coffee_image(width, height)
    before = photo.tobytes()
    spoilt = corruption.apply(photo, draw(seed))
    assert photo.tobytes() == before
    assert spoilt.mode == "RGB"
    assert spoilt.width <= width
    assert spoilt.height <= height
    assert min(spoilt.size) >= 0.7 * min(width, height, 96)


def test_strengths_are_what_they_say():
    assert dark(grey(255), draw()).getpixel((5, 5)) == (99, 99, 99)  # 255 · 8 ** (-1 / 2.2)
    assert warm_light(grey(100), draw()).getpixel((5, 5)) == (120, 100, 65)
    assert small(coffee_image(600, 400), draw()).size == (144, 96)
    assert len(encoded := jpeg(coffee_image(), draw()).tobytes()) == len(coffee_image().tobytes())
    assert encoded != coffee_image().tobytes()


def test_blur_spreads_a_line_by_a_hundredth_of_the_shorter_side():
    line = np.zeros((400, 600, 3), np.uint8)
    line[:, 300] = 255
    row = np.asarray(blur(Image.fromarray(line), draw()), np.float64)[200, :, 0]
    spread = np.sqrt((row * (np.arange(600) - 300) ** 2).sum() / row.sum())
    assert spread == pytest.approx(4, rel=0.1)


def test_rotation_turns_by_its_angle_to_either_side_and_leaves_no_corner_black():
    photo = Image.new("RGB", (300, 200), (255, 255, 255))
    photo.paste((0, 0, 0), (245, 95, 255, 105))  # 100 pixels to the right of the centre
    angles = set()
    for seed in range(20):
        turned = np.asarray(rotation(photo, draw(seed), degrees=10).convert("L"), np.float64)
        assert turned.shape == (200, 300)
        assert turned[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 250
        down, across = np.nonzero(turned < 128)
        angles.add(round(np.degrees(np.arctan2(100 - down.mean() - 0.5, across.mean() + 0.5 - 150))))
    assert angles == {-10, 10}


def test_off_centre_leaves_three_quarters_of_each_side_in_some_corner():
    photo = coffee_image(80, 40)
    corners = {(left, top) for left in (0, 20) for top in (0, 10)}
    parts = {photo.crop((left, top, left + 60, top + 30)).tobytes(): (left, top) for left, top in corners}
    assert {parts[off_centre(photo, draw(seed)).tobytes()] for seed in range(30)} == corners


def test_photos_are_turned_upright_and_brought_down_first():
    spoilt = Image.open(io.BytesIO(corrupted(coffee_jpeg(1500, 1000, orientation=6), CORRUPTIONS[0])))
    assert spoilt.size == (SHORT_SIDE * 3 // 2, SHORT_SIDE)
    assert Image.open(io.BytesIO(corrupted(coffee_png(30, 20, "LA"), CORRUPTIONS[0]))).size == (30, 20)
