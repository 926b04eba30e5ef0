"""The graph by Ray's own commands: ``serve run`` and ``serve deploy``, as any Ray user would use them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from app.serving import free_port
from app.stores.embedded import EmbeddedStore
from tests.conftest import API_KEY
from tests.photos import coffee_jpeg
from tests.server.test_scores import unique

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S = 120.0


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command and everything it starts; both are gone afterwards."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
        process.kill()
        process.wait()


@pytest.fixture
def environment(tmp_path: Path, models_dir: Path) -> Iterator[dict[str, str]]:
    """Variables for Ray's commands, with folders of this test's own."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "models").symlink_to(models_dir)
    # Short enough for sockets. Ray looks there for a cluster to join, and must find none but this test's.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray_dir:
        yield os.environ | {
            "FOODDX_DATA_DIR": str(data_dir),
            # How fast this machine is, is not what is tested.
            "FOODDX_BUDGET_MS": "10000",
            "RAY_TMPDIR": ray_dir,
            # Ray is asked for its token by every command, on one machine too.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }


def first_score(url: str, data_dir: Path, log: Path) -> dict[str, object]:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.HTTPError, FileNotFoundError):
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                break
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)
    key_file = data_dir / "api_key"
    key = key_file.read_text().strip() if key_file.exists() else API_KEY
    response = httpx.post(
        f"{url}/v1/scores",
        content=unique(coffee_jpeg(800, 600)),
        headers={"Authorization": f"Bearer {key}"},
        timeout=10,
    )
    assert response.status_code == 200, response.text
    result: dict[str, object] = response.json()
    return result


def test_serve_run_brings_its_own_store_and_stops_it(tmp_path: Path, environment: dict[str, str]) -> None:
    # `serve run` has no option for its port.
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0, "port 8000 is in use: stop what uses it"
    log = tmp_path / "serve-run.log"
    command = [str(BIN / "serve"), "run", "app.main:build", "device=cpu", "batch_size=8"]
    data_dir = Path(environment["FOODDX_DATA_DIR"])
    with running(command, log, environment) as process:
        assert first_score("http://127.0.0.1:8000", data_dir, log)["status"] == "scored"
        stores = [p for p in psutil.Process(process.pid).children() if p.name() == "valkey-server"]
        assert len(stores) == 1
    assert not stores[0].is_running()
    assert "set RAY_SERVE_THROUGHPUT_OPTIMIZED=1 and RAY_SERVE_ENABLE_HA_PROXY=1" in log.read_text()


