import io
import subprocess
import sys
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from app.errors import AnimatedImage, BadImage, TooManyPixels, UnsupportedMediaType
from app.imaging.cost import expected_ms
from app.imaging.guards import ImageInfo, ImageLimits, inspect, sniff
from app.imaging.heif import AVIF, HEIC
from app.imaging.inputs import InputSpec
from app.imaging.prepare import Prepared, prepare
from tests.photos import STORED, coffee_image, encoded

LIMITS = ImageLimits()
SPECS = [InputSpec(224)]


def heic(image: Image.Image, orientation: int | None = None, **options: Any) -> bytes:
    """A HEIC file, stored and marked for ``orientation`` if one is given."""
    turn = STORED[orientation or 1]
    image = image if turn is None else image.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation or 1
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, exif=exif.tobytes(), quality=95, **options)
    return file.getvalue()


def avif(image: Image.Image, orientation: int | None = None, **options: Any) -> bytes:
    return encoded(image, "AVIF", orientation, quality=95, speed=10, **options)


ENCODERS = {HEIC: heic, AVIF: avif}
SMALL = {media_type: encode(coffee_image(96, 64)) for media_type, encode in ENCODERS.items()}
PHOTO = {media_type: encode(coffee_image(640, 480)) for media_type, encode in ENCODERS.items()}


def prepared(data: bytes) -> Prepared:
    return prepare(data, LIMITS, SPECS)


def outcome(data: bytes) -> str:
    """Ok, or a client error's code; what is no such error escapes and fails the test."""
    try:
        prepared(data)
    except (BadImage, UnsupportedMediaType) as error:
        return error.code
    return "ok"


def apart(a: Prepared, b: Prepared) -> float:
    return float(np.abs(a.pixels[0].astype(int) - b.pixels[0].astype(int)).mean())


def with_size(data: bytes, width: int, height: int) -> bytes:
    """``data`` with every picture in it said to be of this size."""
    at, changed = 0, bytearray(data)
    while (at := data.find(b"ispe", at + 1)) > 0:
        changed[at + 8 : at + 16] = width.to_bytes(4) + height.to_bytes(4)
    return bytes(changed)


@pytest.mark.parametrize(
    ("brands", "media_type"),
    [
        (b"heic" + bytes(4) + b"mif1heic", HEIC),
        (b"heix" + bytes(4), HEIC),
        (b"mif1" + bytes(4) + b"mif1miafheic", HEIC),
        (b"mif1" + bytes(4) + b"mif1miafavif", AVIF),
        (b"avis" + bytes(4) + b"avifavis", AVIF),
        (b"hevc" + bytes(4) + b"msf1", HEIC),
        (b"mif1" + bytes(4) + b"mif1miaf", None),
        (b"isom" + bytes(4) + b"isomiso2avc1mp41", None),
        (b"qt  " + bytes(4), None),
    ],
)
def test_brands_tell_the_media_type(brands, media_type):
    head = (len(brands) + 8).to_bytes(4) + b"ftyp" + brands
    assert sniff(head + b"\0\0\0\x08avif") == media_type  # the brands end where their box does


@pytest.mark.parametrize("media_type", ENCODERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_once(media_type, orientation):
    data = ENCODERS[media_type](coffee_image(640, 480), orientation)
    turned = prepared(data)
    assert (turned.info.width, turned.info.height) == (640, 480)
    assert turned.info.orientation == (1 if media_type == HEIC else orientation)
    assert apart(turned, prepared(encoded(coffee_image(640, 480), "PNG"))) < 3  # 255 is the whole range


def test_an_exif_orientation_alone_turns_nothing():  # in HEIF, properties of the picture turn it
    upright, sixth = b"\x01\x12\0\x03\0\0\0\x01\0\x01", b"\x01\x12\0\x03\0\0\0\x01\0\x06"
    assert upright in SMALL[HEIC]
    info = inspect(SMALL[HEIC].replace(upright, sixth), LIMITS)
    assert (info.width, info.height, info.orientation) == (96, 64, 1)


def test_the_header_tells_type_and_size():
    for media_type, data in SMALL.items():
        assert inspect(data, LIMITS) == ImageInfo(media_type, 96, 64, 1, "RGB")


@pytest.mark.parametrize("media_type", ENCODERS)
def test_transparency_is_white(media_type):
    image = coffee_image(320, 240)
    image.putalpha(0)
    assert prepared(ENCODERS[media_type](image)).pixels[0].min() >= 253


def test_a_photo_in_tiles_is_one_photo():
    whole, tiled = (heic(coffee_image(1000, 700), **options) for options in ({}, {"tile_size": 256}))
    assert tiled.count(b"hvc1") > 6
    assert inspect(tiled, LIMITS).width == 1000
    assert apart(prepared(tiled), prepared(whole)) < 1
    assert expected_ms(tiled) == pytest.approx(expected_ms(whole), rel=0.5)


def test_of_a_collection_the_primary_picture_is_read():
    collection = pillow_heif.from_pillow(coffee_image(96, 64))
    collection.add_from_pillow(coffee_image(32, 32))
    file = io.BytesIO()
    collection.save(file, primary_index=0)
    assert inspect(file.getvalue(), LIMITS).width == 96


def test_sequences_are_refused():
    frames = [coffee_image(96, 64), coffee_image(96, 64).rotate(180)]
    with pytest.raises(AnimatedImage):
        inspect(avif(frames[0], save_all=True, append_images=frames[1:]), LIMITS)
    with pytest.raises(AnimatedImage):
        inspect(SMALL[HEIC].replace(b"ftypheic", b"ftyphevc", 1), LIMITS)


@pytest.mark.parametrize("media_type", ENCODERS)
def test_pixels_are_capped_by_the_header(media_type):
    data = with_size(SMALL[media_type], 5001, 5000)
    with pytest.raises(TooManyPixels):
        inspect(data, LIMITS)
    inspect(SMALL[media_type], ImageLimits(max_pixels_whole=1, max_pixels_heif=96 * 64))


def test_a_heic_that_hides_its_size_is_not_decoded():
    with pytest.raises(BadImage) as caught:
        prepared(with_size(heic(Image.new("RGB", (2000, 2000))), 64, 64))
    assert caught.value.code == "image_unreadable"


@pytest.mark.parametrize("media_type", ENCODERS)
def test_a_file_cut_anywhere_is_cut_short(media_type):
    data = SMALL[media_type]
    codes = {outcome(data[:end]) for end in range(40, len(data) - 1, 7)}
    assert codes <= {"ok", "image_truncated"}
    assert "image_truncated" in codes


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_damage_is_never_more_than_a_client_error(media_type, data):
    content = bytearray(SMALL[media_type])
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(flips, min_size=1, max_size=12)):
        content[at] = value
    outcome(bytes(content))


def test_the_name_of_a_part_may_be_no_text():
    # pi-heif 1.4 ends the process on it.
    assert outcome(SMALL[HEIC].replace(b"Exif\0", b"Exi\xd5\0", 1)) == "ok"


def test_another_brand_on_the_file_is_a_client_error():
    assert outcome(SMALL[HEIC].replace(b"heic", b"avif")) == "image_unreadable"
    assert outcome(SMALL[AVIF].replace(b"avif", b"heic")) == "image_unreadable"
    with pytest.raises(UnsupportedMediaType):
        inspect(SMALL[HEIC].replace(b"heic", b"mp42"), LIMITS)


def test_decoders_are_loaded_when_the_first_such_photo_comes():
    decoders = {"pillow_heif", "PIL.AvifImagePlugin"}
    script = f"import sys, app.imaging.prepare; print(sorted({decoders} & {{*sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
