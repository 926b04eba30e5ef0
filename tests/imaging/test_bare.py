"""What the GPU's decoder is given: the pixels of the usual, nothing of the rest."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.errors import FoodDXError
from app.imaging.bare import bare_jpeg
from app.imaging.guards import ImageInfo, ImageLimits, inspect
from tests.photos import coffee_image, coffee_jpeg, coffee_png, encoded

LIMITS = ImageLimits()
INFO = ImageInfo("image/jpeg", 60, 40, 1, "RGB")
SMALL = coffee_jpeg(60, 40)


def bare(data):
    return bare_jpeg(data, inspect(data, LIMITS))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


USUAL = {
    "plain": coffee_jpeg(300, 200),
    "4:4:4": encoded(coffee_image(300, 200), "JPEG", subsampling=0),
    "4:2:2": encoded(coffee_image(300, 200), "JPEG", subsampling=1),
    "grey": encoded(coffee_image(300, 200, "L"), "JPEG"),
    "optimised": encoded(coffee_image(300, 200), "JPEG", optimize=True),
    "restarts": encoded(coffee_image(300, 200), "JPEG", restart_marker_blocks=4),
    "odd": coffee_jpeg(301, 199),
    "comment": encoded(coffee_image(300, 200), "JPEG", comment=b"\xff\xd9 not the end"),
    "padding": SMALL[:2] + b"\xff\xff" + SMALL[2:],
}


@pytest.mark.parametrize("data", USUAL.values(), ids=USUAL)
def test_the_pixels_of_the_usual_are_all_there(data):
    found = bare(data)
    np.testing.assert_array_equal(pixels(found.data), pixels(data))
    assert (found.height, found.width) == pixels(data).shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_measures_are_as_stored_and_metadata_is_gone(orientation):
    data = coffee_jpeg(300, 200, orientation=orientation)
    found = bare(data)
    assert found.orientation == orientation
    assert (found.width, found.height) == Image.open(io.BytesIO(data)).size
    assert b"Exif" in data
    assert b"Exif" not in found.data
    assert b"JFIF" not in found.data


def test_what_follows_the_picture_is_gone():
    found = bare(SMALL + SMALL + b"more")
    assert found.data == bare(SMALL).data
    assert found.data.endswith(b"\xff\xd9")


def rgb_jpeg():
    """Stored as RGB, with an Adobe marker that says so."""
    return encoded(coffee_image(60, 40), "JPEG", keep_rgb=True)


UNUSUAL = {
    "progressive": coffee_jpeg(60, 40, progressive=True),
    "CMYK": encoded(coffee_image(60, 40, "CMYK"), "JPEG"),
    "RGB": rgb_jpeg(),
    "RGB by name": rgb_jpeg().replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xed\x00\x0eAdobe"),
    "PNG": coffee_png(60, 40),
    "cut off in the scan": SMALL[:-300],
    "no end": SMALL[:-2],
    "a second scan": SMALL[:-2] + SMALL[SMALL.index(b"\xff\xda") :],
    "a second frame": SMALL.replace(b"\xff\xc4", SMALL[SMALL.index(b"\xff\xc0") :][:19] + b"\xff\xc4", 1),
    "12 bits": SMALL.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "4:1:1": SMALL.replace(b"\x01\x22\x00\x02\x11\x01", b"\x01\x41\x00\x02\x11\x01"),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_the_unusual_is_left_to_the_cpu(data):
    assert data not in USUAL.values()
    try:
        info = inspect(data, LIMITS)
    except FoodDXError:
        info = INFO
    assert bare_jpeg(data, info) is None


def test_a_frame_that_differs_from_what_was_inspected_is_not_handed_on():
    assert bare_jpeg(SMALL, INFO) is not None
    assert bare_jpeg(SMALL, ImageInfo("image/jpeg", 40, 60, 1, "RGB")) is None
    assert bare_jpeg(SMALL, ImageInfo("image/jpeg", 40, 60, 6, "RGB")) is not None


@given(st.binary(max_size=200), st.integers(0, len(SMALL)), st.integers(0, 200))
def test_no_bytes_make_it_fail_and_what_comes_out_is_whole(noise, at, cut):
    data = SMALL[:at] + noise + SMALL[at + cut :]
    found = bare_jpeg(data, INFO)
    if found is not None:
        assert found.data.startswith(b"\xff\xd8")
        assert found.data.endswith(b"\xff\xd9")
        assert (found.width, found.height) == (60, 40)


def test_the_preprocessor_may_ask_without_torch():
    program = (
        "import sys, app.imaging.bare; sys.exit(bool({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
