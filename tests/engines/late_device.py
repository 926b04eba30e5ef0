"""A device as late as CUDA allows: nothing that is sent to a stream happens before somebody waits for it.

Copies, kernels and replays are queued, and run when an event behind them is waited for, or another stream is
told to wait. Whoever reads or overwrites a buffer too early gets wrong numbers, every time.
"""

import threading
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import torch


class LateTensor(torch.Tensor):
    """A tensor whose copies that need not block take place on the current stream."""

    def copy_(self, source, non_blocking=False):
        assert non_blocking
        target, source = self.as_subclass(torch.Tensor), source.as_subclass(torch.Tensor)
        self.device_of.send(lambda: target.copy_(source))
        return self


class Stream:
    def __init__(self, device=None):
        self.queue = deque()
        self.lock = threading.RLock()

    def drain(self):
        with self.lock, torch.inference_mode():
            while self.queue:
                self.queue.popleft()()

    def wait_stream(self, other):
        self.queue.append(other.drain)


class Event:
    def __init__(self, blocking):
        assert blocking
        self.stream = None

    def synchronize(self):
        self.stream.drain()


class LateDevice:
    """Stands in for ``torch`` in ``app.engines.lanes``.

    Attributes:
        captures: (bucket, stream, pool) of each capture, in order.
        refused: buckets that cannot be captured.
        breaking: buckets whose capture breaks the device.
        broken: whether the device fails as a whole.
        lie: what replays add to every answer.
    """

    def __init__(self):
        self.captures, self.refused, self.breaking = [], set(), set()
        self.broken, self.lie = False, 0.0
        self._here = threading.local()
        device = self

        class OnDevice(LateTensor):
            device_of = device

        self._tensor = OnDevice
        outer = self

        class LateEvent(Event):
            def record(self):
                self.stream = outer.stream_now()

        class Graph:
            def replay(self):
                assert outer.stream_now() is self.stream  # cuBLAS has one workspace per stream
                outer.send(self.run)

        self.cuda = SimpleNamespace(
            Stream=Stream,
            Event=LateEvent,
            CUDAGraph=Graph,
            stream=self._on,
            graph=self._capture,
            graph_pool_handle=object,
            current_stream=self.stream_now,
            synchronize=self._synchronize,
        )

    def __getattr__(self, name):
        return getattr(torch, name)

    def zeros(self, shape, *, dtype, pin_memory=False, device=None):
        assert pin_memory != (device is not None)  # either the device's, or page-locked
        return torch.zeros(shape, dtype=dtype).as_subclass(self._tensor)

    def allclose(self, found, expected, **tolerances):
        self._synchronize()
        return torch.allclose(found, expected, **tolerances)

    def stream_now(self):
        return self._here.__dict__.setdefault("stream", Stream())

    def send(self, work):
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")
        self.stream_now().queue.append(work)

    def network(self, answer):
        """A forward that computes ``answer`` late, or notes it down where a capture is under way."""

        def forward(pixels):
            pixels = pixels.as_subclass(torch.Tensor)
            logits = torch.zeros_like(answer(pixels))

            def run():
                torch.Tensor.copy_(logits, answer(pixels) + (self.lie if graph else 0))

            graph = getattr(self._here, "graph", None)
            if graph is None:
                self.send(run)
            else:
                graph.run = run
                self.captures.append((len(pixels), self.stream_now(), graph.pool))
                self.broken = len(pixels) in self.breaking
                if self.broken or len(pixels) in self.refused:
                    raise RuntimeError("operation not permitted when stream is capturing")
            return logits

        return forward

    @contextmanager
    def _on(self, stream):
        before, self._here.stream = self.stream_now(), stream
        try:
            yield
        finally:
            self._here.stream = before

    @contextmanager
    def _capture(self, graph, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        graph.pool, graph.stream, self._here.graph = pool, stream, graph
        try:
            with self._on(stream):
                yield
        finally:
            self._here.graph = None

    def _synchronize(self):
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")
        self.stream_now().drain()
