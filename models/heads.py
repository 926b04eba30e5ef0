"""A network's heads: what its logits mean, and how they become probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["classes", "gate"]
Floats = NDArray[np.float32]


class Head(BaseModel):
    """A run of ``size`` neighbouring logits with one meaning.

    - ``classes``: mutually exclusive labels, softmax (``size`` probabilities that sum to 1);
    - ``gate``: independent yes/no questions, sigmoid (``size`` probabilities).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    kind: Kind
    size: Annotated[int, Field(ge=1)]


def probabilities(logits: Floats, heads: Sequence[Head], temperature: float) -> Floats:
    """Logits (N, sum of sizes) → as many probabilities, float32 in 0…1, head after head.

    Every logit is divided by ``temperature`` first (Guo et al. 2017, arXiv:1706.04599): above 1 the
    model becomes less sure of itself, below 1 more; the ranking within a head does not change.
    """
    ends = np.cumsum([head.size for head in heads])
    parts = np.split(logits.astype(np.float32) / np.float32(temperature), ends[:-1], axis=1)
    return np.concatenate(
        [_ACTIVATIONS[head.kind](part) for head, part in zip(heads, parts, strict=True)], axis=1
    )


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def _sigmoid(logits: Floats) -> Floats:
    # By tanh, which never overflows; exp of a large negative logit would.
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), dtype=np.float32)


_ACTIVATIONS: dict[Kind, Callable[[Floats], Floats]] = {"classes": _softmax, "gate": _sigmoid}
