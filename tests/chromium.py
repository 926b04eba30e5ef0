"""Where the browser of the page's tests is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def find_chromium(bundled: str = "") -> str | None:
    """The one named in CHROMIUM, else the system's, else Playwright's own at ``bundled``."""
    for candidate in (os.environ.get("CHROMIUM"), shutil.which("chromium"), bundled):
        if candidate and Path(candidate).is_file():
            return candidate
    return None
