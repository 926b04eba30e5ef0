"""A network in 8-bit integers: where its OpenVINO graph is rounded, how finely, and what that shifts.

Weights are rounded per output channel, symmetrically, from the weights themselves. Activations are rounded
per tensor between two values that real photos gave (``Ranges``). The rounding of weights moves the mean of
what a layer answers; the mean input of each layer says by how much, and the bias takes it back (Nagel et al.
2019, arXiv:1906.04721, section 4.2, with means that were measured instead of derived).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

Floats = NDArray[np.float32]

LEVELS = 256
QUANTILE = 0.99
"""Of the photos' extremes at a place: the few photos beyond are clipped there, the others rounded finer."""

_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


class RangesError(ValueError):
    """The ranges are broken, or not those of this network."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What real photos say of a network.

    Attributes:
        bounds: float32 (P, 2), for each place where activations are rounded the lowest and the highest value.
        means: for each layer, in their order, the mean of each input channel, float32 (C,).
    """

    bounds: Floats
    means: tuple[Floats, ...]

    def save(self, path: Path) -> None:
        """Write a ``.safetensors`` file, whose bytes depend on nothing but the content."""
        ends = np.cumsum([len(mean) for mean in self.means])
        tensors = {"bounds": self.bounds, "means": np.concatenate(self.means), "ends": ends.astype(np.int64)}
        path.write_bytes(save(tensors))

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """What ``save`` wrote. Raises RangesError, or OSError when there is no such file."""
        try:
            tensors = load_file(path)
            return cls(tensors["bounds"], tuple(np.split(tensors["means"], tensors["ends"][:-1])))
        except (SafetensorError, KeyError) as error:
            raise RangesError(f"{path.name} is broken: {error}") from error


def measure(model: Any, photos: Iterable[NDArray[np.uint8]]) -> Ranges:
    """What ``photos``, uint8 (size, size, 3) each and at least one, give in an ``openvino.Model`` in float32.

    The model takes a batch of exactly one.
    """
    places, layers = _places(model), _layers(model)
    wanted = [reduce(place, _axes(place), False) for place in places for reduce in _EXTREMES]
    wanted += [ops.reduce_mean(layer.input_value(0), _axes_but_channels(layer), False) for layer in layers]
    observer = openvino.Model([node.output(0) for node in wanted], model.get_parameters(), "observer")
    request = openvino.Core().compile_model(observer, "CPU", _EXACT).create_infer_request()
    extremes, totals = [], [np.zeros(1)] * len(layers)
    for photo in photos:
        found = [np.array(value) for value in request.infer({0: photo[None]}).values()]
        extremes.append(np.reshape(found[: 2 * len(places)], (-1, 2)))
        totals = [total + mean for total, mean in zip(totals, found[2 * len(places) :], strict=True)]
    low, high = np.moveaxis(np.array(extremes), 2, 0)  # (photos, P) each
    bounds = [np.quantile(low, 1 - QUANTILE, axis=0), np.quantile(high, QUANTILE, axis=0)]
    means = tuple((total / len(extremes)).astype(np.float32) for total in totals)
    return Ranges(np.stack(bounds, axis=1).astype(np.float32), means)


def quantise(model: Any, ranges: Ranges) -> None:
    """Turn an ``openvino.Model`` in float32 into one that OpenVINO runs in 8-bit integers. Changes ``model``.

    Raises:
        RangesError: the ranges are those of another network.
    """
    places, layers = _places(model), _layers(model)
    widths = [math.prod(layer.input_value(0).get_shape()[1:2]) for layer in layers]
    if len(places) != len(ranges.bounds) or widths != [len(mean) for mean in ranges.means]:
        raise RangesError("the ranges were measured on another network")
    for layer, mean in zip(layers, ranges.means, strict=True):
        _round_weights(layer, mean)
    for number, (place, (low, high)) in enumerate(zip(places, ranges.bounds.tolist(), strict=True)):
        # The first place is the normalised photo, whose 256 values are then kept exactly.
        bounds = (low, high) if number == 0 else symmetric(low, high)
        readers = place.get_target_inputs()
        rounded = ops.fake_quantize(place, *map(np.float32, (*bounds, *bounds)), LEVELS)
        for reader in readers:
            reader.replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()


def symmetric(low: float, high: float) -> tuple[float, float]:
    """Bounds that hold both values, and 0 at a whole step: 0…255 or, where ``low`` is negative, -128…127.

    A zero between steps would need a correction at every multiplication.
    """
    if low >= 0:
        return 0.0, max(high, _SMALLEST)
    step = max(-low / 128, high / 127)
    return -128 * step, 127 * step


def rounded_weights(weights: Floats, kept: int) -> tuple[NDArray[np.int8], Floats]:
    """Integers in -127…127 and the step of each output channel; their product is nearest to ``weights``.

    The first ``kept`` axes number the output channels; the steps keep the rank of ``weights``.
    """
    axes = tuple(range(kept, weights.ndim))
    steps = np.maximum(np.abs(weights).max(axis=axes, keepdims=True) / 127, _SMALLEST).astype(np.float32)
    return np.rint(weights / steps).astype(np.int8), steps


def _round_weights(layer: Any, mean: Floats) -> None:
    """Round a layer's weights and have its bias take back what that shifts, given its mean input (C,)."""
    grouped = layer.get_type_name() == "GroupConvolution"
    weights = np.array(layer.input_value(1).get_node().data)
    integers, steps = rounded_weights(weights, 2 if grouped else 1)
    product = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(steps))
    layer.input(1).replace_source_output(product.output(0))

    lost = weights - integers * steps
    lost = lost if grouped else lost[None]  # (groups, outputs, inputs, *kernel)
    lost = lost.reshape(*lost.shape[:3], -1).sum(axis=3)
    shift = np.einsum("goi,gi->go", lost, mean.reshape(len(lost), -1))
    (reader,) = layer.output(0).get_target_inputs()
    addition = reader.get_node()
    port = 1 - reader.get_index()
    bias = addition.input_value(port).get_node()
    if addition.get_type_name() != "Add" or bias.get_type_name() != "Constant":
        raise RangesError(f"the layer {layer.get_friendly_name()} has no bias to correct")
    corrected = np.array(bias.data) + shift.reshape(bias.data.shape)
    addition.input(port).replace_source_output(ops.constant(corrected.astype(np.float32)).output(0))


def _layers(model: Any) -> list[Any]:
    """What multiplies by weights, from the photo to the heads."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() in _LAYERS]


def _places(model: Any) -> list[Any]:
    """The outputs that are rounded, from the photo to the heads: what layers and residual sums read."""
    found: dict[tuple[str, int], Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in _LAYERS:
            read = [node.input_value(0)]
        elif node.get_type_name() == "Add":
            read = [node.input_value(0), node.input_value(1)]
            if any(value.get_node().get_type_name() == "Constant" for value in read):
                continue  # a bias, not a residual
        else:
            continue
        for value in read:
            found.setdefault((value.get_node().get_friendly_name(), value.get_index()), value)
    return list(found.values())


def _axes(value: Any) -> Any:
    return ops.constant(np.arange(len(value.get_shape()), dtype=np.int64))


def _axes_but_channels(layer: Any) -> Any:
    rank = len(layer.input_value(0).get_shape())
    return ops.constant(np.array([axis for axis in range(rank) if axis != 1], np.int64))


_EXTREMES: Sequence[Any] = (ops.reduce_min, ops.reduce_max)
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
_SMALLEST = float(np.finfo(np.float32).tiny)
