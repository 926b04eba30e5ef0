"""A network made ready to serve: what can be multiplied out ahead is, and each photo costs less."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from timm.layers import BatchNormAct2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.network import Network


class Folded(torch.nn.Module):
    """A ``Network`` in eval mode without its batch norms and without the division by the input's std.

    A batch norm that follows a convolution is a factor and an offset per channel: they go into its weights
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2). So does 1 / std, into the convolutions that see the
    photo; the mean has to stay, since the zeros that pad a normalised photo are bytes of the mean's value.
    Folding happens in float32; cast afterwards.
    """

    def __init__(self, network: Network, size: int) -> None:
        """Take ``network``'s backbone over and change it. ``size``: what its photos measure."""
        super().__init__()
        self.backbone = network.backbone
        self.mean, self.std = network.mean, network.std
        found = _watch(network, size)
        with torch.no_grad():
            for conv, norm_name in found.pairs:
                self._absorb(conv, norm_name)
            for conv in found.first:
                conv.weight /= self.std
        if found.first:
            self.std = 1.0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (N, size, size, 3) → float32 logits (N, L)."""
        planes = pixels.permute(0, 3, 1, 2)  # channels_last memory as it is: no copy
        centred = torch.empty_like(planes, dtype=next(self.backbone.parameters()).dtype)
        torch.sub(planes, self.mean, out=centred)  # one pass from bytes to the network's own type
        if self.std != 1.0:
            centred /= self.std
        logits: torch.Tensor = self.backbone(centred)
        return logits.float()

    def _absorb(self, conv: torch.nn.Conv2d, norm_name: str) -> None:
        norm = self.backbone.get_submodule(norm_name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        rest = norm.act if isinstance(norm, BatchNormAct2d) else torch.nn.Identity()
        self.backbone.set_submodule(norm_name, rest)


@dataclass
class _Flow:
    """Which convolution feeds which batch norm, by name, and which convolutions see the photo itself."""

    pairs: list[tuple[torch.nn.Conv2d, str]] = field(default_factory=list)
    first: list[torch.nn.Conv2d] = field(default_factory=list)


def _watch(network: Network, size: int) -> _Flow:
    """Follow one photo through the network: what is connected shows in the tensors that are passed on."""
    flow = _Flow()
    outputs: dict[int, tuple[torch.nn.Conv2d, torch.Tensor]] = {}  # holds them: an id is then theirs alone
    photo: list[torch.Tensor] = []

    def entering(_: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        photo.append(given[0])

    def convolved(conv: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(conv, torch.nn.Conv2d):
            outputs[id(output)] = conv, output
            if given[0] is photo[0]:
                flow.first.append(conv)

    def norming(name: str, given: tuple[torch.Tensor]) -> None:
        if id(given[0]) in outputs:
            flow.pairs.append((outputs[id(given[0])][0], name))

    handles = [network.backbone.register_forward_pre_hook(entering)]
    for name, module in network.backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            handles.append(module.register_forward_hook(convolved))
        elif type(module) in (torch.nn.BatchNorm2d, BatchNormAct2d):
            handles.append(module.register_forward_pre_hook(lambda _, given, n=name: norming(n, given)))
    with torch.inference_mode():
        network(torch.zeros((1, size, size, 3), dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    return flow
