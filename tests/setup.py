"""What the tests need beside the lock: a browser, and images fetched once. ``python -m tests.setup``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from rich.console import Console

from loadtests import emulators
from tests import corpus
from tests.chromium import find_chromium

CONSOLE = Console(stderr=True)


def main() -> int:
    """Fetch and install what is missing; 0 when everything is there."""
    corpus.fetch()
    CONSOLE.print("Object stores that check signatures, for the tests of S3")
    emulators.install()
    found = _chromium()
    # Gigabytes may just have been installed: written to the disk now, they hold up no store while tests wait.
    os.sync()
    return 0 if found else 1


def _chromium() -> bool:
    """Chromium: the one that is there, Debian's as root, else the one Playwright downloads."""
    if find_chromium():
        return True
    if os.geteuid() == 0 and shutil.which("apt-get"):
        CONSOLE.print("Installing Chromium for the browser tests")
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        if find_chromium():
            return True
    CONSOLE.print("Downloading Chromium for the browser tests")
    if subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False).returncode:
        CONSOLE.print("[red]No Chromium:[/] install it, or name one in the variable CHROMIUM")
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
