"""Calls between deployments: what Ray raises, as errors of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from app.errors import Overloaded, ScorerUnavailable
from app.telemetry import logger


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
