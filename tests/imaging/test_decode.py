from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from app.errors import BadImage, TruncatedImage
from app.imaging import decode as decode_module
from app.imaging.decode import decode, upright
from app.imaging.guards import ImageLimits, inspect
from app.imaging.inputs import InputSpec
from tests.photos import STORED, coffee_image, coffee_jpeg, coffee_png, encoded

LIMITS = ImageLimits()
LITE0, LITE1, LITE2 = InputSpec(224), InputSpec(240, 240 / 272), InputSpec(260, 260 / 292)


def pixels(data: bytes, spec: InputSpec = LITE0) -> np.ndarray:
    return decode(data, inspect(data, LIMITS), [spec]).pixels[0]


def golden(image: Image.Image, spec: InputSpec = LITE0) -> np.ndarray:
    """What the small decode stands for: all pixels, then one antialiased crop and resize."""
    x, y, half = image.width / 2, image.height / 2, spec.crop_fraction * min(image.size) / 2
    box = (x - half, y - half, x + half, y + half)
    return np.asarray(image.convert("RGB").resize((spec.size,) * 2, Image.Resampling.BICUBIC, box))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, in levels of 256."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("spec", [LITE0, LITE1, LITE2], ids=lambda spec: str(spec.size))
@pytest.mark.parametrize(
    "size", [(512, 384), (768, 1024), (1024, 768), (1021, 767), (1030, 515), (2592, 1944), (4032, 3024)]
)
def test_a_jpeg_decoded_small_equals_one_decoded_whole(size, spec):
    data = coffee_jpeg(*size)
    assert difference(pixels(data, spec), golden(opened(data), spec)) < 1.0


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_another_format_averaged_down_equals_one_resized_at_once(image_format):
    data = encoded(coffee_image(2048, 1536), image_format)
    assert difference(pixels(data), golden(opened(data))) < 0.5


def test_a_photo_near_the_input_size_is_resized_at_once():
    data = coffee_png(600, 400)
    assert np.array_equal(pixels(data), golden(coffee_image(600, 400)))


def test_a_photo_smaller_than_the_input_is_enlarged():
    assert np.array_equal(pixels(coffee_png(60, 40)), golden(coffee_image(60, 40)))


def test_a_progressive_jpeg_is_the_same_photo():
    assert np.array_equal(pixels(coffee_jpeg(1024, 768, progressive=True)), pixels(coffee_jpeg(1024, 768)))


def test_every_spec_gets_its_own_array_from_one_decode():
    data = coffee_jpeg(1024, 768)
    arrays = decode(data, inspect(data, LIMITS), [LITE0, LITE1, LITE2]).pixels
    for array, spec in zip(arrays, [LITE0, LITE1, LITE2], strict=True):
        assert array.shape == (spec.size, spec.size, 3)
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert difference(array, golden(opened(data), spec)) < 1.0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(600, 400), (701, 499)])
def test_lossless_photos_of_any_orientation_give_the_same_pixels(size, orientation):
    apart = difference(pixels(coffee_png(*size, orientation=orientation)), pixels(coffee_png(*size)))
    if orientation <= 4:
        assert apart == 0
    else:  # Pillow rounds to 8 bits between its horizontal and its vertical pass
        assert apart < 0.25


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1024, 768), (1021, 767)])
def test_jpegs_of_any_orientation_give_the_same_pixels(size, orientation):
    # Turned pixels are compressed anew, in other blocks, so these differ by what JPEG loses.
    turned, straight = coffee_jpeg(*size, orientation=orientation), coffee_jpeg(*size)
    assert difference(pixels(turned), pixels(straight)) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_luma_is_the_whole_photo_upright(orientation):
    data = coffee_png(300, 200, orientation=orientation)
    luma = decode(data, inspect(data, LIMITS), [LITE0]).luma
    assert np.array_equal(luma, np.asarray(coffee_image(300, 200).convert("L")))


def test_luma_of_a_very_long_photo_is_bounded():
    data = encoded(Image.new("RGB", (30_000, 20)), "PNG")
    assert decode(data, inspect(data, LIMITS), [LITE0]).luma.shape == (20, 1024)


def test_without_specs_there_is_still_enough_luma_to_hash():
    data = coffee_jpeg(4032, 3024)
    decoded = decode(data, inspect(data, LIMITS), [])
    assert decoded.pixels == ()
    assert min(decoded.luma.shape) >= 128


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(sorted(STORED)))
def test_upright_undoes_how_a_photo_is_stored(height, width, orientation):
    seen = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    turn = STORED[orientation]
    image = Image.fromarray(seen)
    stored = np.asarray(image if turn is None else image.transpose(turn))
    result = upright(stored, orientation)
    assert np.array_equal(result, seen)
    assert result.flags.c_contiguous


