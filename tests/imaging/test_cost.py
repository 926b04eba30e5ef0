import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.imaging.cost import UNKNOWN_MS, expected_ms
from tests.photos import coffee_image, coffee_jpeg, encoded

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
SMALL = {name: encoded(coffee_image(48, 32), name) for name in FORMATS}
SMALL["HEIC"] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x14ispe\0\0\0\0" + b"\0\0\0\x30\0\0\0\x20"
PER_MEGAPIXEL = {"PNG": 20, "WEBP": 7.5, "GIF": 8, "BMP": 3, "TIFF": 14, "AVIF": 4.5}


@pytest.mark.parametrize("image_format", PER_MEGAPIXEL)
def test_where_a_format_keeps_its_size(image_format):
    small = encoded(Image.new("RGB", (300, 200)), image_format)
    large = encoded(Image.new("RGB", (1200, 1000)), image_format)
    grown = expected_ms(large) - expected_ms(small)
    per_byte = 85 if image_format == "AVIF" else 37 if image_format == "WEBP" else 0
    grown -= per_byte * (len(large) - len(small)) / 1e6
    assert grown == pytest.approx(PER_MEGAPIXEL[image_format] * (1.2 - 0.06))


@pytest.mark.parametrize(
    "options", [{"big_tiff": True}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}]
)
def test_a_tiff_of_any_kind_is_a_tiff(options):
    image = coffee_image(300, 200)
    assert expected_ms(encoded(image, "TIFF", **options)) == expected_ms(encoded(image, "TIFF"))


def test_a_big_endian_tiff_keeps_its_short_sides_in_front():
    directory = b"\0\2" + b"\1\0\0\3\0\0\0\1\x01\x2c\0\0" + b"\1\1\0\3\0\0\0\1\0\xc8\0\0"
    assert expected_ms(b"MM\0*\0\0\0\x08" + directory) == expected_ms(encoded(coffee_image(300, 200), "TIFF"))


def test_a_webp_is_lossy_or_not_with_and_without_a_header_of_its_own():
    image = coffee_image(300, 200)
    for lossless, rate in ((False, 7.5), (True, 12.0)):
        for alpha in (False, True):
            picture = image.copy()
            if alpha:
                picture.putalpha(Image.linear_gradient("L").resize(picture.size))
            data = encoded(picture, "WEBP", lossless=lossless)
            per_byte = 8.0 if lossless else 37.0
            assert expected_ms(data) == pytest.approx(2 + rate * 0.06 + per_byte * len(data) / 1e6)


def test_a_progressive_jpeg_costs_several_times_its_baseline():
    baseline, progressive = (coffee_jpeg(2000, 1500, progressive=scans) for scans in (False, True))
    assert expected_ms(progressive) > 2.5 * expected_ms(baseline)


def test_the_order_of_costs_is_the_order_of_formats():
    photo = coffee_image(2000, 1500)
    costs = [expected_ms(encoded(photo, name)) for name in ("JPEG", "BMP", "GIF", "PNG")]
    assert costs == sorted(costs)
    head = SMALL["HEIC"][:-8] + (3024).to_bytes(4) + (4032).to_bytes(4)
    assert expected_ms(head + bytes(2_000_000)) > 10 * expected_ms(coffee_jpeg(4032, 3024))


def test_of_a_grid_and_its_tiles_the_grid_counts():
    tile, grid = ((side).to_bytes(4) * 2 for side in (512, 4096))
    one = SMALL["HEIC"][:-8] + grid
    assert expected_ms(SMALL["HEIC"][:-8] + tile + b"ispe\0\0\0\0" + grid) == pytest.approx(
        expected_ms(one), rel=1e-3
    )


def test_what_is_no_image_costs_nothing():
    assert expected_ms(b"") == expected_ms(b"%PDF-1.7" * 100) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(64),  # a directory beyond any file
        b"\xff\xd8\xff\xd8" * 100,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000,
        b"\xff\xd8" + b"\xff" * 1_000_000,
        SMALL["PNG"][:20],
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\0\0",
        b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(1_000_000),
    ],
)
def test_a_size_that_cannot_be_found_is_neither_quick_nor_hopeless(data):
    assert expected_ms(data) == UNKNOWN_MS


@pytest.mark.parametrize("name", SMALL)
def test_the_header_is_enough(name):
    data = SMALL[name]
    assert expected_ms(data[: len(data) * 3 // 4 + 24]) <= expected_ms(data)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(sorted(SMALL)), st.integers(0, 60), st.binary(max_size=400))
def test_no_bytes_make_it_raise(name, kept, noise):
    cost = expected_ms(SMALL[name][:kept] + noise)
    assert math.isfinite(cost)
    assert cost >= 0
