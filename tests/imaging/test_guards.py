import struct
import warnings
import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import (
    AnimatedImage,
    BadImage,
    BodyTooLarge,
    EmptyImage,
    TooFewPixels,
    TooManyPixels,
    TruncatedImage,
    UnsupportedMediaType,
)
from app.imaging.guards import (
    DECODERS,
    MAX_JPEG_SCANS,
    MAX_READS,
    SNIFF_BYTES,
    ImageInfo,
    ImageLimits,
    inspect,
    reading,
    sniff,
)
from tests.photos import coffee_image, coffee_jpeg, coffee_png, encoded

LIMITS = ImageLimits()
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


@pytest.mark.parametrize("image_format", FORMATS)
def test_content_decides_the_media_type(image_format):
    data = encoded(coffee_image(60, 40), image_format)
    media_type = f"image/{image_format.lower()}"
    assert sniff(data[:SNIFF_BYTES]) == media_type
    assert inspect(data, LIMITS).media_type == media_type
    assert media_type in DECODERS


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\xff\xd8",
        b"P6 1 1",
    ],
)
def test_what_is_no_image_we_read_is_unsupported(data):
    assert sniff(data) is None
    with pytest.raises(UnsupportedMediaType):
        inspect(data, LIMITS)


@settings(deadline=None)
@given(st.binary(max_size=SNIFF_BYTES), st.binary(max_size=20))
def test_sniff_needs_no_more_than_the_head(head, rest):
    assert sniff(head.ljust(SNIFF_BYTES, b"\0") + rest) == sniff(head.ljust(SNIFF_BYTES, b"\0"))


def test_the_header_tells_size_mode_and_orientation():
    assert inspect(coffee_jpeg(60, 40, orientation=6), LIMITS) == ImageInfo("image/jpeg", 60, 40, 6, "RGB")
    assert inspect(coffee_png(60, 40, "LA"), LIMITS) == ImageInfo("image/png", 60, 40, 1, "LA")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_upright(image_format, orientation):
    info = inspect(encoded(coffee_image(60, 40), image_format, orientation), LIMITS)
    assert (info.width, info.height) == (60, 40)
    assert info.orientation == (1 if image_format == "TIFF" else orientation)


@pytest.mark.parametrize("value", [0, 9, 60_000])
def test_an_orientation_that_does_not_exist_is_none(value):
    exif = Image.Exif()
    exif[274] = value
    assert inspect(encoded(coffee_image(60, 40), "JPEG", exif=exif), LIMITS).orientation == 1


def test_broken_exif_does_not_cost_the_photo():
    data = encoded(coffee_image(60, 40), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert inspect(data, LIMITS).orientation == 1


def test_nothing_is_empty():
    with pytest.raises(EmptyImage):
        inspect(b"", LIMITS)


def test_bytes_are_capped():
    data = coffee_jpeg(60, 40)
    inspect(data, ImageLimits(max_bytes=len(data)))
    with pytest.raises(BodyTooLarge):
        inspect(data, ImageLimits(max_bytes=len(data) - 1))


def test_pixels_are_capped():
    data = coffee_jpeg(60, 40)
    inspect(data, ImageLimits(max_pixels=60 * 40))
    with pytest.raises(TooManyPixels):
        inspect(data, ImageLimits(max_pixels=60 * 40 - 1))


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_is_decoded_whole_has_a_lower_cap(image_format):
    data, pixels = encoded(coffee_image(60, 40), image_format), 60 * 40
    inspect(data, ImageLimits(max_pixels=pixels, max_pixels_whole=pixels))
    low = ImageLimits(max_pixels_whole=pixels - 1)
    if image_format == "JPEG":
        inspect(data, low)
        return
    with pytest.raises(TooManyPixels, match=f"of image/{image_format.lower()} at most {pixels - 1} "):
        inspect(data, low)
    with pytest.raises(TooManyPixels):  # a lower cap for all formats is one for these, too
        inspect(data, ImageLimits(max_pixels=pixels - 1, max_pixels_whole=pixels + 1))


def test_photos_of_cameras_pass():
    inspect(jpeg(8192, 6100), LIMITS)  # 50 MP
    inspect(png(4032, 3024, (b"IDAT", b"")), LIMITS)  # 12 MP
    inspect(encoded(Image.new("RGB", (4032, 3024)), "WEBP", method=0), LIMITS)
    with pytest.raises(TooManyPixels, match="16000000"):
        inspect(png(4001, 4000, (b"IDAT", b"")), LIMITS)


def test_both_sides_need_a_minimum():
    inspect(coffee_jpeg(16, 16), LIMITS)
    with pytest.raises(TooFewPixels):
        inspect(coffee_jpeg(15, 400), LIMITS)
    with pytest.raises(TooFewPixels):
        inspect(coffee_jpeg(400, 15), LIMITS)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each) for each in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    )


def webp(width: int, height: int) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0\xff\xd9"


