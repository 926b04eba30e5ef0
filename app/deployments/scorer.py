"""The Scorer: batches of pixels in, probabilities out, on CUDA with torch or on a CPU with OpenVINO."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from app.engines import Engine, EngineError, create_engine
from app.errors import DeadlineExceeded, FoodDXError
from app.imaging.decode import InputSpec
from app.messages import Inference, PixelsJob, Rejected, expired
from app.telemetry import RayMeter, logger
from models.build import build_apart, is_built
from models.manifest import Manifest, load_manifest


class ScorerConfig(BaseModel):
    """What ``user_config`` may change while the scorer runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=16, ge=1, le=256)
    batch_wait_ms: float = Field(default=0.0, ge=0, le=1000)


class Scorer:
    """Runs every configured model over each batch.

    Attributes are private; what matters: a photo that cannot be run fails alone, as a Rejected among its
    batch's results. An engine that fails marks the replica as broken: ``check_health`` then tells Ray, which
    replaces it.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        models_dir: Path,
        device: Literal["cpu", "cuda"],
        threads: int,
        max_batch: int,
    ) -> None:
        start = time.perf_counter()
        if not all(is_built(name, models_dir) for name in models):
            # A node's set-up should have: it takes a replica's start from two seconds to many.
            logger.warning("building models at replica start", extra={"models": list(models)})
            build_apart(models, models_dir)
        manifests = [load_manifest(name) for name in models]
        self._engines: list[Engine] = [
            create_engine(device, manifest, models_dir / manifest.folder, threads) for manifest in manifests
        ]
        self._specs = input_specs(models)
        self._spec_of = [self._specs.index(input_spec(manifest)) for manifest in manifests]
        for engine in self._engines:
            engine.warm_up(max_batch)
        # One thread: an engine takes one call at a time, and the loop stays free to take in the next batch.
        self._thread = ThreadPoolExecutor(1, "infer")
        self._idle = asyncio.Event()
        self._idle.set()
        self._broken: str | None = None
        self._waiting = 0
        self._meter = RayMeter()
        logger.info(
            "scorer ready", extra={"models": list(models), "load_s": round(time.perf_counter() - start, 2)}
        )

    def reconfigure(self, config: dict[str, float]) -> None:
        """Take a new batch size and wait; the next batch uses them, nothing restarts."""
        wanted = ScorerConfig.model_validate(config)
        self._batched.set_max_batch_size(wanted.batch_size)
        self._batched.set_batch_wait_timeout_s(wanted.batch_wait_ms / 1000)

    def check_health(self) -> None:
        """Raise when an engine is broken: Ray then starts another replica."""
        if self._broken:
            raise EngineError(self._broken)

    def ready(self) -> bool:
        """Whether this replica could score now: its models are loaded, or it would not exist."""
        return self._broken is None

    async def run(self, job: PixelsJob) -> Inference | Rejected:
        """Score one photo, together with whoever else is waiting."""
        self._count(1)
        try:
            # Left alone, @serve.batch closes batches on its timer while one is still in work, and they come
            # out small. Whoever comes meanwhile waits here instead, and all of them make the next batch.
            await self._idle.wait()
            outcome: Inference | Rejected = await self._batched(job)
            return outcome
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._waiting += change
        self._meter.add("fooddx_scorer_queue", self._waiting)

    # The sizes here only stand until `reconfigure`, which Serve calls before the first request. One batch at
    # a time: two would compete for the same cores.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.0, max_concurrent_batches=1)  # type: ignore[untyped-decorator]
    async def _batched(self, jobs: list[PixelsJob]) -> list[Inference | Rejected]:
        started = time.time()
        live = [job for job in jobs if not expired(job.deadline) and self._fits(job)]
        self._idle.clear()
        try:
            outcomes = await self._infer(live, started) if live else {}
        finally:
            self._idle.set()
        self._meter.add("fooddx_batch_size", len(live))
        return [outcomes.get(id(job)) or self._reject(job) for job in jobs]

    async def _infer(self, jobs: list[PixelsJob], started: float) -> dict[int, Inference | Rejected]:
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, self._predict, jobs)
        except EngineError as error:
            # The device or the model failed, not a photo: no later batch can be trusted.
            self._broken = str(error)
            logger.exception("engine failed")
            raise
        score_s = time.time() - started
        logger.info(
            "batch",
            extra={
                "request_ids": [j.request_id for j in jobs],
                "size": len(jobs),
                "ms": round(score_s * 1000, 1),
            },
        )
        return {
            id(job): Inference(tuple(output[i] for output in outputs), max(started - job.sent, 0.0), score_s)
            for i, job in enumerate(jobs)
        }

    def _predict(self, jobs: list[PixelsJob]) -> list[NDArray[np.float32]]:
        stacked = [np.stack([job.pixels[i] for job in jobs]) for i in range(len(self._specs))]
        return [engine.predict(stacked[i]) for engine, i in zip(self._engines, self._spec_of, strict=True)]

    def _fits(self, job: PixelsJob) -> bool:
        return [p.shape for p in job.pixels] == [(spec.size, spec.size, 3) for spec in self._specs]

    def _reject(self, job: PixelsJob) -> Rejected:
        if expired(job.deadline):
            self._meter.add("fooddx_expired_total", stage="score")
            return Rejected.of(DeadlineExceeded())
        logger.error("pixels do not fit the models", extra={"request_id": job.request_id})
        return Rejected.of(FoodDXError())


def input_spec(manifest: Manifest) -> InputSpec:
    """How the Preprocessor must crop and resize for a model."""
    wanted = manifest.input
    return InputSpec(wanted.size, wanted.crop_fraction, wanted.interpolation)


def input_specs(models: tuple[str, ...]) -> tuple[InputSpec, ...]:
    """The distinct inputs of the models, in their order. Models with equal ones share their pixels."""
    return tuple(dict.fromkeys(input_spec(load_manifest(name)) for name in models))
