"""The profile: what py-spy sees of a process, and what is said where it sees nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtests import profiling, stacks
from loadtests.profiling import SpyError
from loadtests.service import Service

PROGRAM = """
import sys, threading
def burn():
    while True: sum(range(1000))
threading.Thread(target=burn, name="decode_7", daemon=True).start()
print("running", flush=True)
sys.stdin.read()
"""


def test_a_thread_has_its_name_its_time_and_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "FOLDER", tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    child.stdout.readline()
    try:
        process = psutil.Process(child.pid)
        files = profiling.record({"it": process}, 1.0, ".raw", "--format", "raw", "--threads")
        times = profiling.thread_seconds(process, profiling.thread_names(process))
    finally:
        child.kill()
        child.communicate()
    assert sum(time for (_, name), time in times.items() if name == "decode") > 0
    cpu = stacks.weigh(stacks.parse(files["it"].read_text().splitlines()), times)
    assert any("burn" in share.name and share.self_share > 0.5 for share in stacks.by_function(cpu))


def test_what_py_spy_cannot_look_at_is_said_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "FOLDER", tmp_path)
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        with pytest.raises(SpyError, match="SYS_PTRACE"):
            profiling.record({"it": psutil.Process(sleeper.pid)}, 1.0, ".raw")
        sleeper.kill()


def test_a_service_elsewhere_cannot_be_profiled() -> None:
    with pytest.raises(SpyError, match="no replica"):
        profiling.replicas(Service("http://elsewhere", "key"))
