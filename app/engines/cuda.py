"""torch on CUDA, in bfloat16 and channels_last. On the CPU in float32, as the tests' reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from app.engines import EngineError, Pixels, Probabilities, check_finite, check_pixels, run_self_test
from models.heads import probabilities
from models.manifest import Manifest
from models.network import WeightsError, load_network

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batches are padded to one of these: cuDNN picks kernels, and the allocator blocks, once per size."""


class CudaEngine:
    """Bytes cross PCIe, normalisation happens on the device: a quarter of what float32 pixels would take."""

    def __init__(self, manifest: Manifest, artefacts: Path, *, device: str = "cuda") -> None:
        """Load and self-test on ``device``, a torch device name."""
        self.name, self.version, self.input_size = manifest.name, manifest.version, manifest.input.size
        self._manifest = manifest
        self._device = torch.device(device)
        on_cuda = self._device.type == "cuda"
        # Every batch passes through this one buffer; the GPU reads page-locked memory without a copy.
        shape = (BUCKETS[-1], self.input_size, self.input_size, 3)
        try:
            self._staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_cuda)
            network = load_network(manifest, artefacts / "weights.safetensors")
            dtype = torch.bfloat16 if on_cuda else torch.float32
            self._network = network.to(self._device, dtype).to(memory_format=torch.channels_last)
        except (RuntimeError, OSError, WeightsError) as error:
            raise EngineError(f"{self.name}: torch cannot load the model: {error}") from error
        run_self_test(self, artefacts)

    def predict(self, pixels: Pixels) -> Probabilities:
        """See ``Engine.predict``."""
        check_pixels(pixels, self.input_size)
        largest = BUCKETS[-1]
        logits = np.empty((len(pixels), self._manifest.logits), np.float32)
        try:
            for start in range(0, len(pixels), largest):
                logits[start : start + largest] = self._infer(pixels[start : start + largest])
        except RuntimeError as error:  # includes torch.AcceleratorError; a CUDA context does not recover
            raise EngineError(f"{self.name}: inference failed: {error}") from error
        check_finite(logits, self.name)
        return probabilities(logits, self._manifest.heads)

    def warm_up(self, max_batch: int) -> None:
        """Run every bucket that batches up to ``max_batch`` fall into."""
        for bucket in BUCKETS:
            self.predict(np.zeros((bucket, self.input_size, self.input_size, 3), np.uint8))
            if bucket >= max_batch:
                break

    @torch.inference_mode()
    def _infer(self, pixels: Pixels) -> Probabilities:
        """Logits of at most one bucket. Rows of the padding hold older photos and are dropped."""
        count = len(pixels)
        bucket = next(size for size in BUCKETS if size >= count)
        self._staging[:count].numpy()[:] = (
            pixels  # numpy to numpy: torch warns of read-only arrays, Ray's are
        )
        logits = self._network(self._staging[:bucket].to(self._device, non_blocking=True))
        return np.asarray(logits[:count].cpu())  # waits for the device, so the buffer is free again
