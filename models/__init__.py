"""What the scorer runs, where each number comes from, and the programs that build and evaluate it."""

import sys

# Or whoever imports openvino would tell Google Analytics so, from a process that takes a second of a core.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
