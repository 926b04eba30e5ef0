"""What Ray runs: each a thin shell around a room that knows nothing of Ray."""

from __future__ import annotations

import gc
import sys
from typing import Final

_SWITCH_S: Final = 0.0005
"""How long a thread may keep the interpreter from another; Python's 5 ms is as long as a photo takes."""
_YOUNG: Final = 10_000
"""New objects that make Python look for cycles; its 700 are those of a few requests."""


def settle(*, computing: bool) -> None:
    """Tune this process's interpreter, once all that stays is loaded.

    What is loaded by now is not searched for garbage again. ``computing``: threads beside the event loop do
    the work here, and must not wait for it.
    """
    if computing:
        sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
