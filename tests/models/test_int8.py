import numpy as np
import openvino
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openvino import opset13 as ops

from models.int8 import Ranges, RangesError, measure, quantise, rounded_weights, symmetric

SIZE, CHANNELS = 16, 8
FINITE = st.floats(-1e4, 1e4, width=32)
RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)


def network(channels=CHANNELS):
    """What a real one has: normalisation, a dense and a depthwise convolution, a residual sum, a head."""
    rng = np.random.default_rng(1)

    def layer(value, weights, groups=False):
        constant = ops.constant(weights.astype(np.float32))
        ones, zeros = [1, 1], [0, 0] if weights.shape[-1] == 1 else [1, 1]
        convolution = ops.group_convolution if groups else ops.convolution
        value = convolution(value, constant, ones, zeros, zeros, ones)
        return ops.add(value, ops.constant(rng.normal(size=(1, channels, 1, 1)).astype(np.float32)))

    photo = ops.parameter([1, SIZE, SIZE, 3], np.uint8)
    planes = ops.transpose(ops.convert(photo, "f32"), ops.constant([0, 3, 1, 2]))
    value = ops.divide(ops.subtract(planes, ops.constant(np.float32(127))), ops.constant(np.float32(128)))
    # Weights of one sign mostly: their rounding then shifts the mean, as it does in a trained network.
    value = ops.clamp(layer(value, rng.normal(0.1, 0.3, (channels, 3, 3, 3))), 0, 6)
    deep = ops.clamp(layer(value, rng.normal(0.1, 0.3, (channels, 1, 1, 3, 3)), groups=True), 0, 6)
    value = ops.add(layer(deep, rng.normal(0.1, 0.3, (channels, channels, 1, 1))), value)
    pooled = ops.reduce_mean(value, ops.constant([2, 3]), False)
    weights = ops.constant(rng.normal(size=(5, channels)).astype(np.float32))
    logits = ops.matmul(pooled, weights, False, True)
    return openvino.Model([ops.add(logits, ops.constant(np.ones((1, 5), np.float32)))], [photo], "tiny")


def answers(model, photos=PHOTOS):
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", exact).create_infer_request()
    return np.concatenate([np.array(request.infer({0: photo[None]})[0]) for photo in photos])


def test_an_int8_network_answers_nearly_the_same():
    expected = answers(network())
    model = network()
    quantise(model, measure(model, PHOTOS))
    found = answers(model)
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).max() <= 0.03 * expected.std(axis=0).max() + 0.03 * np.abs(expected).max()


def test_everything_that_multiplies_is_rounded():
    model = network()
    quantise(model, measure(model, PHOTOS))
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    # Before the three convolutions, in front of both sides of the sum (one of them is a layer's input) and
    # of the head.
    assert kinds.count("FakeQuantize") == 5
    stored = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert sum(node.get_element_type() == openvino.Type.i8 for node in stored) == 4


def test_what_rounding_the_weights_shifts_is_taken_back():
    expected = answers(network())

    def bias(ranges):
        model = network()
        quantise(model, ranges)
        return np.abs((answers(model) - expected).mean(axis=0)).mean()

    ranges = measure(network(), PHOTOS)
    without = Ranges(ranges.bounds, tuple(np.zeros_like(mean) for mean in ranges.means))
    assert bias(ranges) < bias(without)


def test_ranges_of_another_network_are_refused():
    ranges = measure(network(), PHOTOS)
    with pytest.raises(RangesError, match="another network"):
        quantise(network(channels=4), ranges)
    with pytest.raises(RangesError, match="another network"):
        quantise(network(), Ranges(ranges.bounds[1:], ranges.means))


def test_ranges_are_what_the_photos_gave():
    ranges = measure(network(), PHOTOS)
    np.testing.assert_array_equal(ranges.bounds[0], np.float32([-127 / 128, 1]))  # of a byte's 0 and 255
    planes = (PHOTOS.astype(np.float32) - 127) / 128
    np.testing.assert_allclose(ranges.means[0], planes.mean(axis=(0, 1, 2)), atol=1e-5)
    assert [len(mean) for mean in ranges.means] == [3, CHANNELS, CHANNELS, CHANNELS]


def test_ranges_survive_a_file(tmp_path):
    ranges = measure(network(), PHOTOS)
    path = tmp_path / "ranges.safetensors"
    ranges.save(path)
    content = path.read_bytes()
    found = Ranges.load(path)
    np.testing.assert_array_equal(found.bounds, ranges.bounds)
    for one, other in zip(found.means, ranges.means, strict=True):
        np.testing.assert_array_equal(one, other)
    found.save(path)
    assert path.read_bytes() == content  # the manifest holds its hash
    path.write_bytes(content[:-3])
    with pytest.raises(RangesError, match=r"ranges\.safetensors is broken"):
        Ranges.load(path)


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), elements=FINITE
    ),
    st.integers(1, 2),
)
def test_weights_are_rounded_to_the_nearest_step_of_their_channel(weights, kept):
    integers, steps = rounded_weights(weights, kept)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= 127
    assert steps.shape == weights.shape[:kept] + (1,) * (3 - kept)
    assert (np.abs(weights - integers * steps) <= 0.501 * steps).all()


@given(FINITE, FINITE)
def test_symmetric_bounds_hold_both_values_and_zero_at_a_step(one, other):
    low, high = sorted((one, other))
    bottom, top = symmetric(low, high)
    step = (top - bottom) / 255
    slack = 1e-9 * (top - bottom)
    assert bottom - slack <= min(low, 0)
    assert max(high, 0) <= top + slack
    assert step > 0
    assert abs(bottom / step - round(bottom / step)) < 1e-6
