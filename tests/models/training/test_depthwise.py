"""The other way back through a depthwise convolution gives the gradients that torch gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.training import depthwise
from models.training.depthwise import FastDepthwise

# What half of the bits of a mantissa of eight may lose, and then some.
TOLERANCE = 0.02


def planes_of(channels: int, height: int, width: int) -> torch.Tensor:
    drawn = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height))
    return drawn.to(memory_format=torch.channels_last)


def gradients(
    planes: torch.Tensor, weight: torch.Tensor, *, fast: bool, **shape: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a convolution gives, and the gradients of both of its inputs."""
    planes, weight = planes.clone().requires_grad_(), weight.clone().requires_grad_()
    arguments = (shape["stride"],) * 2, (shape["padding"],) * 2, (1, 1), len(weight)
    if fast:
        with FastDepthwise(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = functional.conv2d(planes, weight, None, *arguments)
    else:
        found = functional.conv2d(planes, weight, None, *arguments)
    torch.manual_seed(1)
    found.float().backward(torch.randn(found.shape))
    assert planes.grad is not None
    assert weight.grad is not None
    return found.detach(), planes.grad, weight.grad


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 10)])
def test_gradients_are_those_of_torch(size: int, stride: int, padded: bool, height: int, width: int) -> None:
    planes = planes_of(8, height, width)
    weight = torch.randn(8, 1, size, size, generator=torch.Generator().manual_seed(size))
    shape = {"stride": stride, "padding": size // 2 if padded else 0}
    expected = gradients(planes, weight, fast=False, **shape)
    for found, right in zip(gradients(planes, weight, fast=True, **shape), expected, strict=True):
        assert found.shape == right.shape
        assert apart(found, right) < TOLERANCE


class TestLeavesAlone:
    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise AssertionError("not for this one")

        monkeypatch.setattr(depthwise._Depthwise, "apply", fail)

    def test_what_is_not_depthwise(self):
        with FastDepthwise(), torch.autocast("cpu", dtype=torch.bfloat16):
            functional.conv2d(planes_of(8, 9, 9), torch.randn(4, 8, 3, 3))
            functional.conv2d(planes_of(8, 9, 9), torch.randn(8, 4, 3, 3), None, (1, 1), (0, 0), (1, 1), 2)
            torch.nn.Conv2d(8, 8, 3, groups=8, bias=True)(planes_of(8, 9, 9))
            torch.nn.Conv2d(8, 8, (3, 1), groups=8, bias=False)(planes_of(8, 9, 9))
            torch.nn.Conv2d(8, 8, 3, dilation=2, groups=8, bias=False)(planes_of(8, 9, 9))

    def test_full_precision(self):
        with FastDepthwise():
            torch.nn.Conv2d(8, 8, 3, groups=8, bias=False)(planes_of(8, 9, 9))

    def test_but_takes_the_layers_of_a_network(self):
        with FastDepthwise(), torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AssertionError):
            torch.nn.Conv2d(8, 8, 3, groups=8, bias=False)(planes_of(8, 9, 9))
