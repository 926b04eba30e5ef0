"""Emulated AWS, and a proxy that goes wrong on demand, for it and for anything else that speaks HTTP.

The fixtures ``moto``, ``proxy`` and ``own_session`` are in tests/conftest.py.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from app.stores.s3 import S3Limits

# For what is not about time: an overloaded machine must not look like a slow store.
PATIENT = S3Limits(connect_s=20, attempt_s=20, total_s=60, backoff_s=0.01, ready_s=60)

Fault = Literal["", "slow", "deny", "fail", "clash", "cut", "lose", "tamper"]
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message><Token-0>quoted-token</Token-0></Error>"
BUSY = b"<Error><Code>SlowDown</Code></Error>"
CLASHED = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
ANSWERS: dict[str, tuple[int, bytes]] = {"deny": (403, DENIED), "fail": (503, BUSY), "clash": (409, CLASHED)}


@dataclass(frozen=True)
class Request:
    """One that arrived, whatever became of it. Names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


class FaultProxy:
    """Passes requests on to ``upstream``, or does what ``fault`` says:

    - ``slow``: passes it on after ``delay_s``;
    - ``deny``: answers 403;
    - ``fail``: answers 503;
    - ``clash``: answers 409, as S3 does where two conditional writes meet;
    - ``cut``: closes the connection before anything was passed on;
    - ``lose``: passes it on, and closes the connection instead of answering;
    - ``tamper``: turns over one bit of the body, if there is one.

    A fault lasts for the next ``times`` requests. Away is a server that is stopped; start brings it back to
    the same address.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.fault: Fault = ""
        self.delay_s = 2.0
        self.times = 0
        self.requests: list[Request] = []
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def goes(self, fault: Fault, times: int = 10**9) -> None:
        """From now on, ``times`` requests meet ``fault``; those seen so far are forgotten."""
        with self._lock:
            self.fault, self.times = fault, times
            self.requests.clear()

    def start(self) -> None:
        proxy = self

        class Handler(_Handler):
            through = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()

    def take(self, request: Request) -> Fault:
        """Note a request down; the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            if self.times <= 0:
                return ""
            self.times -= 1
            return self.fault

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, so that every request comes on a connection of its own."""

    through: FaultProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.through.take(Request(self.command, self.path, headers, body))
        if fault == "cut":
            return
        if fault in ANSWERS:
            status, data = ANSWERS[fault]
            self._answer(status, {}, data)
            return
        if fault == "slow":
            time.sleep(self.through.delay_s)
        if fault == "tamper" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        status, answered, data = self._pass_on(body)
        if fault != "lose":
            self._answer(status, answered, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the base class's names

    def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = self.through.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
        with contextlib.closing(connection):
            # The Host that was signed, not the upstream's own.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever asked has given up
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: what arrived is in the proxy's requests."""


@contextlib.contextmanager
def emulated_s3() -> Iterator[str]:
    """A moto server; its URL. All those of a process share what is in them."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def somebody_else(url: str, service: str) -> Iterator[Any]:
    """A client of S3, SQS …, at an emulator, that is not the service's."""
    keys = {"aws_access_key_id": "other", "aws_secret_access_key": "other", "region_name": "us-east-1"}
    with contextlib.closing(boto3.client(service, endpoint_url=url, **keys)) as client:
        yield client


def use_aws(
    monkeypatch: pytest.MonkeyPatch,
    url: str = "",
    *,
    access_key_id: str = "ours",
    secret_access_key: str = "ours",  # noqa: S107
) -> None:
    """Make these the keys that the service itself has, and ``url``, if there is one, its AWS."""
    found = {"AWS_ACCESS_KEY_ID": access_key_id, "AWS_SECRET_ACCESS_KEY": secret_access_key}
    if url:
        found |= {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1"}
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_SQS",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_SESSION_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)


def make_bucket(url: str, name: str = "") -> str:
    """An empty bucket, of a name of its own, at an emulator that asks nobody who they are; its name."""
    name = name or f"b-{uuid.uuid4().hex}"
    httpx.put(f"{url}/{name}").raise_for_status()
    return name
