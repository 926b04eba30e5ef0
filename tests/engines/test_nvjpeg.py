"""Decoding for the GPU, on CPU tensors, held against Pillow and ``app.imaging`` with the same photo."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.engines import EngineError, nvjpeg
from app.engines.nvjpeg import JpegDecoder, resampling
from app.imaging.bare import BareJpeg, bare_jpeg
from app.imaging.decode import decode
from app.imaging.guards import ImageLimits, inspect
from app.imaging.hashes import pdq
from app.imaging.inputs import InputSpec
from app.imaging.prepare import prepare
from tests.photos import coffee_image, coffee_jpeg, encoded

LIMITS = ImageLimits()
SPECS = (InputSpec(224), InputSpec(260, 0.9, "bilinear"))
SIZES = [(258, 194), (640, 480), (480, 640), (1033, 775), (1633, 1225), (4000, 3000), (2500, 301)]


def bare(data):
    found = bare_jpeg(data, inspect(data, LIMITS))
    assert found is not None
    return found


def on_device(*photos, specs=SPECS):
    return JpegDecoder(specs, device="cpu").decode([bare(data) for data in photos])


def difference(found, wanted):
    return np.abs(found.numpy().astype(int) - wanted.astype(int))


def bits_apart(one, other):
    return (int(one, 16) ^ int(other, 16)).bit_count()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_and_hash_are_nearly_those_of_the_cpu(size):
    data = coffee_jpeg(*size)
    found, wanted = on_device(data), prepare(data, LIMITS, SPECS)
    assert found.kept == (0,)
    for spec, pixels, expected in zip(SPECS, found.pixels, wanted.pixels, strict=True):
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (1, spec.size, spec.size, 3)
        apart = difference(pixels[0], expected)
        assert apart.mean() <= 1.0  # measured: 0.4; libjpeg scales by its DCT, we by averages
        assert np.percentile(apart, 99) <= 6
    assert bits_apart(found.pdq[0], wanted.pdq) <= 16  # PDQ's own threshold for "the same photo" is 31


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(orientation):
    data = coffee_jpeg(400, 300, orientation=orientation)
    found, wanted = on_device(data), prepare(data, LIMITS, SPECS)
    for pixels, expected in zip(found.pixels, wanted.pixels, strict=True):
        assert difference(pixels[0], expected).mean() <= 0.5
    assert bits_apart(found.pdq[0], wanted.pdq) <= 16


def test_grey_photos_are_grey():
    data = encoded(coffee_image(500, 400, "L"), "JPEG")
    pixels = on_device(data).pixels[0][0]
    assert (pixels == pixels[..., :1]).all()
    assert difference(pixels, prepare(data, LIMITS, SPECS).pixels[0]).mean() <= 0.5


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(16, 700), st.integers(16, 700)),
    target=st.integers(8, 300),
    fraction=st.floats(0.3, 1.0),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    seed=st.integers(0, 99),
)
def test_cropping_and_resizing_is_pillows(size, target, fraction, interpolation, seed):
    width, height = size
    # Of medium brightness: between its two passes Pillow cuts off what a cubic makes of black and white.
    noise = np.random.default_rng(seed).integers(96, 161, (height, width, 3), np.uint8)
    spec = InputSpec(target, fraction, interpolation)
    decoder = JpegDecoder([spec], device="cpu")
    small = torch.from_numpy(noise).permute(2, 0, 1).float()
    found = decoder._cropped(small, BareJpeg(b"", width, height, 1), 1, spec)
    half = fraction * min(size) / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    method = Image.Resampling[interpolation.upper()]
    wanted = np.asarray(Image.fromarray(noise).resize((target, target), method, box=box))
    assert difference(found, wanted).max() <= 1


@given(length=st.integers(1, 600), size=st.integers(1, 300), part=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_flat_colours_stay_flat(length, size, part):
    start, end = sorted(length * place for place in part)
    if end - start < 0.5:
        start, end = 0.0, float(length)
    first, weights = resampling(length, start, end, size, "bicubic")
    assert first >= 0
    assert first + weights.shape[1] <= length
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_averaging_goes_as_far_as_the_cpus_decoder(size):
    data = coffee_jpeg(*size)
    luma = decode(data, inspect(data, LIMITS), SPECS).luma
    factor = nvjpeg._factor(*size, max(128.0, *(spec.short_side for spec in SPECS)))
    assert abs(luma.shape[0] - size[1] / factor) < 1


def broken(data):
    """The tables are gone: no decoder can read it, but its header is sound."""
    tables = slice(data.index(b"\xff\xdb"), data.index(b"\xff\xc0"))
    return BareJpeg(data.replace(data[tables], b""), *Image.open(io.BytesIO(data)).size, 1)


def test_a_broken_photo_fails_alone():
    good = [coffee_jpeg(300, 200), coffee_jpeg(500, 400)]
    decoder = JpegDecoder(SPECS, device="cpu")
    found = decoder.decode([broken(good[0]), bare(good[0]), broken(good[1]), bare(good[1])])
    assert found.kept == (1, 3)
    wanted = on_device(*good)
    assert found.pdq == wanted.pdq
    for pixels, expected in zip(found.pixels, wanted.pixels, strict=True):
        assert torch.equal(pixels, expected)


@pytest.mark.parametrize("photos", [[], [broken(coffee_jpeg(300, 200))]], ids=["none", "none that is whole"])
def test_nothing_may_come_of_it(photos):
    found = JpegDecoder(SPECS, device="cpu").decode(photos)
    assert (found.kept, found.pdq) == ((), ())
    assert [tuple(pixels.shape) for pixels in found.pixels] == [(0, 224, 224, 3), (0, 260, 260, 3)]


def test_memory_is_bounded_by_decoding_in_groups(monkeypatch):
    photos = [bare(coffee_jpeg(300, 200)), bare(coffee_jpeg(500, 400)), bare(coffee_jpeg(301, 200))]
    wanted = JpegDecoder(SPECS, device="cpu").decode(photos)
    decode_all, groups = nvjpeg._decode_all, []
    monkeypatch.setattr(nvjpeg, "MAX_PIXELS_AT_ONCE", 130_000)
    monkeypatch.setattr(
        nvjpeg, "_decode_all", lambda group, device: groups.append(len(group)) or decode_all(group, device)
    )
    found = JpegDecoder(SPECS, device="cpu").decode(photos)
    assert groups == [1, 1, 1]  # the middle one is larger than the bound
    assert found.pdq == wanted.pdq
    assert all(torch.equal(one, other) for one, other in zip(found.pixels, wanted.pixels, strict=True))


def test_a_stream_of_its_own_is_idle_before_every_decode(monkeypatch):
    order = []
    monkeypatch.setattr(nvjpeg, "MAX_PIXELS_AT_ONCE", 1)
    decode_all = nvjpeg._decode_all
    decoder = JpegDecoder(SPECS, device="cpu")
    monkeypatch.setattr(decoder, "_wait", lambda: order.append("wait"))
    monkeypatch.setattr(
        nvjpeg, "_decode_all", lambda group, device: order.append("decode") or decode_all(group, device)
    )
    decoder.decode([bare(coffee_jpeg(300, 200)), bare(coffee_jpeg(500, 400))])
    assert order == ["wait", "decode", "wait", "decode", "wait"]


def test_a_failing_device_is_an_engine_error(monkeypatch):
    def fail(*_):
        raise RuntimeError("an illegal memory access was encountered")

    decoder = JpegDecoder(SPECS, device="cpu")
    monkeypatch.setattr(nvjpeg, "_decode_all", fail)
    calls = []

    def wait():
        calls.append(1)
        if len(calls) > 1:  # the device answers before the decode, and no longer after it
            fail()

    monkeypatch.setattr(decoder, "_wait", wait)
    with pytest.raises(EngineError, match="illegal memory access"):
        decoder.decode([bare(coffee_jpeg(300, 200))])


def test_a_luma_has_at_most_1024_on_a_side():
    long = nvjpeg._luma(torch.full((3, 300, 3000), 99.0))
    assert long.shape == (300, 1000)
    assert (long == 99).all()
    assert pdq(long.numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnAGpu:
    def test_nvjpeg_is_as_near_as_libjpeg(self):
        photos = [coffee_jpeg(*size) for size in SIZES]
        found = JpegDecoder(SPECS).decode([bare(data) for data in photos])
        assert found.kept == tuple(range(len(photos)))
        for place, data in enumerate(photos):
            wanted = prepare(data, LIMITS, SPECS)
            for pixels, expected in zip(found.pixels, wanted.pixels, strict=True):
                apart = difference(pixels[place].cpu(), expected)
                assert apart.mean() <= 1.5
            assert bits_apart(found.pdq[place], wanted.pdq) <= 24

    def test_a_broken_photo_fails_alone(self):
        data = coffee_jpeg(300, 200)
        assert JpegDecoder(SPECS).decode([bare(data), broken(data), bare(data)]).kept == (0, 2)
