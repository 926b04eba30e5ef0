"""What each process of the service spends: CPU time and memory from /proc, by what the process is for."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

NICENESS: Final = 15
"""Of Ray's workers (RAY_worker_niceness). A load generator or a bare loop at a better one would take its CPU
from the service and then be measured against it."""

STORE, HAPROXY, RAY = "store", "HAProxy", "Ray itself"
_REPLICA: Final = re.compile(r"ray::ServeReplica:\w+:(\w+)")
_SERVICE: Final = re.compile(r"^ray::|/raylet |/(?:fooddx|serve) |app\.local_cluster")


def be_as_nice() -> None:
    """Give this process the niceness of the service's workers, unless it is nicer already."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def role(title: str, name: str = "") -> str:
    """What a process is for, by its title and name: a deployment, HAProxy, the store, or Ray itself."""
    if replica := _REPLICA.match(title):
        return replica[1]
    if name == "haproxy":
        return HAPROXY
    return STORE if name in {"valkey-server", "redis-server"} else RAY


def title(process: psutil.Process) -> str:
    """What a process is called in a table: its role, and if that is Ray itself, the program or the actor."""
    arguments = process.cmdline()
    what = role(" ".join(arguments), process.name())
    if what != RAY:
        return what
    if arguments and arguments[0].startswith("ray::"):
        return arguments[0].partition(".")[0]
    if "-m" in arguments:
        return arguments[arguments.index("-m") + 1]
    script = next((argument for argument in arguments if argument.endswith(".py")), process.name())
    return Path(script).name


@dataclass(frozen=True)
class Usage:
    """One process at one moment.

    Attributes:
        role: see ``role``.
        cpu_s: user and system time since its start, in steps of 10 ms.
    """

    pid: int
    role: str
    cpu_s: float


def tree(root: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    return [root, *root.children(recursive=True)]


def usage(processes: Iterable[psutil.Process]) -> dict[int, Usage]:
    """The CPU time of each process that still runs, by its id."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            what = role(" ".join(process.cmdline()), process.name())
            found[process.pid] = Usage(process.pid, what, times.user + times.system)
    return found


def spent(before: Mapping[int, Usage], after: Mapping[int, Usage]) -> dict[str, float]:
    """CPU seconds by role between two moments. What ended in between is missing; what began counts whole."""
    seconds: dict[str, float] = defaultdict(float)
    for pid, now in after.items():
        seconds[now.role] += now.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    return dict(seconds)


def service_at(port: int) -> psutil.Process | None:
    """The first process of the service on this machine that has the front on ``port``; None: not found.

    From who listens there upwards, as long as the parent still is of Ray or of this project.
    """
    listeners = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid
    }
    for pid in sorted(listeners):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for parent in process.parents():
                if parent.pid == 1 or not _SERVICE.search(" ".join(parent.cmdline())):
                    break
                process = parent
            return process
    return None
