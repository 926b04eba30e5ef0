"""The photos of the load tests: real pictures, new bytes each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from loadtests.photos import ASPECT, Photo, make_photo, new_token


@pytest.fixture(scope="module")
def photo() -> Photo:
    return make_photo(0.2)


def pixels(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return np.asarray(image)


def test_bytes_are_new_each_time(photo: Photo) -> None:
    assert len({photo.unique() for _ in range(1000)}) == 1000


def test_the_picture_is_the_same_each_time(photo: Photo) -> None:
    first, second = pixels(photo.unique()), pixels(photo.unique())
    assert np.array_equal(first, second)
    assert first.std() > 30  # a photo, not a flat colour


def test_the_same_token_gives_the_same_bytes(photo: Photo) -> None:
    token = new_token()
    assert photo.with_token(token) == photo.with_token(token)


def test_the_token_is_the_comment(photo: Photo) -> None:
    token = new_token()
    with Image.open(io.BytesIO(photo.with_token(token))) as image:
        assert image.info["comment"] == token


@pytest.mark.parametrize("token", [b"", b"short", b"x" * 17])
def test_a_token_of_another_length_is_refused(photo: Photo, token: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        photo.with_token(token)


@pytest.mark.parametrize("megapixels", [0.2, 0.8, 2])
def test_sizes_are_as_asked_and_weigh_what_a_phones_do(megapixels: float) -> None:
    photo = make_photo(megapixels)
    jpeg = photo.unique()
    height, width, channels = pixels(jpeg).shape
    assert (width * height / 1e6, width / height, channels) == pytest.approx(
        (megapixels, ASPECT, 3), rel=0.01
    )
    assert 1.5 < len(jpeg) * 8 / (width * height) < 3  # bits per pixel
    assert photo.label == f"{megapixels:g} MP"
