"""An environment for each peer, made at first use: its own pinned packages before the project's.

The project's environment stands behind each peer's by a ``.pth`` file: so decode, model and stores are the
very same files for all, and what a peer pins in another version is found first, by that peer alone. Installed
anew are only packages that the project's environment lacks or has in another version; torch, which no peer
imports, would take 5 GB in each.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
BUILD: Final = ROOT / "build" / "peers"


def requirements(name: str) -> Path:
    """The pinned packages of a peer."""
    return Path(__file__).with_name(f"{name}.txt")


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing or not what is pinned.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed; pip has said why.
    """
    folder, pins = BUILD / name, requirements(name)
    project = Path(sysconfig.get_path("purelib"))
    locked = (ROOT / "requirements.lock").read_text()
    made_from = "\n".join([pins.read_text(), locked, str(project), str(ROOT), sys.version])
    wanted = hashlib.sha256(made_from.encode()).hexdigest()
    python, done = folder / "bin" / "python", folder / "installed"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file() or done.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=False)
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            packages = folder / "lib" / version / "site-packages"
            (packages / "project.pth").write_text(f"{project}\n{ROOT}\n")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
            install = [*pip, "install", "-q", "--no-deps", "--only-binary", ":all:", "-r", str(pins)]
            subprocess.run(install, check=True)  # noqa: S603 - our own words
            done.write_text(wanted)
    return python
