"""Calls between deployments: what Ray raises, as errors of ours; the Preprocessor as who scores photos."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from app.errors import Overloaded, ScorerUnavailable
from app.messages import PhotoJob, Rejected, Scored
from app.telemetry import logger

# By gRPC a message may have 4 MiB unless every node was told otherwise; larger photos go through the object
# store of Ray, which has no such bound.
_LARGEST_BY_VALUE: Final = 3 * 2**20
_READY_TIMEOUT_S: Final = 2.0


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

    def __init__(self, preprocessor: Any) -> None:
        self._small = preprocessor
        self._large = preprocessor.options(_by_reference=True)

    async def __call__(self, job: PhotoJob) -> Scored | Rejected:
        """Have a photo prepared and scored; raises as ``calling``."""
        handle = self._large if len(job.data) > _LARGEST_BY_VALUE else self._small
        with calling("preprocessor"):
            outcome: Scored | Rejected = await handle.remote(job)
        return outcome

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
