"""Depthwise convolutions whose backward pass is fast on CPUs, in bfloat16. Imports torch.

In torch 2.13's oneDNN the gradient of a depthwise convolution's input is slow if it strides, and that of its
weights if the kernel is wider than 3: of a training step of EfficientNet-Lite0 at 192 px they take half. Both
are also sums of convolutions that are fast: a stride of 2 is four convolutions without one, interleaved; the
columns of a wide kernel are a narrow kernel each three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_COLUMNS = 3
"""The widest kernel whose gradient is fast."""


class FastDepthwise(TorchFunctionMode):
    """While entered, depthwise convolutions under CPU autocast go back another way, to the same result.

    Anything else (another device, no autocast, dilation, biases, kernels that are oblong or smaller than the
    stride) is left as it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.conv2d and not kwargs and len(args) == 7 and _applies(*args):
            planes, weight, _, stride, padding, _, _ = args
            dtype = torch.get_autocast_dtype("cpu")
            return _Depthwise.apply(planes.to(dtype), weight.to(dtype), stride[0], padding[0])
        return func(*args, **(kwargs or {}))


def _applies(
    planes: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    return (
        planes.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and groups == planes.shape[1] == weight.shape[0] > 1
        and bias is None
        and all(len(set(pair)) == 1 for pair in (stride, padding, dilation, weight.shape[2:]))
        and dilation[0] == 1
        and weight.shape[-1] >= stride[0]
    )


class _Depthwise(torch.autograd.Function):
    """``conv2d(planes, weight, None, stride, padding, 1, C)`` of (N, C, H, W) and (C, 1, k, k)."""

    @staticmethod
    def forward(
        ctx: Any, planes: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
    ) -> torch.Tensor:
        ctx.save_for_backward(planes, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(planes, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        planes, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        of_planes = of_weight = None
        if ctx.needs_input_grad[0]:
            of_planes = _of_planes(grad, weight, planes.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(grad, planes, weight, ctx.stride, ctx.padding)
        return of_planes, of_weight, None, None


def _of_planes(
    grad: torch.Tensor, weight: torch.Tensor, shape: torch.Size, stride: int, padding: int
) -> torch.Tensor:
    """What lands on every ``stride``-th row and column is a convolution with every ``stride``-th weight."""
    size, groups = weight.shape[-1], len(weight)
    if stride == 1:
        return functional.conv2d(grad, weight.flip(2, 3), None, 1, size - 1 - padding, 1, groups)
    count, channels, height, width = shape
    found = _zeros(grad, (count, channels, height + 2 * padding, width + 2 * padding))
    for row in range(stride):
        for column in range(stride):
            some = weight[:, :, row::stride, column::stride].flip(2, 3)
            part = functional.conv2d(grad, some, None, 1, (some.shape[2] - 1, some.shape[3] - 1), 1, groups)
            found[
                :,
                :,
                row : row + stride * part.shape[2] : stride,
                column : column + stride * part.shape[3] : stride,
            ] = part
    return found[:, :, padding : padding + height, padding : padding + width]


def _of_weight(
    grad: torch.Tensor, planes: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """The weights in columns of three, each against the part of ``planes`` that it has met."""
    size = weight.shape[-1]
    if size <= _COLUMNS and stride == 1:
        return _narrow(grad, planes, weight, (padding, padding))
    if padding:
        count, channels, height, width = planes.shape
        wider = _zeros(planes, (count, channels, height + 2 * padding, width + 2 * padding))
        wider[:, :, padding : padding + height, padding : padding + width] = planes
        planes = wider
    found = torch.empty_like(weight)
    height, width = grad.shape[2:]
    for row in range(stride):
        for column in range(stride):
            met, some = planes[:, :, row::stride, column::stride], weight[:, :, row::stride, column::stride]
            into = found[:, :, row::stride, column::stride]
            rows = met[:, :, : height + some.shape[2] - 1]
            for start in range(0, some.shape[3], _COLUMNS):
                columns = some[:, :, :, start : start + _COLUMNS].contiguous()
                part = rows[:, :, :, start : start + width + columns.shape[3] - 1]
                part = part.contiguous(memory_format=torch.channels_last)
                into[:, :, :, start : start + _COLUMNS] = _narrow(grad, part, columns, (0, 0))
    return found


def _narrow(
    grad: torch.Tensor, planes: torch.Tensor, weight: torch.Tensor, padding: tuple[int, int]
) -> torch.Tensor:
    mask = [False, True, False]
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        grad, planes, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), mask
    )[1]
    return found


def _zeros(like: torch.Tensor, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Zeros of ``shape`` (N, C, H, W), channels last in memory."""
    count, channels, height, width = shape
    return like.new_zeros((count, height, width, channels)).permute(0, 3, 1, 2)
