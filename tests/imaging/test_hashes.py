import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from app.imaging.decode import decode
from app.imaging.guards import ImageLimits, inspect
from app.imaging.hashes import pdq
from tests.photos import coffee_image, coffee_jpeg

PDQ_MATCH = 31  # as far apart as its authors let two hashes of the same picture be

# What pdqhash 0.2.8, the binding of the C++ reference, says of these photos.
REFERENCE = {
    "coffee": "8c629e779a663698b9a33866c026726c21a679f61eb6e1f8c79ba7e23c8299e0",
    "astronaut": "2d6b1af3a956c529e79ca3d2526fa834d4196c81cedd04de0a26b855fc99b724",
    "chelsea": "5feb5321f01da156898e2bf629a5d3438412cdbd23f48942464526315db33ffd",
    "camera": "dc9c9d3b746978f888f40ce6e5c3f70f7266623e8d989cb99f21f2010841e1c7",
}


def hamming(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def luma(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def pdq_of(jpeg: bytes) -> str:
    return pdq(decode(jpeg, inspect(jpeg, ImageLimits()), []).luma)


@pytest.mark.parametrize("name", REFERENCE)
def test_pdq_is_the_reference_hash(name):
    # Two bits for the order of float additions: the coefficients next to the median may trade places.
    assert hamming(pdq(luma(Image.fromarray(getattr(data, name)()))), REFERENCE[name]) <= 2


@pytest.mark.parametrize("size", [(600, 400), (1024, 768), (1500, 1000), (4032, 3024)])
@pytest.mark.parametrize("quality", [40, 90])
def test_pdq_of_the_small_decode_stays_near_that_of_all_pixels(size, quality):
    assert hamming(pdq_of(coffee_jpeg(*size, quality=quality)), pdq(luma(coffee_image(*size)))) <= 16


def test_pdq_knows_a_photo_again_at_another_size():
    small, large = pdq_of(coffee_jpeg(480, 320, quality=70)), pdq_of(coffee_jpeg(3000, 2000))
    assert hamming(small, large) <= PDQ_MATCH


def test_pdq_tells_photos_apart():
    hashes = [*REFERENCE.values()]
    for i, one in enumerate(hashes):
        assert all(hamming(one, other) > 2 * PDQ_MATCH for other in hashes[i + 1 :])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pdq_is_of_the_upright_photo(orientation):
    turned, straight = coffee_jpeg(1024, 768, orientation=orientation), coffee_jpeg(1024, 768)
    assert hamming(pdq_of(turned), pdq_of(straight)) <= 8


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_pdq_sets_half_of_its_bits_for_noise_of_any_size(height, width, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    text = pdq(noise)
    assert len(text) == 64
    assert int(text, 16).bit_count() <= 128
    if min(height, width) >= 64:
        assert int(text, 16).bit_count() == 128
