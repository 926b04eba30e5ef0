"""The torch network of a manifest: uint8 photos in, head logits out. Imports torch and timm (slow, large)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.manifest import Manifest


class WeightsError(ValueError):
    """A weights file does not fit the network its manifest names."""


class Network(torch.nn.Module):
    """The backbone with the input's normalisation in front, so that every engine shares one definition of it.

    ``forward`` takes uint8 (N, size, size, 3) and gives float32 logits (N, ``manifest.logits``). Casting
    the module to bfloat16 keeps the normalisation exact for a mean that is whole and a std that is a power
    of two: eight significant bits hold every value of a byte.
    """

    def __init__(self, manifest: Manifest, *, drop: float = 0.0, drop_path: float = 0.0) -> None:
        """``drop`` and ``drop_path`` (stochastic depth) only act in training."""
        super().__init__()
        self.backbone = timm.create_model(
            manifest.backbone,
            pretrained=False,
            num_classes=manifest.logits,
            drop_rate=drop,
            drop_path_rate=drop_path,
        )
        self.mean, self.std = manifest.input.mean, manifest.input.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # noqa: D102 - the class says it
        dtype = next(self.backbone.parameters()).dtype
        # NHWC seen as NCHW is channels_last memory, the layout convolutions are fastest in: no copy.
        planes = pixels.permute(0, 3, 1, 2).to(dtype)
        logits: torch.Tensor = self.backbone((planes - self.mean) / self.std)
        return logits.float()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the heads see: uint8 (N, size, size, 3) → (N, F)."""
        planes = pixels.permute(0, 3, 1, 2).to(next(self.backbone.parameters()).dtype)
        maps = self.backbone.forward_features((planes - self.mean) / self.std)
        found: torch.Tensor = self.backbone.forward_head(maps, pre_logits=True)
        return found

    @property
    def heads(self) -> torch.nn.Linear:
        """The layer that all heads share."""
        layer: torch.nn.Linear = self.backbone.classifier
        return layer

    def replace_heads(self, layer: torch.nn.Linear) -> None:
        """Put ``layer`` in the place of ``heads``; torch never asks a property's setter about a module."""
        self.backbone.classifier = layer

    def compact_state(self) -> dict[str, torch.Tensor]:
        """The backbone's state with what is multiplied in half precision, half the size.

        Norms stay in float32: a variance may be larger or smaller than half precision holds.
        """
        return {
            name: (tensor.half() if tensor.ndim > 1 else tensor).cpu().contiguous()
            for name, tensor in self.backbone.state_dict().items()
        }

    def stages(self) -> list[torch.nn.Module]:
        """The network from the photo to the heads, in the pieces that may be frozen one by one."""
        net = self.backbone
        stem = torch.nn.ModuleList([net.conv_stem, net.bn1])
        top = torch.nn.ModuleList([net.conv_head, net.bn2])
        return [stem, *net.blocks, top, net.classifier]


def load_network(manifest: Manifest, weights: Path, *, drop: float = 0.0, drop_path: float = 0.0) -> Network:
    """The network in eval mode on the CPU, float32, with ``weights`` loaded.

    A ``.safetensors`` file must carry the backbone's own parameter names. A ``.pth`` file (the installed
    packages') is matched by position, since it holds the same layers in the same order under other names.
    Raises WeightsError when the file is broken, or a name, kind or shape differs; OSError when it is missing.
    """
    network = Network(manifest, drop=drop, drop_path=drop_path)
    own = network.backbone.state_dict()
    if weights.suffix == ".safetensors":
        try:
            state = load_file(weights)
        except SafetensorError as error:
            raise WeightsError(f"{manifest.name}: {weights.name} is broken: {error}") from error
        if state.keys() != own.keys():
            raise WeightsError(f"{manifest.name}: parameter names differ from {manifest.backbone}'s")
    else:
        state = _by_position(manifest, torch.load(weights, map_location="cpu", weights_only=True), own)
    wrong = [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    if wrong:
        raise WeightsError(f"{manifest.name}: {wrong[0]} has another shape than in {manifest.backbone}")
    network.backbone.load_state_dict(state)
    return network.eval()


def rows_of(layer: torch.nn.Linear, rows: slice) -> torch.nn.Linear:
    """A layer of some of another's outputs."""
    weight = layer.weight.detach()[rows].clone()
    part = torch.nn.Linear(weight.shape[1], weight.shape[0])
    part.weight.data, part.bias.data = weight, layer.bias.detach()[rows].clone()
    return part


def stacked(layers: Sequence[torch.nn.Linear]) -> torch.nn.Linear:
    """One layer whose outputs are those of ``layers``, one after the other."""
    weight = torch.cat([layer.weight.detach().cpu() for layer in layers])
    whole = torch.nn.Linear(weight.shape[1], weight.shape[0])
    whole.weight.data, whole.bias.data = weight, torch.cat([layer.bias.detach().cpu() for layer in layers])
    return whole


def _by_position(
    manifest: Manifest, foreign: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """``foreign``'s tensors under ``own``'s names; weight, bias, running_mean… must line up one by one."""

    def kinds(state: Mapping[str, torch.Tensor]) -> list[str]:
        return [name.rpartition(".")[2] for name in state]

    if kinds(foreign) != kinds(own):
        raise WeightsError(f"{manifest.name}: the file's layers do not follow {manifest.backbone}'s order")
    return dict(zip(own, foreign.values(), strict=True))
