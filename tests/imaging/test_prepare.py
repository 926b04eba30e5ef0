import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import FoodDXError, tree
from app.imaging.decode import decode
from app.imaging.guards import ImageLimits, inspect
from app.imaging.hashes import pdq
from app.imaging.inputs import InputSpec
from app.imaging.prepare import Prepared, prepare
from tests.corpus import IMAGES, corpus_images
from tests.photos import coffee_image, coffee_jpeg, encoded

LIMITS = ImageLimits()
SPECS = [InputSpec(224), InputSpec(64, 1.0, "bilinear")]

SMALL = {name: encoded(coffee_image(48, 32), name) for name in ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]}
SMALL["progressive JPEG"] = coffee_jpeg(48, 32, progressive=True)


CLIENT_ERRORS = {error.code for error in tree() if 400 <= error.status < 500}


def outcome(data: bytes) -> str:
    """Ok, or an error's code; what is not a FoodDXError escapes and fails the test."""
    try:
        prepared = prepare(data, LIMITS, SPECS)
    except FoodDXError as error:
        return error.code
    assert [array.shape for array in prepared.pixels] == [(224, 224, 3), (64, 64, 3)]
    assert all(array.dtype == np.uint8 and array.flags.c_contiguous for array in prepared.pixels)
    assert len(bytes.fromhex(prepared.pdq)) == 32
    return "ok"


def test_prepare_is_inspect_decode_and_hash():
    data = coffee_jpeg(1024, 768, orientation=8)
    info = inspect(data, LIMITS)
    decoded = decode(data, info, SPECS)
    prepared = prepare(data, LIMITS, SPECS)
    assert prepared == Prepared(info, pdq(decoded.luma), prepared.pixels)
    assert all(map(np.array_equal, prepared.pixels, decoded.pixels))


# Files of the corpus that tell something, with what a client is told about them.
TELLING = {
    "hopper.jpg": "ok",
    "hopper.webp": "ok",
    "hopper.gif": "ok",
    "hopper.bmp": "ok",
    "hopper.Lab.tif": "ok",
    "pil_sample_cmyk.jpg": "ok",
    "16bit.cropped.tif": "ok",
    "16_bit_binary_pgm.tiff": "ok",  # 32 bits a sample
    "g4-multi.tiff": "ok",  # three pages
    "frozenpond.mpo": "ok",
    "sugarshack_bad_mpo_header.jpg": "ok",
    "hopper_bad_exif.jpg": "ok",
    "icc_profile_big.jpg": "ok",
    "old-style-jpeg-compression.tif": "ok",
    "hopper.ppm": "unsupported_media_type",
    "hopper.psd": "unsupported_media_type",
    "hopper.ico": "unsupported_media_type",
    "iss634.apng": "image_animated",
    "iss634.webp": "image_animated",
    "dispose_prev.gif": "image_animated",
    "decompression_bomb.gif": "image_too_many_pixels",
    "bmp/b/reallybig.bmp": "image_too_many_pixels",
    "tiny.png": "image_too_few_pixels",
    "truncated_jpeg.jpg": "image_truncated",
    "truncated_image.png": "image_truncated",
    "bmp/b/shortfile.bmp": "image_truncated",
    "png_decompression_dos.png": "image_unreadable",
    "seek_too_large.tif": "image_unreadable",
    "tiff_tiled_jpeg_oob_read.tif": "image_unreadable",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "image_unreadable",
}


def test_every_file_of_the_corpus_gives_pixels_or_a_client_error():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        outcomes = {
            path.relative_to(IMAGES).as_posix(): outcome(path.read_bytes()) for path in corpus_images()
        }
    assert len(outcomes) > 1000
    assert set(outcomes.values()) <= {"ok", *CLIENT_ERRORS}
    assert {name: outcomes[name] for name in TELLING} == TELLING
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.parametrize("name", SMALL)
def test_a_photo_cut_anywhere_is_cut_short(name):
    data = SMALL[name]
    codes = {outcome(data[:end]) for end in range(12, len(data), 7)}
    if name == "TIFF":  # has no end to miss: told from damage only where the decoder says so
        codes.discard("image_unreadable")
    assert codes - {"ok"} == {"image_truncated"}  # the last few bytes of most formats carry no pixels


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_damage_is_never_more_than_a_client_error(name, data):
    content = bytearray(SMALL[name])
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(flips, min_size=1, max_size=12)):
        content[at] = value
    outcome(
        bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    )


@settings(deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.binary(max_size=300))
def test_a_magic_number_before_noise_is_a_client_error(name, noise):
    assert outcome(SMALL[name][:12] + noise) in CLIENT_ERRORS
