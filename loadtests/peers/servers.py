"""The servers under comparison: how each is started, told what to do, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import msgpack
import psutil

from app.serving import free_port
from app.stores.embedded import EmbeddedStore, die_with_parent
from loadtests import processes, service
from loadtests.peers.environments import BUILD, python_of
from loadtests.peers.job import LEVEL_VARIABLE, OPTIONS_VARIABLE, ROUTE, Best, Level, Options, Tried
from loadtests.photos import Photo, make_photo, new_token

FOODDX: Final = "fooddx"
PEERS: Final = ("mosec", "litserve", "bentoml", "fastapi", "ray")
START_S: Final = 120.0
STOP_S: Final = 30.0
_STRANGE: Final = re.compile(r"FOODDX_|PEERS_|RAY_|MOSEC_|LIT_|BENTOML_|UVICORN_|.*_PROXY$", re.IGNORECASE)


class PeerError(RuntimeError):
    """A server cannot be compared; the text says why."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        name: FOODDX or one of PEERS.
        url: its address, without a slash at the end.
        key: the API key it takes.
        roots: the processes above all others of it, its store's included.
        wraps: whether the API key must be in the body.
    """

    name: str
    url: str
    key: str = field(repr=False)
    roots: Sequence[psutil.Process] = ()
    wraps: bool = False

    def photo(self, photo: Photo) -> Photo:
        """A photo as this server wants to get it."""
        return wrapped(photo, self.key) if self.wraps else photo

    def processes(self) -> list[psutil.Process]:
        """All that belong to it."""
        return [process for root in self.roots for process in processes.tree(root)]

    def check_niceness(self) -> None:
        """Raise PeerError if a thread of it gets more CPU than Ray's workers do; nicer it may be."""
        for process in self.processes():
            for thread in Path(f"/proc/{process.pid}/task").glob("*/stat"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    nice = int(thread.read_text().rpartition(")")[2].split()[16])
                    if nice < processes.NICENESS:
                        raise PeerError(f"{self.name}: a thread of {process.name()} is at niceness {nice}")


def wrapped(photo: Photo, key: str) -> Photo:
    """A photo in MessagePack beside an API key, still with the hole in its comment."""
    token = new_token()
    packed: bytes = msgpack.packb({"api_key": key, "image": photo.with_token(token)})
    head, tail = packed.split(token)
    return Photo(photo.label, head, tail)


def constants(name: str) -> tuple[Best, Tried]:
    """A peer's BEST and TRIED. Its own interpreter is asked: this one cannot import the server."""
    module = f"from loadtests.peers import {name}_server as peer"
    program = f"import json; {module}; print(json.dumps([peer.BEST, peer.TRIED]))"
    command = [str(python_of(name)), "-W", "ignore", "-c", program]
    answer = subprocess.run(command, env=_environment({}), stdout=subprocess.PIPE, check=True)  # noqa: S603
    best, tried = json.loads(answer.stdout.splitlines()[-1])
    return best, tried


@contextlib.contextmanager
def started(name: str, level: Level, options: Options | None = None) -> Iterator[Server]:
    """A server that answers; at the end it and all it started are gone, and what it stored is deleted.

    Args:
        name: FOODDX, which always does the full job, or one of PEERS.
        level: the job.
        options: of a peer; those left out are its BEST.

    Raises:
        PeerError, StartError: it did not start; the text says where its log is.
    """
    folder = BUILD / "run" / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == FOODDX:
        with service.started(folder) as own:
            if own.root is None:
                raise PeerError("the service's processes cannot be seen")
            yield Server(name, own.url, own.key, [own.root])
        return
    data, log = folder / "data", folder / "log"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    (data / "models").symlink_to(service.MODELS)
    port, key = free_port(), secrets.token_urlsafe(24)
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        roots = []
        variables = {
            "FOODDX_DATA_DIR": str(data),
            "FOODDX_API_KEY": key,
            "FOODDX_PORT": str(port),
            LEVEL_VARIABLE: level,
            OPTIONS_VARIABLE: json.dumps(dict(options or {})),
        }
        if level == "full":
            store = stack.enter_context(EmbeddedStore(data / "valkey"))
            variables["FOODDX_REDIS_URL"] = store.url
            roots.append(psutil.Process(store.pid))
        with log.open("w") as output:
            process = subprocess.Popen(  # noqa: S603 - our own words
                _command(name, port),
                env=_environment(variables),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C in the terminal is for this process, which ends the server
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call
            )
        stack.callback(_end, process)
        roots.append(psutil.Process(process.pid))
        server = Server(name, url, key, roots, wraps=name == "mosec" and level == "full")
        _wait_until_ready(server, process, log)
        yield server


def _command(name: str, port: int) -> list[str]:
    python = python_of(name)
    if name == "bentoml":
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [str(python), "-m", "bentoml", "serve", "loadtests.peers.bentoml_server:service", *address]
    return [str(python), "-m", f"loadtests.peers.{name}_server"]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    own = {
        # As Ray gives its workers: with a second thread, the linear algebra of the perceptual hash spins.
        "OMP_NUM_THREADS": "1",
        # Ray's workers add this to what they inherit.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(BUILD / "run" / "bentoml" / "home"),
    }
    inherited = {name: value for name, value in os.environ.items() if not _STRANGE.match(name)}
    return inherited | own | dict(variables)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    body = server.photo(make_photo(0.05)).unique()
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "image/jpeg"}
    with httpx.Client(trust_env=False, timeout=5, headers=headers) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if client.post(f"{server.url}{ROUTE}", content=body).is_success:
                    return
            time.sleep(0.1)
    raise PeerError(f"{server.name} did not start; its log: {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        for left in [one for one in below if one.is_running()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(below, timeout=STOP_S)
    process.kill()
    process.wait()
