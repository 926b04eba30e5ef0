"""One batch's way over the GPU and back: its own buffers, its own stream, its own CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.engines import Logits, Pixels
from app.telemetry import logger

Forward = Callable[[torch.Tensor], torch.Tensor]

_WARM_UPS = 3  # runs before a capture: libraries pick kernels and make handles then, and may not during one
_TOLERANCE = 0.05  # of a logit's spread, between a replayed graph and the same kernels launched one by one

# torch allows one capture at a time in a process, and a scorer may load a model while another serves.
_capturing = threading.Lock()


class CaptureError(RuntimeError):
    """A captured graph answers something else than the network it was captured from."""


class Lane:
    """What one batch in flight needs, from the caller's bytes to the caller's logits.

    Copy in, network and copy out follow each other on the lane's stream, so that nothing in a lane can
    overtake anything else, and a buffer is touched again only after ``finish`` has waited for all of it. The
    overlap is between lanes: while one computes, another's bytes cross PCIe on the copy engine, and what a
    small batch leaves idle of the GPU, the other lane's kernels take. A caller must have a lane to itself
    from ``start`` to ``finish``. On a CPU the same steps run at once, with no stream and no graph.

    Graphs share one memory pool per lane, never between lanes: those of a lane cannot run at the same time,
    those of two can. They are captured on the lane's stream because cuBLAS keeps a workspace per stream.
    """

    def __init__(self, forward: Forward, shape: tuple[int, ...], outputs: int, device: torch.device) -> None:
        """``shape``: of the largest batch, (capacity, size, size, 3). Raises RuntimeError without memory."""
        on_cuda = device.type == "cuda"
        self._forward = forward
        # Page-locked: the GPU reads and writes it by itself, while the CPU does something else.
        staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_cuda)
        output = torch.zeros((shape[0], outputs), dtype=torch.float32, pin_memory=on_cuda)
        self._input = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._staging, self._staging_bytes = staging, staging.numpy()
        self._output, self._output_rows = output, output.numpy()
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        # Blocking: a thread that waits sleeps, and leaves its core to a decoder.
        self._done = torch.cuda.Event(blocking=True) if on_cuda else None  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle() if on_cuda else None
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._count = 0

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that replay a graph, ascending; others launch kernel by kernel."""
        return tuple(sorted(self._graphs))

    @torch.inference_mode()
    def start(self, pixels: Pixels | torch.Tensor, bucket: int) -> None:
        """Send photos, (n ≤ bucket, size, size, 3) uint8, on their way as a batch of ``bucket``.

        Rows from n on hold older photos; nothing reads what becomes of them. A tensor must be on the
        device: whatever the caller's current stream still has to write into it is waited for.
        """
        self._count = len(pixels)
        caller = torch.cuda.current_stream() if self._stream and isinstance(pixels, torch.Tensor) else None
        with torch.cuda.stream(self._stream):
            if caller and self._stream:
                self._stream.wait_stream(caller)
            self._input[: self._count].copy_(self._staged(pixels), non_blocking=True)
            logits = self._run(bucket)
            self._output[: self._count].copy_(logits[: self._count], non_blocking=True)
            if self._done:
                self._done.record()

    def finish(self) -> Logits:
        """Wait, without the GIL, and give the logits of what ``start`` was given, float32 (n, outputs).

        They are the lane's own memory: copy them before the next ``start``.
        """
        if self._done:
            self._done.synchronize()
        return self._output_rows[: self._count]

    def prepare(self, buckets: Sequence[int], *, graphs: bool) -> None:
        """Run every bucket, and capture it as a graph where ``graphs`` and the device allow.

        A bucket that cannot be captured is logged and stays as it was. Raises RuntimeError when the device
        does not get over it, CaptureError when a graph does not do what it was captured from.
        """
        for bucket in sorted(buckets, reverse=True):  # the largest first: smaller ones fit into its memory
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS if self._stream else 1):
                    expected = self._forward(self._input[:bucket])
                if graphs and self._stream:
                    self._capture(bucket, expected)

    def _staged(self, pixels: Pixels | torch.Tensor) -> torch.Tensor:
        if isinstance(pixels, torch.Tensor):
            return pixels
        # numpy to numpy: torch warns of read-only arrays, which Ray's are.
        np.copyto(self._staging_bytes[: len(pixels)], pixels)
        return self._staging[: len(pixels)]

    def _run(self, bucket: int) -> torch.Tensor:
        if bucket not in self._graphs:
            return self._forward(self._input[:bucket])
        graph, logits = self._graphs[bucket]
        graph.replay()
        return logits

    def _capture(self, bucket: int, expected: torch.Tensor) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Thread-local: what threads that serve do meanwhile is no fault of this capture.
            with (
                _capturing,
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                logits = self._forward(self._input[:bucket])
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises where it was the device, and not the capture
            logger.warning("graph not captured", extra={"bucket": bucket, "reason": str(error)})
            return
        graph.replay()
        spread = (expected.max() - expected.min()).item()
        if not torch.allclose(logits, expected, rtol=0.0, atol=_TOLERANCE * spread):
            raise CaptureError(f"the graph of a batch of {bucket} differs from its network")
        self._graphs[bucket] = graph, logits
