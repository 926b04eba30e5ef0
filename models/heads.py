"""A network's heads: what its logits mean, and how they become probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["classes", "gate", "score"]
Floats = NDArray[np.float32]

SCORES = 5


class Head(BaseModel):
    """A run of ``size`` neighbouring logits with one meaning.

    - ``classes``: mutually exclusive labels, softmax (``size`` probabilities that sum to 1);
    - ``gate``: independent yes/no questions, sigmoid (``size`` probabilities);
    - ``score``: the four questions "is the score above 1, 2, 3, 4?", each a sigmoid; the five scores'
      probabilities are the differences between neighbours (proportional odds, McCullagh 1980).

    Every logit is divided by ``temperature`` first (Guo et al. 2017, arXiv:1706.04599): above 1 the model
    becomes less sure of itself, below 1 more; the ranking within a head does not change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    kind: Kind
    size: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _four_cuts(self) -> Self:
        if self.kind == "score" and self.size != SCORES - 1:
            raise ValueError(f"a score head has {SCORES - 1} logits, not {self.size}")
        return self

    @property
    def outputs(self) -> int:
        """How many probabilities the logits become."""
        return SCORES if self.kind == "score" else self.size


def probabilities(logits: Floats, heads: Sequence[Head]) -> Floats:
    """Logits (N, sum of sizes) → probabilities (N, sum of outputs), float32 in 0…1, head after head."""
    ends = np.cumsum([head.size for head in heads])
    parts = np.split(logits.astype(np.float32), ends[:-1], axis=1)
    return np.concatenate(
        [
            _ACTIVATIONS[head.kind](part / np.float32(head.temperature))
            for head, part in zip(heads, parts, strict=True)
        ],
        axis=1,
    )


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def _sigmoid(logits: Floats) -> Floats:
    # By tanh, which never overflows; exp of a large negative logit would.
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), dtype=np.float32)


def _ordinal(logits: Floats) -> Floats:
    # The questions' answers fall from one to the next in a network that was trained here; rounding in
    # bfloat16 may cross two that nearly agree, and a probability below 0 must not come of it.
    above = np.minimum.accumulate(_sigmoid(logits), axis=1)
    certain = np.ones((len(logits), 1), np.float32)
    return -np.diff(above, axis=1, prepend=certain, append=np.float32(0) * certain)


_ACTIVATIONS: dict[Kind, Callable[[Floats], Floats]] = {
    "classes": _softmax,
    "gate": _sigmoid,
    "score": _ordinal,
}
