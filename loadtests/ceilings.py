"""What a device reaches at best, what a network asks of it, and the roofline that follows.

A ceiling in images/s is a roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): the slower of the
network's operations at the rate of a large matrix product, and of the bytes that its layers read and write,
once each, at the rate of a large copy; and never more than the bus carries of photos. Fused kernels touch
fewer bytes than that, so a compiled network may come out above it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.engines.folding import Folded
from models.manifest import Manifest
from models.network import load_network


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches at best: operations/s, and bytes/s within its memory and over the bus."""

    flops: float
    memory: float
    bus: float | None


@dataclass(frozen=True)
class Cost:
    """What the network needs: operations and bytes of layers per photo, bytes of weights per batch."""

    flops: float
    activations: float
    weights: float
    pixels: float

    def ceiling(self, batch: int, device: Ceilings) -> float:
        """The most images/s that ``device`` could do in batches of ``batch``."""
        compute_s = self.flops * batch / device.flops
        memory_s = (self.activations * batch + self.weights) / device.memory
        bus_s = self.pixels * batch / device.bus if device.bus else 0.0
        return batch / max(compute_s, memory_s, bus_s)


def timed(work: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Seconds per call of ``work``, which may return before it is done; ``wait`` waits for all of it."""
    for _ in range(3):
        work()
    wait()
    calls, start = 0, time.perf_counter()
    while True:
        for _ in range(3):
            work()
        wait()
        calls += 3
        if (spent := time.perf_counter() - start) >= seconds:
            return spent / calls


def ceilings(device: torch.device, seconds: float) -> Ceilings:
    """Measure the device. On a CPU, for the tests, with small matrices and in float32."""
    on_cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if on_cuda else (lambda: None)
    side, size = (8192, 1 << 30) if on_cuda else (256, 1 << 20)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    left, right = (torch.randn((side, side), dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * side**3 / timed(lambda: torch.mm(left, right, out=product), wait, seconds)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    memory = 2 * size / timed(lambda: target.copy_(source), wait, seconds)
    bus = None
    if on_cuda:
        pinned = torch.zeros(size // 4, dtype=torch.uint8, pin_memory=True)
        near = target[: size // 4]
        bus = size / 4 / timed(lambda: near.copy_(pinned, non_blocking=True), wait, seconds)
    return Ceilings(flops, memory, bus)


def cost(manifest: Manifest, folder: Path, element_bytes: int) -> Cost:
    """Count a network as the engine runs it, by sending one photo through it on the CPU."""
    size = manifest.input.size
    network = Folded(load_network(manifest, folder / "weights.safetensors"), size).eval()
    touched = 0

    def count(module: torch.nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal touched
        if not isinstance(module, torch.nn.Identity):
            touched += given[0].numel() + made.numel()

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, size, size, 3), dtype=torch.uint8))
    weights = sum(parameter.numel() for parameter in network.parameters())
    pixels = size * size * 3
    return Cost(
        counter.get_total_flops(), touched * element_bytes + pixels, weights * element_bytes, float(pixels)
    )
