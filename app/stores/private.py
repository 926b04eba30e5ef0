"""Folders that other users of the machine cannot enter."""

from __future__ import annotations

import os
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make ``path``, or take it over if it is ours, and close it to everybody else.

    Raises:
        PermissionError: it belongs to another user, who may have made it first in a folder for all.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    path.chmod(0o700)
    return path
