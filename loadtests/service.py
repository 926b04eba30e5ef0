"""A service of the load tests' own: ``fooddx serve`` on free ports, over a data folder thrown away after."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import psutil

from app.serving import free_port
from app.stores.embedded import die_with_parent
from loadtests import processes
from loadtests.target import api_key

BUILD: Final = Path(__file__).parents[1] / "build"
MODELS: Final = BUILD / "models"
"""Built models, shared with the tests: to build one takes longer than the rest of the start."""
START_S: Final = 180.0
STOP_S: Final = 90.0
_PLACES: Final = ("FOODDX_API_KEY", "FOODDX_URL", "FOODDX_REDIS_URL", "FOODDX_STORE")


class StartError(RuntimeError):
    """The service did not start; the text says where its log is."""


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        url: its address, without a slash at the end.
        key: an API key.
        root: the process above all others of the service; None where it is not on this machine.
        data_dir: its data folder; None where it is not ours.
    """

    url: str
    key: str = field(repr=False)
    root: psutil.Process | None = None
    data_dir: Path | None = None

    def usage(self) -> dict[int, processes.Usage]:
        """The CPU time of each of its processes; none where they are not on this machine."""
        return processes.usage(processes.tree(self.root)) if self.root else {}

    def forget_photos(self, older_s: float = 0.0) -> None:
        """Delete stored photos of a service of our own; at 12 MP a minute leaves several GB.

        Args:
            older_s: seconds since a photo was written; under load above 0, for those still being written.
        """
        limit = time.time() - older_s
        for path in (self.data_dir / "images").rglob("*") if self.data_dir else ():
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith(".") and path.stat().st_mtime <= limit:
                    path.unlink()


def running_at(url: str) -> Service:
    """A service that somebody else started.

    Raises:
        NoKeyError: there is no API key for it.
    """
    url = url.rstrip("/")
    address = httpx.URL(url)
    local = address.host in {"127.0.0.1", "localhost", "::1"}
    port = address.port or (443 if address.scheme == "https" else 80)
    return Service(url, api_key(), processes.service_at(port) if local else None)


@contextlib.contextmanager
def running(url: str | None, folder: Path) -> Iterator[Service]:
    """The service at ``url``, or else one of our own with its data and logs in ``folder``."""
    if url:
        yield running_at(url)
        return
    with started(folder) as service:
        yield service


@contextlib.contextmanager
def started(folder: Path, settings: Mapping[str, object] | None = None) -> Iterator[Service]:
    """Start ``fooddx serve`` over an empty data folder in ``folder``; at the end stop it and delete that.

    Args:
        folder: made if it is missing; its ``serve.log`` and ``terminal.log`` stay, those of the last run.
        settings: of app/settings.py, over those of the environment.

    Raises:
        StartError: it ended, or was not ready in time.
    """
    for left in folder.glob("data-*"):  # by a run that was killed
        if not psutil.pid_exists(int(left.name.removeprefix("data-"))):
            shutil.rmtree(left, ignore_errors=True)
    data_dir = folder / f"data-{os.getpid()}"
    data_dir.mkdir(parents=True)
    MODELS.mkdir(exist_ok=True)
    (data_dir / "models").symlink_to(MODELS)
    url = f"http://127.0.0.1:{free_port()}"
    own = {"data_dir": data_dir, "port": url.rpartition(":")[2], "metrics_port": free_port()}
    variables = {f"FOODDX_{name.upper()}": str(value) for name, value in {**(settings or {}), **own}.items()}
    environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
    terminal = folder / "terminal.log"
    # Told to end, this process stops what it started, like at Ctrl-C.
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with terminal.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - our own words
            [str(Path(sys.executable).with_name("fooddx")), "serve"],
            env=environment | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C in the terminal is for this process, which stops the service
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call
        )
    try:
        _wait_until_ready(url, process, terminal)
        yield Service(url, (data_dir / "api_key").read_text().strip(), psutil.Process(process.pid), data_dir)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(FileNotFoundError):
            (data_dir / "serve.log").replace(folder / "serve.log")
        shutil.rmtree(data_dir, ignore_errors=True)
        signal.signal(signal.SIGTERM, handler)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], terminal: Path) -> None:
    deadline = time.monotonic() + START_S
    # A proxy named in the environment knows nothing of this machine's loopback.
    with httpx.Client(trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{url}/readyz").is_success:
                    return
            time.sleep(0.1)
    raise StartError(f"fooddx serve did not start; what it said: {terminal}, serve.log beside it")
