"""The service under load: how to be let in, and how to read what it answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

KEY_FILE = Path("data/api_key")


class NoKeyError(RuntimeError):
    """There is no API key to send."""


def api_key(environment: Mapping[str, str] = os.environ, file: Path = KEY_FILE) -> str:
    """``FOODDX_API_KEY``, or else what the service wrote to ``data/api_key`` at its first start.

    Raises:
        NoKeyError: neither is there.
    """
    if key := environment.get("FOODDX_API_KEY"):
        return key
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        raise NoKeyError(f"set FOODDX_API_KEY, or start the service here once: it writes {file}") from None


def problem_code(body: bytes | str | None) -> str:
    """The ``code`` of a problem answer; empty where the body is none."""
    try:
        problem = json.loads(body or b"")
    except ValueError:
        return ""
    return str(problem.get("code", "")) if isinstance(problem, dict) else ""


def retry_after_s(header: str | None, default: float = 1.0) -> float:
    """Seconds to wait before asking again, from a ``Retry-After`` header in seconds."""
    try:
        return max(0.0, float(header or default))
    except ValueError:
        return default
