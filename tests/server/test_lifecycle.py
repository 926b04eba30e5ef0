"""Start, stop, and start again: what is left behind, what is kept, and what listens where."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Running, start_service, stop_service
from tests.photos import coffee_jpeg
from tests.server.processes import under
from tests.server.test_scores import unique

pytestmark = pytest.mark.server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_and_a_second_start_has_everything(
    tmp_path: Path, models_dir: Path, number: int
) -> None:
    first = start_service(tmp_path)
    photo = unique(coffee_jpeg(800, 600))
    body = {"image": photo}
    profile = {"profile": '{"user": "ana"}'}
    result = httpx.post(f"{first.url}/v1/scores", files=body, data=profile, headers=first.headers).json()
    processes = under(first)
    assert stop_service(first, number) == 0
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    for port in (httpx.URL(first.url).port, first.metrics_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0

    second = start_service(tmp_path)
    try:
        assert second.api_key == first.api_key
        with httpx.Client(base_url=second.url, headers=second.headers, timeout=10) as client:
            assert client.get(f"/v1/scores/{result['id']}").json() == result
            assert client.get("/v1/scores", params={"user": "ana"}).json()["items"] == [result]
            assert client.post("/v1/scores", content=photo).json()["duplicate_of"] == result["id"]
    finally:
        assert stop_service(second) == 0


def test_a_killed_service_takes_its_processes_with_it(tmp_path: Path, models_dir: Path) -> None:
    """kill -9 of the command itself: nobody is left to clean up, so each part must end by itself."""
    running = start_service(tmp_path)
    processes = under(running)
    running.process.kill()
    running.process.wait(10)
    _, alive = psutil.wait_procs(processes, timeout=60)
    try:
        assert not [" ".join(process.cmdline())[:80] for process in alive]
    finally:
        for process in alive:
            process.kill()


def test_a_used_port_and_a_used_folder_are_said_in_words(service: Running) -> None:
    environment = os.environ | {"FOODDX_DATA_DIR": str(service.data_dir)}
    command = [str(Path(sys.executable).parent / "fooddx"), "serve"]

    def refused(**variables: str) -> str:
        done = subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    port = str(httpx.URL(service.url).port)
    assert "set FOODDX_PORT" in refused(FOODDX_PORT=port)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        free = {"FOODDX_PORT": str(one.getsockname()[1]), "FOODDX_METRICS_PORT": str(other.getsockname()[1])}
        one.close()
        other.close()
        assert "already using the data" in refused(**free)
    assert "unknown environment variable FOODDX_TYPO" in refused(FOODDX_TYPO="1")


def test_everything_listens_on_loopback(service: Running) -> None:
    for process in under(service):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                address = connection.laddr.ip.removeprefix("::ffff:")
                assert address in {"127.0.0.1", "::1"}, (process.cmdline()[:2], connection.laddr)


def test_the_preprocessor_and_the_cpu_scorer_hold_no_torch(service: Running) -> None:
    for process in under(service):
        title = " ".join(process.cmdline())
        if "ServeReplica" in title:
            libraries = {Path(mapped.path).name for mapped in process.memory_maps() if mapped.path}
            assert not any("libtorch" in library for library in libraries), title
