"""How many users a load test has at which time. Plain arithmetic: no clock, no Locust."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Shape(StrEnum):
    """What the number of users does."""

    STEADY = "steady"
    RAMP = "ramp"
    SPIKE = "spike"
    SOAK = "soak"


DURATION_S: Final = {Shape.STEADY: 60, Shape.RAMP: 120, Shape.SPIKE: 100, Shape.SOAK: 600}
"""How long each takes where nobody says."""
BASE: Final = 0.2
"""Share of the users who are there before and after a spike."""
SPIKE: Final = (0.4, 0.6)
"""When a spike begins and ends, in shares of the duration."""


@dataclass(frozen=True)
class Plan:
    """A load over time.

    - ``steady``: users come at the rate until all are there, and stay.
    - ``ramp``: users come evenly over the whole time, the last one at the end. The rate has no part in it.
    - ``spike``: a fifth of the users; between 40 and 60 % of the time all of them; then a fifth again. They
      come and go at the rate.
    - ``soak``: ``steady``, for long.

    Attributes:
        shape: which of them.
        users: the most at a time, 1 at least.
        rate: how many users may come or go per second, above 0.
        duration_s: seconds, 1 at least.

    Raises:
        ValueError: one of these is out of its range.
    """

    shape: Shape
    users: int
    rate: float
    duration_s: float

    def __post_init__(self) -> None:
        if self.users < 1 or not 0 < self.rate < math.inf or not 1 <= self.duration_s < math.inf:
            raise ValueError(f"{self.shape} needs 1 user or more, a rate above 0 and 1 second or more")

    def __str__(self) -> str:
        return f"{self.shape}, up to {self.users} users, {self.duration_s:g} s"

    def users_at(self, seconds: float) -> int | None:
        """How many users there are to be, 1 to ``users``, in the second that begins at ``seconds`` >= 0.

        None: it is over.
        """
        if seconds >= self.duration_s:
            return None
        match self.shape:
            case Shape.RAMP:
                return min(self.users, math.ceil(self.users * (seconds + 1) / self.duration_s))
            case Shape.SPIKE:
                return self._spike(seconds)
            case _:
                return max(1, _towards(0, self.users, self.rate * (seconds + 1)))

    @property
    def change(self) -> int:
        """More users than this never come or go from one second to the next."""
        return math.ceil(max(self.rate, self.users / self.duration_s)) + 1

    def _spike(self, seconds: float) -> int:
        base = math.ceil(self.users * BASE)
        begin, end = (share * self.duration_s for share in SPIKE)
        users = _towards(0, base, self.rate * (min(seconds, begin) + 1))
        users = _towards(users, self.users, self.rate * (min(seconds, end) - begin))
        return max(1, _towards(users, base, self.rate * (seconds - end)))


def _towards(start: int, goal: int, steps: float) -> int:
    """Where one is who goes from ``start`` to ``goal`` and stays there; below 0 steps have no effect."""
    way = min(abs(goal - start), max(0, math.floor(steps)))
    return start + way if goal > start else start - way
