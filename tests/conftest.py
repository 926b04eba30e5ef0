"""What tests share: a running store, the parts of the service without Ray, and the whole service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings as hypothesis_settings
from rich.console import Console

from app import cli, model_commands, tenant_commands
from app.api.app import create_app
from app.engines import Engine, create_engine
from app.errors import FoodDXError
from app.imaging.guards import ImageLimits
from app.imaging.inputs import InputSpec
from app.imaging.prepare import prepare
from app.judge import TableJudge
from app.messages import Inference, PhotoJob, Rejected, Scored
from app.service import Service
from app.serving import free_port
from app.settings import Settings
from app.stores import queue as queues
from app.stores.embedded import EmbeddedStore
from app.tenants.tenants import Tenant as TenantRecord
from models.build import build
from models.manifest import load_manifest
from models.registry import DEFAULT
from tests.stores.faults import FaultProxy, emulated_s3

BUILD = Path(__file__).parents[1] / "build"
MODEL = "imagenet-lite0"
"""What tests without a server score with: it is sure of the cup of coffee that they all send."""
API_KEY = "fdx_key-of-the-tests-0123456789"

# Machines are noisy: how long an example takes says nothing about the law it tests.
hypothesis_settings.register_profile("fooddx", deadline=None)
hypothesis_settings.load_profile("fooddx")


class RecordingMeter:
    """Keeps every number, for a test to look at."""

    def __init__(self) -> None:
        self.records: list[tuple[str, float, dict[str, str]]] = []

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        self.records.append((name, value, labels))

    def total(self, name: str, **labels: str) -> float:
        return sum(v for n, v, given in self.records if n == name and labels.items() <= given.items())


@pytest.fixture
def fooddx(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Run the command in this process: its exit status, standard output and standard error."""
    for module in (cli, model_commands, tenant_commands):
        monkeypatch.setattr(module, "OUT", Console(width=200, soft_wrap=True, highlight=False))
        console = Console(width=200, stderr=True, soft_wrap=True, highlight=False)
        monkeypatch.setattr(module, "ERR", console, raising=False)

    def run(*arguments: object) -> tuple[Any, str, str]:
        status: Any
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Built models, kept between runs: the tests' own and the one that serves by default."""
    folder = BUILD / "models"
    for name in (MODEL, DEFAULT):
        build(load_manifest(name), folder)
    return folder


@pytest.fixture(scope="session")
def engine(models_dir: Path) -> Engine:
    """The tests' model on OpenVINO."""
    manifest = load_manifest(MODEL)
    return create_engine("cpu", manifest, models_dir / manifest.folder, threads=1)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A real Valkey server of the test session."""
    with EmbeddedStore(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Emulated AWS."""
    with emulated_s3() as url:
        yield url


@pytest.fixture
def proxy(moto: str) -> Iterator[FaultProxy]:
    """A way to it that can fail."""
    with FaultProxy(moto) as running:
        yield running


@pytest.fixture(scope="module")
def own_session() -> Iterator[None]:
    """Credentials that others found for queues are not used here, nor those found here elsewhere."""
    queues._session.cache_clear()
    yield
    queues._session.cache_clear()


class LocalScorer:
    """The preprocessor's and the scorer's work in this process, with a count and switches for faults."""

    def __init__(self, engine: Engine) -> None:
        self.calls = 0
        self.before: Callable[[PhotoJob], Any] | None = None
        self._engine = engine
        wanted = load_manifest(engine.name).input
        self._spec = InputSpec(wanted.size, wanted.crop_fraction, wanted.interpolation)

    async def __call__(self, job: PhotoJob) -> Scored | Rejected:
        self.calls += 1
        if self.before is not None:
            await self.before(job)
        try:
            prepared = prepare(job.data, ImageLimits(), [self._spec])
        except FoodDXError as error:
            return Rejected.of(error)
        probabilities = self._engine.predict(prepared.pixels[0][None])[0]
        info = prepared.info
        inference = Inference((probabilities,), 0.001, 0.004)
        return Scored(inference, info.media_type, info.width, info.height, prepared.pdq, 0.003)


@dataclass
class Local:
    """The service without Ray: real stores, the real model, the real routes, one process."""

    service: Service
    scorer: LocalScorer
    meter: RecordingMeter
    settings: Settings

    @asynccontextmanager
    async def client(self, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client over ASGI, authenticated."""
        transport = httpx.ASGITransport(create_app(self.service), raise_app_exceptions=False)
        auth = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://fooddx", headers=auth | headers
        ) as client:
            yield client


@pytest.fixture
def make_local(
    tmp_path: Path, store: EmbeddedStore, engine: Engine, request: pytest.FixtureRequest
) -> Callable[..., Local]:
    """Make a Local with some settings changed. Call it inside the running loop of the test."""

    def make(*, redis_url: str | None = None, **changes: Any) -> Local:
        # A budget that a busy machine can keep; tests of the budget set their own.
        settings = Settings(data_dir=tmp_path, **({"budget_ms": 10_000, "models": (MODEL,)} | changes))
        meter, scorer = RecordingMeter(), LocalScorer(engine)
        judge = TableJudge(settings.models)
        # A tenant of its own for each test: one server serves them all.
        tenant = f"t{abs(hash(request.node.nodeid)):x}"

        async def ready() -> None:
            return None

        service = Service.wire(
            settings=settings,
            redis_url=redis_url or store.url,
            first=TenantRecord.first(API_KEY, tenant),
            judge=judge,
            score=scorer,
            scorer_ready=ready,
            meter=meter,
        )
        return Local(service, scorer, meter, settings)

    return make


@dataclass(frozen=True)
class Running:
    """The whole service: ``fooddx serve`` on a port of its own."""

    url: str
    api_key: str
    data_dir: Path
    metrics_port: int
    process: subprocess.Popen[str]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}


def start_service(data_dir: Path, **variables: str) -> Running:
    """Start ``fooddx serve`` and wait until it is ready."""
    port = free_port()
    own = {"DATA_DIR": str(data_dir), "PORT": str(port), "METRICS_PORT": str(free_port())}
    # How fast this machine is, is not what is tested: a budget that a busy one can keep.
    own["BUDGET_MS"] = "10000"
    environment = os.environ | {f"FOODDX_{name}": value for name, value in own.items()} | variables
    if "FOODDX_API_KEY" not in variables:
        environment.pop("FOODDX_API_KEY", None)
    data_dir.mkdir(parents=True, exist_ok=True)
    if not (data_dir / "models").exists():
        (data_dir / "models").symlink_to(BUILD / "models")
    terminal = data_dir / "terminal.log"
    with terminal.open("w") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "fooddx"), "serve"],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
    deadline = time.monotonic() + 180
    while "Ctrl-C stops it" not in terminal.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            serve_log = data_dir / "serve.log"
            words = serve_log.read_text() if serve_log.exists() else ""
            raise AssertionError(f"fooddx serve did not start:\n{terminal.read_text()}\n{words}")
        time.sleep(0.1)
    return Running(
        f"http://127.0.0.1:{port}",
        environment.get("FOODDX_API_KEY") or (data_dir / "api_key").read_text().strip(),
        data_dir,
        int(environment["FOODDX_METRICS_PORT"]),
        process,
    )


def stop_service(running: Running, number: int = signal.SIGTERM) -> int:
    """Ask the service to stop; its exit status."""
    running.process.send_signal(number)
    return running.process.wait(90)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Running]:
    """The whole service, started once for the session."""
    running = start_service(tmp_path_factory.mktemp("service"))
    yield running
    assert stop_service(running) == 0
