"""Calls between deployments: in groups, and what Ray raises as errors of ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from app.errors import Overloaded, ScorerUnavailable
from app.grouping import Bounds, Grouping
from app.imaging.cost import is_slow
from app.messages import PhotoJob, PixelsJob, Rejected, Scored, ScorerOutcome
from app.telemetry import logger

# By gRPC a message may have 4 MiB unless every node was told otherwise; larger photos go through the object
# store of Ray, which has no such bound.
LARGEST_BY_VALUE: Final = 3 * 2**20
_READY_TIMEOUT_S: Final = 2.0
# Measured, see docs/performance.md. A group of photos ends when its last one does: several smaller ones
# answer sooner than one that carries all.
PHOTO_CALLS: Final = 4
PIXEL_CALLS: Final = 1
_PHOTOS: Final = 16


@contextlib.contextmanager
def calling(deployment: str) -> Iterator[None]:
    """Around an awaited handle call.

    Raises:
        Overloaded: the deployment's queue is full.
        ScorerUnavailable: its replica died, is not there yet, or failed in a way nobody planned for.
    """
    try:
        yield
    except BackPressureError:
        raise Overloaded("All places are taken; try again shortly.", retry_after_s=1) from None
    except (RayError, RayServeException) as error:
        # The first line is the kind of failure; the rest may be a traceback, which goes to the replica's log.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        logger.warning("call failed", extra={"to": deployment, "reason": reason[:300]})
        raise ScorerUnavailable(retry_after_s=1) from None


class RemoteScorer:
    """The Preprocessor's handle as the pipeline wants its scorer."""

    def __init__(self, preprocessor: Any, waiting: int) -> None:
        """``waiting``: the most photos that wait here to be sent."""
        self._small = preprocessor
        self._large = preprocessor.options(_by_reference=True)
        bounds = Bounds(PHOTO_CALLS, items=_PHOTOS, nbytes=LARGEST_BY_VALUE, waiting=waiting)
        self._group = Grouping(self._send, bounds, _photo_bytes)

    async def __call__(self, job: PhotoJob) -> Scored | Rejected:
        """Have a photo prepared and scored; raises as ``calling``."""
        # A group comes back as one, so what would hold it up goes by itself.
        if len(job.data) > LARGEST_BY_VALUE or is_slow(job.data):
            return (await self._send([job]))[0]
        return await self._group(job)

    async def _send(self, jobs: list[PhotoJob]) -> Sequence[Scored | Rejected]:
        handle = self._large if len(jobs[0].data) > LARGEST_BY_VALUE else self._small
        with calling("preprocessor"):
            outcomes: Sequence[Scored | Rejected] = await handle.remote(jobs)
        return outcomes

    async def ready(self) -> None:
        """Raise ScorerUnavailable unless a photo could be scored now."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                with calling("preprocessor"):
                    if await self._small.ready.remote():
                        return
        except TimeoutError:
            pass
        raise ScorerUnavailable("The models are not loaded yet.", retry_after_s=1)


def _photo_bytes(job: PhotoJob) -> int:
    return len(job.data)


def grouped_scorer(scorer: Any, waiting: int) -> Grouping[PixelsJob, ScorerOutcome]:
    """The Scorer's handle, called for many photos at a time; raises as ``calling``."""

    async def send(jobs: list[PixelsJob]) -> Sequence[ScorerOutcome]:
        with calling("scorer"):
            outcomes: Sequence[ScorerOutcome] = await scorer.run.remote(jobs)
        return outcomes

    bounds = Bounds(PIXEL_CALLS, items=_PHOTOS, nbytes=LARGEST_BY_VALUE, waiting=waiting)
    return Grouping(send, bounds, attrgetter("nbytes"))
