"""What Ray runs: each a thin shell around a room that knows nothing of Ray."""

from typing import Final

SWITCH_S: Final = 0.0005
"""How long a thread may keep the interpreter from another; Python's 5 ms is as long as a photo takes."""