GREY = coffee_image(320, 240, "L")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK"])
@pytest.mark.parametrize("size", [(1501, 1103), (90, 1200)])  # averaged down and not
def test_bands_of_rows_leave_no_seam(monkeypatch, mode, size):
    image = coffee_image(*size, mode if mode in ("RGB", "RGBA", "LA", "P", "1", "CMYK") else "L")
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(np.asarray(image).astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]) * 200)
    data = encoded(image, "TIFF" if mode in ("F", "I", "CMYK") else "PNG")
    assert inspect(data, LIMITS).mode == mode
    whole = decode(data, inspect(data, LIMITS), [LITE0])
    monkeypatch.setattr(decode_module, "_BAND_PIXELS", 7000)
    banded = decode(data, inspect(data, LIMITS), [LITE0])
    assert np.array_equal(whole.pixels[0], banded.pixels[0])
    assert np.array_equal(whole.luma, banded.luma)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_every_png_mode_becomes_rgb(mode):
    image = coffee_image(320, 240, mode if mode != "I;16" else "L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    result = pixels(encoded(image, "PNG"))
    assert result.shape == (224, 224, 3)
    reference = coffee_image(320, 240) if mode in ("RGB", "RGBA") else GREY
    if mode in ("L", "LA", "I;16", "RGB", "RGBA"):
        assert np.array_equal(result, golden(reference))
    else:  # a palette and black and white keep the brightness only roughly
        assert abs(result.mean() - golden(coffee_image(320, 240)).mean()) < 6


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "I", "F", "RGBX"])
def test_every_tiff_mode_becomes_rgb(mode):
    if mode in ("I", "F"):  # any range of samples: the darkest becomes 0, the brightest 255
        grey = np.asarray(GREY)
        image = Image.fromarray(
            grey.astype(np.float32) / 7 - 3 if mode == "F" else grey.astype(np.int32) * 1000
        )
        low, high = int(grey.min()), int(grey.max())
        expected = golden(Image.fromarray(((grey - low) * (255 / (high - low))).astype(np.uint8)))
    else:
        image = coffee_image(320, 240) if mode == "LAB" else coffee_image(320, 240, mode)
        expected = golden(coffee_image(320, 240))
        if mode == "LAB":
            profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert difference(pixels(encoded(image, "TIFF")), expected) < 1.5


def test_samples_that_are_no_numbers_are_black():
    samples = np.full((64, 64), np.nan, np.float32)
    assert pixels(encoded(Image.fromarray(samples), "TIFF")).max() == 0
    samples[:, 32:] = 5.0
    samples[:, :32] = np.inf
    samples[0, 63] = 4.0
    result = pixels(encoded(Image.fromarray(samples), "TIFF"))
    assert (result[:, 0].max(), result[112, 223].min()) == (0, 255)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cmyk_jpeg_is_the_same_photo(progressive):
    data = encoded(coffee_image(1024, 768, "CMYK"), "JPEG", quality=95, progressive=progressive)
    assert inspect(data, LIMITS).mode == "CMYK"
    assert difference(pixels(data), golden(coffee_image(1024, 768))) < 2.0


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(256, axis=0)
    result = pixels(encoded(Image.fromarray(ramp), "PNG"), InputSpec(256, 1.0))
    assert np.array_equal(result[0, :, 0], np.arange(256))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_white_whatever_colour_lies_below(image_format):
    image = coffee_image(1200, 800)
    image.putalpha(0)
    assert (
        pixels(
            encoded(image, image_format, lossless=True)
            if image_format == "WEBP"
            else encoded(image, image_format)
        ).min()
        == 255
    )


def test_half_transparency_is_half_white():
    image = Image.new("RGBA", (64, 64), (0, 100, 200, 128))
    assert pixels(encoded(image, "PNG"))[112, 112].tolist() == [127, 177, 227]


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(image_format):
    image = coffee_image(320, 240, "L").point([0] * 256).convert("P")
    assert pixels(encoded(image, image_format, transparency=0)).min() == 255


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)])
def test_a_transparent_colour_is_white(mode, key):
    image = Image.new(mode, (64, 64), key)
    assert pixels(encoded(image, "PNG", transparency=key)).min() == 255


def test_a_colour_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    tagged = encoded(coffee_image(320, 240), "PNG", icc_profile=profile)
    assert np.array_equal(pixels(tagged), pixels(coffee_png(320, 240)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_missing_pixels_are_a_truncation(image_format, share):
    data = encoded(coffee_image(320, 240), image_format)
    info = inspect(data, LIMITS)
    with pytest.raises(TruncatedImage):
        decode(data[: int(len(data) * share)], info, [LITE0])


def test_damaged_pixels_are_no_truncation():
    data = bytearray(coffee_png(320, 240))
    middle = len(data) // 2
    data[middle : middle + 8] = b"\0" * 8
    with pytest.raises(BadImage) as caught:
        pixels(bytes(data))
    assert caught.value.code == "image_unreadable"


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"size": 8, "crop_fraction": 0.0}, {"size": 8, "crop_fraction": 1.1}]
)
def test_a_spec_is_checked_when_it_is_made(wrong):
    with pytest.raises(ValueError, match="not a usable input"):
        InputSpec(**wrong)
