"""Folding changes how much is computed, never what."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d

from app.engines.folding import Folded
from models.manifest import load_manifest
from models.network import Network

LITE0 = load_manifest("imagenet-lite0")
BACKBONES = ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet18", "vit_tiny_patch16_224"]
SIZE = 224


def awake(backbone):
    """A network whose batch norms have statistics and factors of their own, as trained ones have."""
    torch.manual_seed(0)
    manifest = LITE0.model_copy(update={"backbone": backbone})
    network = Network(manifest).eval()
    network.mean, network.std = 123.7, 57.1
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


@pytest.fixture(params=BACKBONES)
def network(request):
    assert timm.is_model(request.param)
    return awake(request.param)


def photos():
    return torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.manual_seed(1))


@torch.inference_mode()
def test_logits_stay(network):
    batch = photos()
    expected = network(batch)
    found = Folded(network, SIZE)(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_nothing_is_left_to_normalise(network):
    folded = Folded(network, SIZE)
    assert folded.std == 1.0
    left = [type(module) for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert left == []
    assert not any(isinstance(module, BatchNormAct2d) for module in folded.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


class Plain(torch.nn.Module):
    """Nothing that could take the division: the photo is averaged before anything is multiplied."""

    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AvgPool2d(8)
        self.norm = torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(3, 5)

    def forward(self, planes):
        return self.head(self.norm(self.pool(planes)).mean((2, 3)))


@torch.inference_mode()
def test_what_follows_no_convolution_stays_as_it_is():
    network = awake("resnet18")
    network.backbone = Plain().eval()
    batch = photos()
    expected = network(batch)
    folded = Folded(network, SIZE)
    torch.testing.assert_close(folded(batch), expected)
    assert folded.std == 57.1


@torch.inference_mode()
def test_bytes_reach_bfloat16_without_loss():
    network = awake("resnet18")
    network.mean, seen = 127.0, []
    network.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    folded = Folded(network, SIZE).to(torch.bfloat16).to(memory_format=torch.channels_last)
    batch = torch.arange(256, dtype=torch.uint8).repeat(SIZE * SIZE * 3 // 256).reshape(1, SIZE, SIZE, 3)
    folded(batch)
    planes = seen[-1]
    assert planes.dtype == torch.bfloat16
    assert planes.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(planes.float(), batch.permute(0, 3, 1, 2).float() - 127, rtol=0, atol=0)
