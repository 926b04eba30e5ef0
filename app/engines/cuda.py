"""torch on CUDA, in bfloat16 and channels_last, as CUDA graphs. On the CPU in float32, for the tests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np
import torch

from app.engines import EngineError, Logits, Pixels, Probabilities, check_finite, check_pixels, run_self_test
from app.engines.folding import Folded
from app.engines.lanes import Forward, Lane
from app.telemetry import logger
from models.heads import probabilities
from models.manifest import Manifest
from models.network import WeightsError, load_network

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batches are padded to one of these: a graph has a fixed size, and kernels are picked once per size."""

Mode = Literal["graphs", "eager", "compiled"]
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class CudaEngine:
    """Bytes cross PCIe, normalisation happens on the device: a quarter of what float32 pixels would take.

    Up to ``concurrency`` calls overlap, copies of one with kernels of another (see ``Lane``); more wait their
    turn.

    A photo's logits do not depend on its neighbours, but bucket sizes may run different kernels, so that
    the same photo in another batch size can differ by bfloat16's rounding.
    """

    def __init__(
        self,
        manifest: Manifest,
        artefacts: Path,
        *,
        device: str = "cuda",
        precision: Literal["f32", "bf16"] | None = None,
        mode: Mode = "graphs",
        lanes: int = 2,
    ) -> None:
        """Load and self-test on ``device``, a torch device name.

        Without ``precision``: bf16 on CUDA, f32 on a CPU. ``mode``: "graphs" replays what was captured at
        warm-up, "eager" launches kernel by kernel, "compiled" has torch.compile make the kernels, at every
        start anew and with a C compiler at hand, and captures those. ``lanes`` is the ``concurrency``.
        """
        self.name, self.version, self.input_size = manifest.name, manifest.version, manifest.input.size
        self.concurrency, self.device = lanes, device
        self._manifest, self._artefacts = manifest, artefacts
        self._device, self._mode = torch.device(device), mode
        on_cuda = self._device.type == "cuda"
        dtype = _DTYPES[precision or ("bf16" if on_cuda else "f32")]
        try:
            torch.zeros(1, device=self._device)  # no device: known before seconds are spent on the weights
            if on_cuda and mode != "eager":
                # Sizes are few and fixed: let cuDNN try its kernels once for each. Not where nothing is
                # captured: what it found it keeps per thread, and every caller's would begin anew.
                torch.backends.cudnn.benchmark = True
            network = Folded(load_network(manifest, artefacts / "weights.safetensors"), self.input_size)
            network = network.to(self._device, dtype).to(memory_format=torch.channels_last).eval()
            self._network: Forward = network
            if mode == "compiled":
                torch._dynamo.config.recompile_limit = 2 * len(BUCKETS)  # beyond it, eager without a word
                self._network = torch.compile(network, dynamic=False, mode="max-autotune-no-cudagraphs")
            self._open(2)  # what the self-test needs
        # torch without CUDA asserts that there is one.
        except (RuntimeError, AssertionError, OSError, WeightsError) as error:
            raise EngineError(f"{self.name}: torch cannot load the model: {error}") from error
        run_self_test(self, artefacts)

    def predict(self, pixels: Pixels) -> Probabilities:
        """See ``Engine.predict``; from any number of threads."""
        check_pixels(pixels, self.input_size)
        return self._probabilities(pixels)

    def predict_device(self, pixels: torch.Tensor) -> Probabilities:
        """As ``predict``, of photos that are on the device already: uint8 (N, input_size, input_size, 3).

        What the caller's current stream is still writing is waited for. Raises as ``predict`` does.
        """
        shape = (self.input_size, self.input_size, 3)
        if (
            pixels.dtype != torch.uint8
            or pixels.shape[1:] != shape
            or pixels.device.type != self._device.type
        ):
            raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)} on {pixels.device}")
        return self._probabilities(pixels)

    def warm_up(self, max_batch: int) -> None:
        """Run, and capture, every bucket that batches up to ``max_batch`` fall into; no calls meanwhile.

        A larger batch is then several of the largest bucket. Raises EngineError when the device fails, or
        what was captured does not pass the self-test.
        """
        start = time.perf_counter()
        capacity = next((bucket for bucket in BUCKETS if bucket >= max_batch), BUCKETS[-1])
        buckets = [bucket for bucket in BUCKETS if bucket <= capacity]
        try:
            lanes = self._open(capacity)
            for lane in lanes:
                lane.prepare(buckets, graphs=self._mode != "eager")
        except RuntimeError as error:
            raise EngineError(f"{self.name}: warm-up failed: {error}") from error
        for _ in lanes:  # the queue hands them out in turn
            run_self_test(self, self._artefacts)
        logger.info(
            "engine warmed up",
            extra={
                "model": self.name,
                "device": str(self._device),
                "buckets": buckets,
                "graphs": [list(lane.captured) for lane in lanes],
                "seconds": round(time.perf_counter() - start, 2),
            },
        )

    def _open(self, capacity: int) -> list[Lane]:
        """Replace the lanes by ones for batches of up to ``capacity``."""
        self._capacity = capacity
        self._idle: SimpleQueue[Lane] = (
            SimpleQueue()
        )  # lets go of the former ones before the memory is needed
        shape = (capacity, self.input_size, self.input_size, 3)
        lanes = [
            Lane(self._network, shape, self._manifest.logits, self._device) for _ in range(self.concurrency)
        ]
        for lane in lanes:
            self._idle.put(lane)
        return lanes

    def _probabilities(self, pixels: Pixels | torch.Tensor) -> Probabilities:
        try:
            logits = self._logits(pixels)
        except RuntimeError as error:  # includes torch.AcceleratorError; a CUDA context does not recover
            raise EngineError(f"{self.name}: inference failed: {error}") from error
        check_finite(logits, self.name)
        return probabilities(logits, self._manifest.heads)

    def _logits(self, pixels: Pixels | torch.Tensor) -> Logits:
        """Logits of any number of photos, one bucket after the other, on as many lanes as are idle."""
        logits = np.empty((len(pixels), self._manifest.logits), np.float32)
        flying: deque[tuple[Lane, slice]] = deque()
        try:
            for rows, bucket in _batches(len(pixels), self._capacity):
                try:
                    # Whoever holds a lane must not wait for another: two could wait for each other's.
                    lane = self._idle.get(block=not flying)
                except Empty:
                    lane = _land(flying, logits)
                flying.append((lane, rows))
                lane.start(pixels[rows], bucket)
            while flying:
                self._idle.put(_land(flying, logits))
        finally:  # after a failure: nobody may wait for ever
            for lane, _ in flying:
                self._idle.put(lane)
        return logits


def _land(flying: deque[tuple[Lane, slice]], logits: Logits) -> Lane:
    """Wait for the batch that left first, write its rows down, and give its lane."""
    lane, rows = flying[0]
    logits[rows] = lane.finish()
    flying.popleft()
    return lane


def _batches(count: int, capacity: int) -> Iterator[tuple[slice, int]]:
    """Which rows go together, and in which bucket."""
    for start in range(0, count, capacity):
        rows = slice(start, min(start + capacity, count))
        yield rows, next(bucket for bucket in BUCKETS if bucket >= rows.stop - start)
