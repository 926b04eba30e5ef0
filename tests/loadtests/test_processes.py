"""Processes: whose CPU is whose, and how the service is found by its port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from loadtests import processes
from loadtests.processes import HAPROXY, NICENESS, RAY, STORE, Usage, role, spent

BUSY = "import sys, time\nwhile time.process_time() < 0.1: pass\nprint('done', flush=True)\nsys.stdin.read()"
LISTENING = (
    "import socket, sys\ns = socket.create_server(('127.0.0.1', 0))\n"
    "print(s.getsockname()[1], flush=True)\nsys.stdin.read()"
)


@pytest.mark.parametrize(
    ("title", "name", "expected"),
    [
        ("ray::ServeReplica:fooddx:Ingress", "ray::ServeRepli", "Ingress"),
        ("ray::ServeReplica:fooddx:Scorer.handle_request   ", "ray::ServeRepli", "Scorer"),
        ("/x/haproxy -f haproxy.cfg", "haproxy", HAPROXY),
        ("/x/valkey-server unixsocket:/x", "valkey-server", STORE),
        ("ray::ServeController", "ray::ServeContr", RAY),
        ("/x/ray/core/src/ray/raylet/raylet --name", "raylet", RAY),
    ],
)
def test_a_process_is_known_by_its_title(title: str, name: str, expected: str) -> None:
    assert role(title, name) == expected


def test_time_is_spent_by_who_was_there_and_by_who_came_but_not_by_who_left() -> None:
    before = {1: Usage(1, "Scorer", 2.0), 2: Usage(2, "Ingress", 5.0)}
    after = {1: Usage(1, "Scorer", 2.5), 3: Usage(3, "Scorer", 0.25)}
    assert spent(before, after) == {"Scorer": 0.75}


def test_cpu_time_is_of_every_process_of_the_tree() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "done\n"
    found = processes.usage(processes.tree(psutil.Process()))
    assert found.keys() >= {os.getpid(), child.pid}
    assert found[child.pid].cpu_s >= 0.09
    child.communicate()
    assert child.pid not in processes.usage(processes.tree(psutil.Process()))


def test_niceness_is_raised_and_never_lowered() -> None:
    code = (
        "import os\nfrom loadtests.processes import be_as_nice\n"
        "be_as_nice()\nfirst = os.nice(0)\nos.nice(2)\nbe_as_nice()\nprint(first, os.nice(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert (first, second) == (NICENESS, NICENESS + 2)


def test_a_service_is_found_by_its_port() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LISTENING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    found = processes.service_at(int(child.stdout.readline()))
    assert found
    assert found.pid == child.pid
    child.communicate()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert processes.service_at(unused.getsockname()[1]) is None
