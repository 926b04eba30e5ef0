"""What the deployments hand to each other. Bytes in, pixels on, a few numbers back.

A failure that one photo causes travels as a value (Rejected), not as an exception: an exception would be
pickled with its traceback, logged by Ray as a fault of ours, and in a batch would hit its neighbours too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import FoodDXError
from app.imaging.bare import BareJpeg


@dataclass(frozen=True, slots=True)
class PhotoJob:
    """Ingress → Preprocessor.

    Attributes:
        data: the encoded photo.
        models: what the models are called that are to look at it, see models/manifest.py. The job names them,
            so that a photo is prepared, run and judged for the same ones while others take over.
        deadline: Unix time in seconds after which nobody waits for the answer.
        request_id: for the logs.
    """

    data: bytes
    models: tuple[str, ...]
    deadline: float
    request_id: str


@dataclass(frozen=True, slots=True)
class PixelsJob:
    """Preprocessor → Scorer.

    Attributes:
        pixels: per distinct input of the models, in their order, uint8 (size, size, 3) RGB; none of a photo
            that is yet to be decoded.
        models: as in PhotoJob.
        deadline: as in PhotoJob.
        sent: Unix time in seconds when it was sent, so that the wait can be told.
        request_id: for the logs.
        encoded: the photo, where the scorer is to decode it.
    """

    pixels: tuple[NDArray[np.uint8], ...]
    models: tuple[str, ...]
    deadline: float
    sent: float
    request_id: str
    encoded: BareJpeg | None = None

    @property
    def nbytes(self) -> int:
        """About how much of it travels."""
        return sum(p.nbytes for p in self.pixels) + (len(self.encoded.data) if self.encoded else 0)


@dataclass(frozen=True, slots=True)
class Inference:
    """Scorer → Preprocessor.

    Attributes:
        probabilities: per model, float32 (``manifest.outputs``,).
        queue_s: seconds between sending and the start of the batch.
        score_s: seconds the batch took.
        pdq: the perceptual hash of a photo that the scorer decoded.
    """

    probabilities: tuple[NDArray[np.float32], ...]
    queue_s: float
    score_s: float
    pdq: str | None = None


@dataclass(frozen=True, slots=True)
class Undecoded:
    """Scorer → Preprocessor: this photo cannot be decoded here; have it as pixels."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Preprocessor → Ingress: what is known about a photo, before anyone judges it."""

    inference: Inference
    media_type: str
    width: int
    height: int
    pdq: str
    decode_s: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """Any stage → the one before: this photo, and only this one, failed."""

    code: str
    detail: str

    @classmethod
    def of(cls, error: FoodDXError) -> Rejected:
        """The value that carries ``error``."""
        return cls(error.code, error.detail)


ScorerOutcome = Inference | Rejected | Undecoded
"""What the Scorer says of a photo."""


def expired(deadline: float) -> bool:
    """Whether nobody waits any more."""
    return time.time() >= deadline
