"""How many replicas a deployment wants, by the photos it has in hand.

Serve counts calls, and a call between our deployments carries up to sixteen photos: by calls, a queue of
sixty would look like four. So the replicas report photos (``record_autoscaling_stats``), and this policy
reads them. Serve applies the bounds, the delays and the factors of ``autoscaling_config`` to what it wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

PHOTOS: Final = "photos"
"""The figure that each replica reports: photos it was given and has not answered."""


class PhotosInHand:
    """Serve's policy for the Preprocessor and the Scorer: as many replicas as hold ``target`` photos each."""

    def __init__(self, target: float) -> None:
        """``target``: photos in hand per replica, above 0, from ``policy_kwargs``. Else ValueError."""
        if not target > 0:
            raise ValueError(f"target must be above 0, not {target}")
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas wanted, not rounded, and no state."""
        reported: Mapping[Any, float] = (context.aggregated_metrics or {}).get(PHOTOS, {})
        if not reported:  # the first replica has yet to speak
            return context.target_num_replicas, {}
        return sum(reported.values()) / self._target, {}
