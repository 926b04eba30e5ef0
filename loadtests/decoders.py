"""Processes that decode photos into memory shared with whoever scores them. Imports no torch, no Ray."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Sequence
from multiprocessing.queues import Queue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from app.imaging.inputs import InputSpec

PATIENCE_S = 60.0

Pixels = NDArray[np.uint8]


class DecodersError(RuntimeError):
    """No photo came for a long time: the processes are gone."""


class Decoders:
    """``processes`` processes that prepare one photo over and over, each time into a free slot of a ring.

    A slot is taken by whoever scores it and given back afterwards; while none is free, the processes wait.
    """

    def __init__(self, photo: bytes, spec: InputSpec, processes: int, slots: int) -> None:
        # A fork would carry torch, its threads and its GPU along.
        context = multiprocessing.get_context("spawn")
        ring = context.RawArray("B", slots * spec.size**2 * 3)
        self._slots = _as_slots(ring, spec)
        self._free: Queue[int | None] = context.Queue()
        self._ready: Queue[int] = context.Queue()
        self._one_taker = threading.Lock()
        self._processes = [
            context.Process(target=_decode, args=(photo, spec, ring, self._free, self._ready), daemon=True)
            for _ in range(processes)
        ]
        for slot in range(slots):
            self._free.put(slot)

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for channel in (self._free, self._ready):
            channel.close()
            channel.cancel_join_thread()

    def take(self, most: int) -> list[int]:
        """The slots of photos that are ready: at least one, which is waited for, and at most ``most``."""
        with self._one_taker:
            try:
                slots = [self._ready.get(timeout=PATIENCE_S)]
            except queue.Empty:
                raise DecodersError(f"no photo in {PATIENCE_S:.0f} s") from None
            while len(slots) < most:
                try:
                    slots.append(self._ready.get_nowait())
                except queue.Empty:
                    break
        return slots

    def pixels(self, slots: Sequence[int]) -> Pixels:
        """A copy of the photos in ``slots``, uint8 (n, size, size, 3)."""
        return self._slots[list(slots)]

    def give_back(self, slots: Sequence[int]) -> None:
        """Let the slots be written again."""
        for slot in slots:
            self._free.put(slot)


def _as_slots(ring: Any, spec: InputSpec) -> Pixels:
    return np.frombuffer(ring, np.uint8).reshape(-1, spec.size, spec.size, 3)


def _decode(photo: bytes, spec: InputSpec, ring: Any, free: Queue[int | None], ready: Queue[int]) -> None:
    from app.imaging.guards import ImageLimits  # noqa: PLC0415 - for who has no image library and never decodes
    from app.imaging.prepare import prepare  # noqa: PLC0415

    slots, limits = _as_slots(ring, spec), ImageLimits()
    while (slot := free.get()) is not None:
        slots[slot] = prepare(photo, limits, [spec]).pixels[0]
        ready.put(slot)
