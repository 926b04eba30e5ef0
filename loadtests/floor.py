"""The floor: decode and inference with nothing around them, one process per core.

The very functions the service calls, ``app.imaging.prepare.prepare`` and the engine's ``predict``, one photo
after the other. No request, store or network: what a service spends beside this is its overhead.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

from app.engines import create_engine
from app.engines.inputs import input_specs
from app.imaging.guards import ImageLimits
from app.imaging.prepare import prepare
from loadtests.processes import be_as_nice
from models.build import build_apart
from models.manifest import load_manifest

Once = Callable[[bytes], tuple[float, float]]
"""Score one photo; the seconds that decode and inference took."""

_once: Once


@dataclass(frozen=True)
class Floor:
    """What the machine can do.

    Attributes:
        images_per_s: of one process per core together.
        cpu_ms: CPU milliseconds per image while all cores are busy.
        alone_ms: median time of one image where one process runs alone.
        decode_ms: of that, ``prepare``; the rest is ``predict``.
        spent_s: CPU seconds that it took to measure this.
    """

    images_per_s: float
    cpu_ms: float
    alone_ms: float
    decode_ms: float
    spent_s: float


class _Loop(NamedTuple):
    decode_s: list[float]
    infer_s: list[float]
    wall_s: float
    cpu_s: float


class FloorBench:
    """Processes with the model loaded, one per core, idle until measured. Also a context manager."""

    def __init__(self, model: str, models_dir: Path) -> None:
        build_apart([load_manifest(model)], models_dir)
        context = get_context("spawn")
        # As in the service: with a second thread, the linear algebra of the perceptual hash spins and takes
        # ten times its CPU. It is read when a process of the pool starts.
        os.environ["OMP_NUM_THREADS"] = "1"
        # A pool for each, so that every process has its task at the same time.
        self._pools = [
            ProcessPoolExecutor(1, context, initializer=_load, initargs=(model, models_dir))
            for _ in os.sched_getaffinity(0)
        ]
        for started in [pool.submit(os.getpid) for pool in self._pools]:
            started.result()

    def measure(self, jpeg: bytes, seconds: float) -> Floor:
        """All cores for ``seconds``, then one process alone for ``seconds``."""
        warm_up = self._loops(self._pools, jpeg, 0.2)
        together = self._loops(self._pools, jpeg, seconds)
        (alone,) = self._loops(self._pools[:1], jpeg, seconds)
        images = sum(len(loop.decode_s) for loop in together)
        decode_s, infer_s = median(alone.decode_s), median(alone.infer_s)
        return Floor(
            sum(len(loop.decode_s) / loop.wall_s for loop in together),
            sum(loop.cpu_s for loop in together) / images * 1000,
            (decode_s + infer_s) * 1000,
            decode_s * 1000,
            sum(loop.cpu_s for loop in (*warm_up, *together, alone)),
        )

    @staticmethod
    def _loops(pools: Sequence[ProcessPoolExecutor], jpeg: bytes, seconds: float) -> list[_Loop]:
        futures = [pool.submit(_repeat, jpeg, seconds) for pool in pools]
        return [future.result() for future in futures]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown()


def scorer(model: str, models_dir: Path) -> Once:
    """The product's decode and inference, one thread."""
    manifest = load_manifest(model)
    engine = create_engine("cpu", manifest, models_dir / manifest.folder, threads=1)
    limits, specs = ImageLimits(), input_specs([manifest])

    def once(jpeg: bytes) -> tuple[float, float]:
        start = time.perf_counter()
        prepared = prepare(jpeg, limits, specs)
        decoded = time.perf_counter()
        engine.predict(prepared.pixels[0][None])
        return decoded - start, time.perf_counter() - decoded

    return once


def _load(model: str, models_dir: Path) -> None:
    global _once  # noqa: PLW0603 - the one thing a process of the pool keeps
    be_as_nice()
    # OpenVINO tells its makers of every import, from a process that takes a core meanwhile. Without this
    # module it does not.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    _once = scorer(model, models_dir)


def _repeat(jpeg: bytes, seconds: float) -> _Loop:
    decode_s: list[float] = []
    infer_s: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while not decode_s or time.perf_counter() - began < seconds:
        decode, infer = _once(jpeg)
        decode_s.append(decode)
        infer_s.append(infer)
    return _Loop(decode_s, infer_s, time.perf_counter() - began, time.process_time() - cpu)
