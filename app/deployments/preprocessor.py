"""The Preprocessor: encoded photos in, pixels to the Scorer, a few numbers back. Never imports torch."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.deployments import SWITCH_S
from app.deployments.calls import calling, grouped_scorer
from app.engines.inputs import input_specs
from app.errors import DeadlineExceeded, FoodDXError, ScorerUnavailable
from app.imaging.decode import InputSpec
from app.imaging.guards import ImageLimits
from app.imaging.prepare import Prepared, prepare
from app.messages import PhotoJob, PixelsJob, Rejected, Scored, expired
from app.telemetry import RayMeter, logger
from models.manifest import ManifestError, load_manifest

# Two, although one core may be all there is: a slow progressive photo then shares with small ones
# instead of holding them up.
_THREADS = 2
_NICER = 4  # than the rest of the process, and than the scorer
_WAITING = 256  # decoded photos that no call has taken yet, 150 KB each at 224 pixels


class Preprocessor:
    """Decodes photos in threads (Pillow gives up the GIL) and passes them on."""

    def __init__(self, registry: Path, limits: ImageLimits, scorer: Any) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._registry = registry
        # Models change a few times a year, and two at a time are in use while they do.
        self._specs = lru_cache(maxsize=8)(self._read_specs)
        self._limits = limits
        self._scorer = scorer
        self._group = grouped_scorer(scorer, waiting=_WAITING)
        # What is decoded already goes first: where both want the same core, the scorer gets more of it.
        self._threads = ThreadPoolExecutor(_THREADS, "decode", initializer=lambda: os.nice(_NICER))
        self._meter = RayMeter()

    async def __call__(self, jobs: Sequence[PhotoJob]) -> list[Scored | Rejected]:
        """Prepare photos and have them scored; each fails alone."""
        outcomes = await asyncio.gather(*map(self._outcome, jobs))
        decode_ms = [round(o.decode_s * 1000, 1) for o in outcomes if isinstance(o, Scored)]
        # One line for all: a line costs as much as a tenth of a photo's decoding.
        logger.info("prepared", extra={"request_ids": [j.request_id for j in jobs], "decode_ms": decode_ms})
        return outcomes

    async def _outcome(self, job: PhotoJob) -> Scored | Rejected:
        try:
            return await self._score(job)
        except FoodDXError as error:
            logger.info("not scored", extra={"request_id": job.request_id, "code": error.code})
            return Rejected.of(error)

    async def _score(self, job: PhotoJob) -> Scored | Rejected:
        loop = asyncio.get_running_loop()
        prepared, decode_s = await loop.run_in_executor(self._threads, self._prepare, job)
        outcome = await self._group(
            PixelsJob(prepared.pixels, job.models, job.deadline, time.time(), job.request_id)
        )
        if isinstance(outcome, Rejected):
            return outcome
        info = prepared.info
        return Scored(outcome, info.media_type, info.width, info.height, prepared.pdq, decode_s)

    def _prepare(self, job: PhotoJob) -> tuple[Prepared, float]:
        # Asked here, in the thread: what waited in its queue too long is dropped before it costs anything.
        if expired(job.deadline):
            self._meter.add("fooddx_expired_total", stage="decode")
            raise DeadlineExceeded
        start = time.perf_counter()
        prepared = prepare(job.data, self._limits, self._specs(job.models))
        return prepared, time.perf_counter() - start

    def _read_specs(self, models: tuple[str, ...]) -> tuple[InputSpec, ...]:
        try:
            return input_specs(load_manifest(ref, self._registry) for ref in models)
        except ManifestError as error:
            logger.error("model not on this node", extra={"models": list(models), "reason": str(error)})
            raise ScorerUnavailable("The model is not here yet.", retry_after_s=1) from error

    async def ready(self) -> bool:
        """Whether a photo could be scored now; asks the scorer too."""
        try:
            with calling("scorer"):
                return bool(await self._scorer.ready.remote())
        except ScorerUnavailable:
            return False
