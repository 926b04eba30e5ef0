"""The torch network of a manifest: uint8 photos in, head logits out. Imports torch and timm (slow, large)."""

from __future__ import annotations

from collections.abc import Mapping
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

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.backbone = timm.create_model(manifest.backbone, pretrained=False, num_classes=manifest.logits)
        self.mean, self.std = manifest.input.mean, manifest.input.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # noqa: D102 - the class says it
        dtype = next(self.backbone.parameters()).dtype
        # NHWC seen as NCHW is channels_last memory, the layout convolutions are fastest in: no copy.
        planes = pixels.permute(0, 3, 1, 2).to(dtype)
        logits: torch.Tensor = self.backbone((planes - self.mean) / self.std)
        return logits.float()


def load_network(manifest: Manifest, weights: Path) -> Network:
    """The network in eval mode on the CPU, float32, with ``weights`` loaded.

    A ``.safetensors`` file must carry the backbone's own parameter names. A ``.pth`` file (the installed
    packages') is matched by position, since it holds the same layers in the same order under other names.
    Raises WeightsError when the file is broken, or a name, kind or shape differs; OSError when it is missing.
    """
    network = Network(manifest)
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


def _by_position(
    manifest: Manifest, foreign: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """``foreign``'s tensors under ``own``'s names; weight, bias, running_mean… must line up one by one."""

    def kinds(state: Mapping[str, torch.Tensor]) -> list[str]:
        return [name.rpartition(".")[2] for name in state]

    if kinds(foreign) != kinds(own):
        raise WeightsError(f"{manifest.name}: the file's layers do not follow {manifest.backbone}'s order")
    return dict(zip(own, foreign.values(), strict=True))
