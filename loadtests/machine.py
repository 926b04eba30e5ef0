"""The machine that figures are of: its processor, its versions, and what else runs on it."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

_CPUINFO: Final = Path("/proc/cpuinfo")
_PACKAGES: Final = ("ray", "openvino", "pillow", "numpy", "fastapi", "uvloop", "redis", "obstore")
_ON: Final = ("user", "nice", "system", "irq", "softirq", "steal")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def facts() -> dict[str, Any]:
    """Processor, cores, date, versions, and the settings that the environment gives."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": cores(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "settings": {name: value for name, value in os.environ.items() if _is_setting(name)},
    }


def words() -> str:
    """The facts in a line."""
    known = facts()
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    return f"{known['cpu']}, {known['cores']} cores, {known['at']}, {versions}"


def busy_s() -> float:
    """CPU seconds since the machine's start that it spent, or that its host kept from it."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in _ON))


def settle(patience_s: float, share: float = 0.1) -> float:
    """Wait until the machine is nearly idle, at most ``patience_s``; the share of its CPU in use then."""
    end = time.monotonic() + patience_s
    while True:
        used = psutil.cpu_percent(interval=1.0) / 100
        if used <= share or time.monotonic() > end:
            return used


def _is_setting(name: str) -> bool:
    return name.startswith(("FOODDX_", "RAY_SERVE_")) and not name.endswith(("_KEY", "_URL"))
