"""The Preprocessor: encoded photos in, pixels to the Scorer, a few numbers back. Never imports torch."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from app.autoscaling import PHOTOS
from app.deployments import settle
from app.deployments.calls import LARGEST_BY_VALUE, calling, grouped_scorer
from app.engines import Decode
from app.engines.inputs import input_specs
from app.errors import DeadlineExceeded, FoodDXError, ScorerUnavailable
from app.imaging.bare import BareJpeg, bare_jpeg
from app.imaging.cost import is_slow
from app.imaging.guards import ImageInfo, ImageLimits, inspect
from app.imaging.inputs import InputSpec
from app.imaging.prepare import Prepared, prepare
from app.messages import PhotoJob, PixelsJob, Rejected, Scored, Undecoded, expired
from app.telemetry import RayMeter, log_soon, logger
from models.manifest import ManifestError, load_manifest

_THREADS = 2  # for quick photos, and two for slow ones: these never hold up those
# Than the rest of the process, and than the scorer: what is decoded already goes first, and a quick photo
# before a slow one, where they want the same core.
_NICER = {"quick": 2, "slow": 4}
_WAITING = 256  # decoded photos that no call has taken yet, 150 KB each at 224 pixels

Made = TypeVar("Made")


class Preprocessor:
    """Decodes photos in threads (Pillow gives up the GIL) and passes them on."""

    def __init__(self, registry: Path, limits: ImageLimits, scorer: Any, decode: Decode = "cpu") -> None:
        """``decode``: where baseline JPEGs are, here or on the scorer's GPU."""
        self._registry = registry
        # Models change a few times a year, and two at a time are in use while they do.
        self._specs = lru_cache(maxsize=8)(self._read_specs)
        self._limits = limits
        self._scorer = scorer
        self._group = grouped_scorer(scorer, waiting=_WAITING)
        self._away = decode == "gpu"
        self._quick, self._slow = (
            ThreadPoolExecutor(_THREADS, name, initializer=os.nice, initargs=(nicer,))
            for name, nicer in _NICER.items()
        )
        self._in_hand = 0
        self._meter = RayMeter()
        settle(computing=True)

    async def __call__(self, jobs: Sequence[PhotoJob]) -> list[Scored | Rejected]:
        """Prepare photos and have them scored; each fails alone."""
        self._in_hand += len(jobs)
        try:
            outcomes = await asyncio.gather(*map(self._outcome, jobs))
        finally:
            self._in_hand -= len(jobs)
        decode_ms = [round(o.decode_s * 1000, 1) for o in outcomes if isinstance(o, Scored)]
        log_soon("prepared", request_ids=[job.request_id for job in jobs], decode_ms=decode_ms)
        return outcomes

    async def _outcome(self, job: PhotoJob) -> Scored | Rejected:
        try:
            return await self._score(job)
        except FoodDXError as error:
            logger.info("not scored", extra={"request_id": job.request_id, "code": error.code})
            return Rejected.of(error)

    async def _score(self, job: PhotoJob) -> Scored | Rejected:
        if self._away and (scored := await self._score_encoded(job)):
            return scored
        threads = self._slow if is_slow(job.data) else self._quick
        prepared, decode_s = await self._in(threads, self._prepare, job)
        outcome = await self._group(
            PixelsJob(prepared.pixels, job.models, job.deadline, time.time(), job.request_id)
        )
        if isinstance(outcome, Rejected):
            return outcome
        if isinstance(outcome, Undecoded):  # a defect: there was nothing to decode
            raise FoodDXError
        info = prepared.info
        return Scored(outcome, info.media_type, info.width, info.height, prepared.pdq, decode_s)

    async def _score_encoded(self, job: PhotoJob) -> Scored | Rejected | None:
        """Have the scorer decode it too; None where the photo is none of those it can."""
        (info, bare), decode_s = await self._in(self._quick, self._strip, job)
        if bare is None or len(bare.data) > LARGEST_BY_VALUE:
            return None
        outcome = await self._group(
            PixelsJob((), job.models, job.deadline, time.time(), job.request_id, encoded=bare)
        )
        if isinstance(outcome, Rejected):
            return outcome
        if isinstance(outcome, Undecoded) or outcome.pdq is None:
            return None
        return Scored(outcome, info.media_type, info.width, info.height, outcome.pdq, decode_s)

    async def _in(
        self, threads: ThreadPoolExecutor, work: Callable[[PhotoJob], Made], job: PhotoJob
    ) -> tuple[Made, float]:
        """What ``work`` makes of a photo in one of ``threads``, and the seconds it took."""

        def timed() -> tuple[Made, float]:
            # Asked here, in the thread: what waited too long in its queue is dropped before it costs more.
            if expired(job.deadline):
                self._meter.add("fooddx_expired_total", stage="decode")
                raise DeadlineExceeded
            start = time.perf_counter()
            return work(job), time.perf_counter() - start

        return await asyncio.get_running_loop().run_in_executor(threads, timed)

    def _prepare(self, job: PhotoJob) -> Prepared:
        return prepare(job.data, self._limits, self._specs(job.models))

    def _strip(self, job: PhotoJob) -> tuple[ImageInfo, BareJpeg | None]:
        info = inspect(job.data, self._limits)
        return info, bare_jpeg(job.data, info)

    def _read_specs(self, models: tuple[str, ...]) -> tuple[InputSpec, ...]:
        try:
            return input_specs(load_manifest(ref, self._registry) for ref in models)
        except ManifestError as error:
            logger.error("model not on this node", extra={"models": list(models), "reason": str(error)})
            raise ScorerUnavailable("The model is not here yet.", retry_after_s=1) from error

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve; see app/autoscaling.py."""
        return {PHOTOS: self._in_hand}

    async def ready(self) -> bool:
        """Whether a photo could be scored now; asks the scorer too."""
        try:
            with calling("scorer"):
                return bool(await self._scorer.ready.remote())
        except ScorerUnavailable:
            return False