def test_serve_run_refuses_a_misspelt_argument(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [str(BIN / "serve"), "run", "app.main:build", "devise=cpu"],
        env=environment,
        capture_output=True, text=True, timeout=START_S, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode != 0
    assert "devise" in done.stderr + done.stdout


@pytest.fixture
def head(tmp_path: Path, environment: dict[str, str]) -> Iterator[tuple[str, dict[str, str], Path]]:
    """A Ray head node with its dashboard: (dashboard URL, environment, log)."""
    dashboard = free_port()
    log = tmp_path / "ray.log"
    with EmbeddedStore(tmp_path / "valkey") as store:
        environment |= {"FOODDX_REDIS_URL": store.url, "FOODDX_API_KEY": API_KEY}
        command = [
            str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=3", "--disable-usage-stats",
            f"--port={free_port()}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
        ]  # fmt: skip
        with running(command, log, environment):
            url = f"http://127.0.0.1:{dashboard}"
            deadline = time.monotonic() + START_S
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/api/version", timeout=5).status_code < 500:
                        break
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield url, environment, log


def test_serve_deploy_deploys_the_graph_and_changes_it_without_a_restart(
    head: tuple[str, dict[str, str], Path], tmp_path: Path
) -> None:
    dashboard, environment, log = head
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    port = free_port()
    # What is this machine's: where data lies, the port, and that nothing outside may reach it.
    config["http_options"] |= {"port": port, "host": "127.0.0.1"}
    application = config["applications"][0]
    application["args"] = application.get("args", {}) | {"data_dir": environment["FOODDX_DATA_DIR"]}

    def deploy() -> None:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [str(BIN / "serve"), "deploy", str(path), "--address", dashboard]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr

    deploy()
    data_dir = Path(environment["FOODDX_DATA_DIR"])
    url = f"http://127.0.0.1:{port}"
    assert first_score(url, data_dir, log)["status"] == "scored"
    replicas = sorted(p.pid for p in psutil.process_iter() if is_replica(p, environment))

    ingress = next(d for d in application["deployments"] if d["name"] == "Ingress")
    ingress["user_config"] = {"thresholds": {"food": 0.999999}}
    scorer = next(d for d in application["deployments"] if d["name"] == "Scorer")
    scorer["user_config"] = {"batch_size": 4, "batch_wait_ms": 1}
    deploy()
    deadline = time.monotonic() + START_S
    while first_score(url, data_dir, log)["status"] != "not_food":
        assert time.monotonic() < deadline, "the new threshold never came into force"
        time.sleep(0.2)
    assert sorted(p.pid for p in psutil.process_iter() if is_replica(p, environment)) == replicas

    # Four calls hold all the photos of one ingress: only by photos is there more than one replica can take.
    preprocessor = next(d for d in application["deployments"] if d["name"] == "Preprocessor")
    policy = {"policy_function": "app.autoscaling:PhotosInHand", "policy_kwargs": {"target": 6}}
    preprocessor["autoscaling_config"] = {
        "min_replicas": 1,
        "max_replicas": 2,
        "upscale_delay_s": 0.2,
        "look_back_period_s": 2,
        "policy": policy,
    }
    deploy()
    wait_for_preprocessors(1, dashboard, environment)
    stop = threading.Event()
    with ThreadPoolExecutor(24) as senders:
        for _ in range(24):
            senders.submit(keep_sending, url, stop)
        try:
            wait_for_preprocessors(2, dashboard, environment)
        finally:
            stop.set()


def wait_for_preprocessors(count: int, dashboard: str, environment: dict[str, str]) -> None:
    """Until Serve has as many as it wants, and wants this many."""
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    deadline = time.monotonic() + START_S
    while True:
        details = httpx.get(f"{dashboard}/api/serve/applications/", headers=token, timeout=10).json()
        application = details["applications"]["fooddx"]
        # While a new config is being built, no deployment is listed.
        if found := application["deployments"].get("Preprocessor"):
            states = [replica["state"] for replica in found["replicas"]]
            if (found["target_num_replicas"], states) == (count, ["RUNNING"] * count):
                return
        assert time.monotonic() < deadline, application
        time.sleep(0.2)


def keep_sending(url: str, stop: threading.Event) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {API_KEY}"}, timeout=20) as client:
        while not stop.is_set():
            client.post(f"{url}/v1/scores", content=unique(coffee_jpeg(800, 600)))


def is_replica(process: psutil.Process, environment: dict[str, str]) -> bool:
    with contextlib.suppress(psutil.Error):
        return (
            " ".join(process.cmdline()).startswith("ray::ServeReplica:fooddx")
            and process.environ().get("FOODDX_DATA_DIR") == environment["FOODDX_DATA_DIR"]
        )
    return False


def test_serve_deploy_without_a_store_and_a_key_says_what_to_do(
    head: tuple[str, dict[str, str], Path], tmp_path: Path
) -> None:
    dashboard, environment, _ = head
    config = {
        "applications": [
            {
                "name": "fooddx",
                "import_path": "app.main:build",
                "args": {"redis_url": "", "api_key": "", "data_dir": environment["FOODDX_DATA_DIR"]},
            }
        ]
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    command = [str(BIN / "serve"), "deploy", str(path), "--address", dashboard]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=ROOT)
    deadline = time.monotonic() + START_S
    while True:
        details = httpx.get(f"{dashboard}/api/serve/applications/", headers=token, timeout=10).json()
        application = details["applications"]["fooddx"]
        if application["status"] == "DEPLOY_FAILED":
            break
        assert time.monotonic() < deadline, json.dumps(application)[:2000]
        time.sleep(0.3)
    assert "redis_url and api_key" in application["message"]