@pytest.mark.parametrize(
    "bomb",
    [png(60_000, 60_000, (b"IDAT", b"")), bmp(60_000, 60_000), gif(60_000, 60_000), jpeg(60_000, 60_000)],
    ids=["png", "bmp", "gif", "jpeg"],
)
def test_a_decompression_bomb_is_known_by_its_header(bomb):
    assert len(bomb) < 100
    with pytest.raises(TooManyPixels):
        inspect(bomb, LIMITS)


def test_a_webp_bomb_is_known_before_its_canvas_is_allocated():
    with pytest.raises(TooManyPixels):
        inspect(webp(16_384, 16_384), LIMITS)


def test_compressed_text_cannot_blow_up():
    text = b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000)
    with pytest.raises(BadImage) as caught:
        inspect(png(64, 64, (b"zTXt", text), (b"IDAT", b"")), LIMITS)
    assert caught.value.code == "image_unreadable"


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_animations_are_refused(image_format):
    frames = [coffee_image(60, 40), coffee_image(60, 40).rotate(180)]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(AnimatedImage):
        inspect(data, LIMITS)


@pytest.mark.parametrize(("image_format", "media_type"), [("MPO", "image/jpeg"), ("TIFF", "image/tiff")])
def test_of_a_still_with_further_pictures_the_first_is_read(image_format, media_type):
    second = coffee_image(20, 20)
    data = encoded(coffee_image(60, 40), image_format, save_all=True, append_images=[second])
    info = inspect(data, LIMITS)
    assert (info.media_type, info.width, info.height) == (media_type, 60, 40)


def first_scan(data: bytes) -> tuple[int, int]:
    start = data.index(b"\xff\xda")
    return start, data.index(b"\xff", start + 2 + int.from_bytes(data[start + 2 : start + 4]))


def test_a_jpeg_of_endless_scans_is_refused():
    data = coffee_jpeg(64, 64, progressive=True)
    start, end = first_scan(data)
    inspect(data, LIMITS)
    with pytest.raises(BadImage, match="scans"):
        inspect(data[:end] + data[start:end] * MAX_JPEG_SCANS + data[end:], LIMITS)


def test_what_looks_like_scans_behind_the_picture_does_no_harm():
    trailer = b"\xff\xda\0\x02" * (MAX_JPEG_SCANS + 1)  # as in the video that some phones append
    for progressive in (False, True):
        assert inspect(coffee_jpeg(64, 64, progressive=progressive) + trailer, LIMITS).width == 64


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jpeg(64, 64)[:2] + b"\xff\xfe\0\2" * MAX_READS + jpeg(64, 64)[2:], id="JPEG comments"),
        pytest.param(jpeg(64, 64)[:2] + b"\xff" * 2 * MAX_READS + jpeg(64, 64)[2:], id="JPEG padding"),
        pytest.param(png(64, 64, *[(b"spAm", b"")] * MAX_READS, (b"IDAT", b"")), id="PNG chunks"),
        pytest.param(gif(64, 64)[:13] + b"!\xfe" + b"\1!" * MAX_READS + gif(64, 64)[13:], id="GIF comments"),
    ],
)
def test_a_header_of_endless_pieces_is_given_up(data):
    with pytest.raises(BadImage, match="pieces"):
        inspect(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(64, 64), id="PNG without pixels"),
        pytest.param(b"BM" + b"\xff" * 60, id="BMP with a header of 4 GB"),
        pytest.param(b"II*\0\xff\xff\xff\xff", id="TIFF with its directory nowhere"),
        pytest.param(b"GIF89a\x40\0\x40\0\0\0\0;", id="GIF without a frame"),
        pytest.param(jpeg(0, 0), id="JPEG of no size"),
        pytest.param(b"RIFF\x20\0\0\0WEBPVP8 \xff\xff\xff\xff", id="WebP with a chunk of 4 GB"),
    ],
)
def test_nonsense_is_a_bad_image(data):
    with pytest.raises(BadImage), reading(data, inspect(data, LIMITS).media_type) as image:
        image.load()


@pytest.mark.parametrize(
    "error", [KeyError("x"), struct.error("x"), MemoryError(), RecursionError("x"), zlib.error("x")]
)
def test_whatever_a_decoder_raises_is_a_bad_image(error):
    with pytest.raises(BadImage) as caught, reading(coffee_jpeg(60, 40), "image/jpeg"):
        raise error
    assert caught.value.code == "image_unreadable"
    assert caught.value.detail == BadImage.title  # the decoder's words stay inside


def test_an_end_within_the_header_is_a_truncation():
    with pytest.raises(TruncatedImage):
        inspect(coffee_jpeg(60, 40)[:100], LIMITS)


def test_pillow_warnings_neither_show_nor_raise():
    twice = (b"acTL", struct.pack(">II", 1, 0))
    data = png(64, 64, twice, twice, (b"IDAT", b""))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.open(BytesIO(data)).close()
        assert len(seen) == 1
        assert inspect(data, LIMITS).width == 64
        assert len(seen) == 1
