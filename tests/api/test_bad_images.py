"""Every photo that cannot be scored gets its own code, every odd one that can be is scored; none is a 500."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.api.conftest import is_problem
from tests.photos import coffee_image, coffee_jpeg, coffee_png, encoded

JPEG = coffee_jpeg()
FRAMES = [coffee_image(60, 40).rotate(angle) for angle in (0, 90)]


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A one-bit PNG that claims this size, whatever its pixel data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refused(api, photo: bytes, status: int, code: str):
    problem = is_problem(api.score(photo), status, code)
    assert is_problem(api.post("/v1/scores", files={"image": photo}), status, code)
    assert api.stored() == [], "a refused photo must not stay in the store"
    return problem


BAD = {
    "nothing": (b"", 422, "image_empty"),
    "a byte": (b"\xff", 415, "unsupported_media_type"),
    "text": (b"this is no photo", 415, "unsupported_media_type"),
    "html": (b"<!doctype html><script>alert(1)</script>", 415, "unsupported_media_type"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "unsupported_media_type"),
    "pdf": (b"%PDF-1.7\n", 415, "unsupported_media_type"),
    "heic, brand only": (b"\0\0\0\x18ftypheic" + bytes(100), 422, "image_unreadable"),
    "zip": (b"PK\x03\x04" + bytes(100), 415, "unsupported_media_type"),
    "jpeg, header only": (JPEG[:20], 422, "image_truncated"),
    "jpeg, half": (JPEG[: len(JPEG) // 2], 422, "image_truncated"),
    "progressive jpeg, half": (coffee_jpeg(progressive=True)[:9000], 422, "image_truncated"),
    "png, half": (coffee_png(60, 40)[:1500], 422, "image_truncated"),
    "webp, half": (encoded(coffee_image(60, 40), "WEBP")[:300], 422, "image_truncated"),
    "gif, half": (encoded(coffee_image(60, 40), "GIF")[:1200], 422, "image_truncated"),
    "bmp, half": (encoded(coffee_image(60, 40), "BMP")[:4000], 422, "image_truncated"),
    "jpeg, garbage": (b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9", 422, "image_unreadable"),
    "png, garbage": (png(60, 40, b"not deflated"), 422, "image_unreadable"),
    "animated gif": (
        encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), 422, "image_animated",
    ),
    "animated png": (
        encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), 422, "image_animated",
    ),
    "animated webp": (
        encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), 422, "image_animated",
    ),
    "one pixel": (png(1, 1), 422, "image_too_few_pixels"),
    "a line": (png(4000, 15), 422, "image_too_few_pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_photo_that_cannot_be_scored_is_refused_with_a_code_of_its_own(api, name):
    photo, status, code = BAD[name]
    problem = refused(api, photo, status, code)
    assert "/" not in problem.detail.replace("image/", ""), "no path belongs in an error"


def test_too_many_pixels_are_refused_by_the_header_alone(api):
    """The file claims 2.5 gigapixels and holds none: whoever decoded it would find it cut short."""
    problem = refused(api, png(50_000, 50_000), 422, "image_too_many_pixels")
    assert "2500000000" in problem.detail


def test_too_many_bytes_are_refused(make_api):
    api = make_api(max_body_bytes=len(JPEG) - 1)
    refused(api, JPEG, 413, "body_too_large")
    assert api.local.scorer.calls == 0


def test_a_bomb_is_refused_though_it_is_small(api):
    photo = png(20_000, 20_000, zlib.compress(bytes(20_000 * 2501), 9))
    assert len(photo) < 100_000
    refused(api, photo, 422, "image_too_many_pixels")


def test_one_bad_photo_does_not_harm_the_next(api):
    for photo, status, _ in BAD.values():
        assert api.score(photo).status_code == status
    assert api.result(JPEG)["status"] == "scored"
    assert len(api.stored()) == 1


# Odd, and fine


def sixteen_bit() -> bytes:
    grey = np.asarray(coffee_image(mode="L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG")


ODD = {
    "cmyk jpeg": (encoded(coffee_image(mode="CMYK"), "JPEG"), "image/jpeg"),
    "greyscale jpeg": (encoded(coffee_image(mode="L"), "JPEG"), "image/jpeg"),
    "progressive jpeg": (coffee_jpeg(progressive=True), "image/jpeg"),
    "16-bit png": (sixteen_bit(), "image/png"),
    "palette png": (coffee_png(mode="P"), "image/png"),
    "palette png with transparency": (encoded(coffee_image(mode="P"), "PNG", transparency=0), "image/png"),
    "png with alpha": (coffee_png(mode="RGBA"), "image/png"),
    "grey png with alpha": (coffee_png(mode="LA"), "image/png"),
    "greyscale png": (coffee_png(mode="L"), "image/png"),
    "one-bit png": (coffee_png(mode="1"), "image/png"),
    "webp": (encoded(coffee_image(), "WEBP"), "image/webp"),
    "still gif": (encoded(coffee_image(), "GIF"), "image/gif"),
    "bmp": (encoded(coffee_image(), "BMP"), "image/bmp"),
    "tiff": (encoded(coffee_image(), "TIFF"), "image/tiff"),
    "photo with bytes behind it": (JPEG + b"appended by a camera", "image/jpeg"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_photo_is_scored(api, name):
    photo, media_type = ODD[name]
    result = api.result(photo)
    image = result["image"]
    assert (image["media_type"], image["width"], image["height"]) == (media_type, 600, 400)
    if "one-bit" not in name:  # in black and white nobody could tell
        assert result["dishes"][0]["name"] == "espresso"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_turned_photo_is_scored_as_the_viewer_sees_it(api, image_format):
    """PNG: the pixels are the same. JPEG: blocks are cut elsewhere, which may move a probability by 0.02."""
    tolerance = 0.001 if image_format == "PNG" else 0.02
    upright = api.result(encoded(coffee_image(), image_format))
    for orientation in range(1, 9):
        turned = api.result(encoded(coffee_image(), image_format, orientation))
        image = turned["image"]
        assert (image["width"], image["height"]) == (600, 400)
        assert turned["score"] == upright["score"]
        assert turned["score_probabilities"] == pytest.approx(upright["score_probabilities"], abs=tolerance)


def test_a_photo_that_is_stored_turned_and_not_tagged_is_another_photo(api):
    """Which shows that the test above would notice an orientation that nobody applies."""
    upright = api.result(coffee_png())["score_probabilities"]
    sideways = api.result(encoded(coffee_image().transpose(Image.Transpose.ROTATE_90), "PNG"))
    assert (sideways["image"]["width"], sideways["image"]["height"]) == (400, 600)
    assert sideways["score_probabilities"] != pytest.approx(upright, abs=0.02)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_photo_is_answered(api, data):
    photo = bytearray(data.draw(st.sampled_from([coffee_jpeg(64, 48), coffee_png(32, 24)])))
    for _ in range(data.draw(st.integers(1, 5))):
        photo[data.draw(st.integers(0, len(photo) - 1))] = data.draw(st.integers(0, 255))
    assert api.score(bytes(photo[: data.draw(st.integers(0, len(photo)))])).status_code in {200, 415, 422}
