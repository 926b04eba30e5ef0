"""What is done to training photos: they stay photos, by chance and yet repeatably."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.training.augment import Light, accidental_photos, phone_photo

PHOTO = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 96, 96), dtype=np.uint8))


def augmented(seed: int, size: int = 64) -> torch.Tensor:
    torch.manual_seed(seed)
    return phone_photo(size, 0.3)(PHOTO)


def test_a_photo_comes_out_at_the_size_that_was_asked_for():
    for seed in range(40):
        found = augmented(seed)
        assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 64, 64))


def test_chance_is_the_seed_s():
    assert torch.equal(augmented(3), augmented(3))
    assert len({augmented(seed).sum().item() for seed in range(20)}) > 15


def test_light_keeps_black_and_white_apart_and_grey_in_order():
    ramp = torch.arange(0, 256, dtype=torch.uint8).repeat(3, 8, 1)
    for seed in range(30):
        torch.manual_seed(seed)
        found = Light()(ramp).float().mean(dim=(0, 1))
        assert (found.diff() >= -1).all(), "a brighter place does not become a darker one"
        assert found[-1] - found[0] > 60


def test_light_changes_colour_and_exposure():
    grey = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    means = []
    for seed in range(50):
        torch.manual_seed(seed)
        means.append(Light()(grey).float().mean(dim=(1, 2)))
    found = torch.stack(means)
    assert found.mean(dim=1).std() > 10, "dim and harsh light"
    assert (found.max(dim=1).values - found.min(dim=1).values).mean() > 5, "warm and cold light"


def test_photos_of_nothing_are_varied_and_repeatable():
    photos = accidental_photos(60, 32, 5)
    assert (photos.dtype, photos.shape) == (np.uint8, (60, 32, 32, 3))
    assert np.array_equal(photos, accidental_photos(60, 32, 5))
    brightness = photos.mean(axis=(1, 2, 3))
    assert brightness.min() < 30
    assert brightness.max() > 180


@pytest.mark.parametrize("size", [160, 224])
def test_any_served_size_can_be_cropped(size):
    assert tuple(augmented(0, size).shape) == (3, size, size)
