"""The webhook: its signature against an independent one, and its sender against a real TLS server."""

from __future__ import annotations

import asyncio
import pickle
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from app.notices.webhook import NoticeFailed, Webhook, sign, signing_key, verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "webhooks.md"
KEY = bytes(range(32))
SECRET = f"whsec_{b64encode(KEY).decode()}"
ID = "0199a5b2-7c1e-7d3a-9f00-0123456789ab"
EVENT = b'{"status": "scored"}'
NOW = 1764000000

secrets = st.binary(min_size=24, max_size=64).map(lambda key: f"whsec_{b64encode(key).decode()}")
ids = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


# --- signatures -----------------------------------------------------------------------------------


def test_signs_as_the_library_of_standard_webhooks() -> None:
    """standardwebhooks 1.1.0 for Python made this one."""
    assert sign(SECRET, ID, NOW, EVENT) == {
        "webhook-id": ID,
        "webhook-timestamp": str(NOW),
        "webhook-signature": "v1,6wVgrST3wjGVN9w8EJDQDbRrPnQ5QefU97VhHJcAMIc=",
    }


@given(secrets, ids, st.integers(0, 10**11), st.binary(), st.integers(-300, 300))
def test_verifies_what_it_signed(secret: str, notice_id: str, at: int, body: bytes, skew: int) -> None:
    headers = sign(secret, notice_id, at, body)
    assert verify(secret, headers, body, at + skew)
    assert verify(secret, {name.title(): value for name, value in headers.items()}, body, at)
    both = headers | {"webhook-signature": f"v1a,x v1,é {headers['webhook-signature']}"}
    assert verify(secret, both, body, at)


@given(secrets, secrets, ids, st.integers(400, 10**11), st.binary(min_size=1), st.data())
def test_refuses_what_was_tampered_with(
    secret: str, other: str, notice_id: str, at: int, body: bytes, data: st.DataObject
) -> None:
    headers = sign(secret, notice_id, at, body)
    place, bit = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(body)
    changed[place] ^= 1 << bit
    assert not verify(secret, headers, bytes(changed), at)
    assert not verify(secret, headers, body[:-1], at)
    assert not verify(secret, headers | {"webhook-id": f"{notice_id}x"}, body, at)
    assert not verify(secret, headers | {"webhook-timestamp": str(at + 1)}, body, at)
    assert not verify(secret, headers | {"webhook-signature": "v1,"}, body, at)
    assert verify(other, headers, body, at) == (other == secret)
    for name in headers:
        assert not verify(secret, {key: headers[key] for key in headers if key != name}, body, at)
    for late in (-301, 301):
        assert not verify(secret, headers, body, at + late)


@pytest.mark.parametrize("timestamp", ["", "-1", "+1", "1e3", "１７", "1 ", "nan", "9" * 5000])
def test_refuses_a_time_that_is_none(timestamp: str) -> None:
    headers = sign(SECRET, ID, NOW, EVENT) | {"webhook-timestamp": timestamp}
    assert not verify(SECRET, headers, EVENT, NOW)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        SECRET.removeprefix("whsec_"),
        SECRET[:-1],
        f"{SECRET}\n",
        f"whsec_{'A' * 28}",
        f"whsec_{'A' * 88}",
        "whsec_é",
    ],
)
def test_refuses_a_secret_that_is_none_without_showing_it(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes") as refused:
        signing_key(secret)
    assert len(secret) < 10 or secret not in str(refused.value)


@pytest.mark.parametrize("notice_id", ["", "a.b", "a\nb", "a" * 65, "é"])
def test_an_id_cannot_be_confused_with_what_follows_it(notice_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        sign(SECRET, notice_id, NOW, EVENT)


def test_the_receiver_in_the_documentation_agrees() -> None:
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    room: dict[str, Any] = {}
    exec("".join(code), room)  # noqa: S102 - our own page
    receiver = room["is_from_fooddx"]
    headers = sign(SECRET, ID, int(time.time()), EVENT)
    assert receiver(SECRET, headers, EVENT)
    assert not receiver(SECRET, headers, EVENT + b" ")
    assert not receiver(SECRET, sign(SECRET, ID, NOW, EVENT), EVENT)
    assert not receiver(SECRET, {}, EVENT)


# --- sending --------------------------------------------------------------------------------------

HOST, OTHER, STRANGER = "hooks.example.com", "other.example.com", "stranger.example.net"


class Receiver(ThreadingHTTPServer):
    """A TLS server on this machine, for HOST, OTHER and 127.0.0.1. What it answers is in the path."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        # The handshake is done in the thread of the request, not in the one that accepts.
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server_port
        self.redirects: dict[str, tuple[int, str]] = {}
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.test_is_over = Event()

    def handle_error(self, *_: object) -> None:
        """Of handshakes that were refused and answers that nobody read."""

    def url(self, path: str, host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"


class Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.path, headers, body))
        if self.path == "/silent":
            self.server.test_is_over.wait(60)
        elif self.path == "/dripping":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x")
        elif self.path == "/endless":
            self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 65536)
        elif self.path == "/broken":
            self.wfile.write(b"nothing of HTTP\r\n\r\n")
        elif redirect := self.server.redirects.get(self.path):
            self.send_response(redirect[0])
            self.send_header("Location", redirect[1])
            self.send_header("Set-Cookie", "a=b; Path=/")
            self.end_headers()
        else:
            self.send_response(int(self.path.removeprefix("/")))
            self.end_headers()
            self.wfile.write(b"words of the receiver")

    def drip(self, head: bytes, drop: bytes) -> None:
        self.wfile.write(head)
        while not self.server.test_is_over.wait(0.02):
            self.wfile.write(drop)

    def log_message(self, *_: object) -> None:
        """Not into the output of the tests."""


def certificates(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What the receiver shows, and what trusts it: a certificate by an authority of our own."""

    def made(name: str, signer: Any, issuer: str, extension: x509.ExtensionType) -> tuple[bytes, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(signer or key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), key

    names = [x509.DNSName(HOST), x509.DNSName(OTHER), x509.IPAddress(ip_address("127.0.0.1"))]
    authority, signer = made("authority", None, "authority", x509.BasicConstraints(ca=True, path_length=0))
    shown, key = made("receiver", signer, "authority", x509.SubjectAlternativeName(names))
    (folder / "shown.pem").write_bytes(
        shown + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "shown.pem")
    return server, ssl.create_default_context(cadata=authority.decode())


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def receiver(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Receiver]:
    with Receiver(contexts[0]) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.test_is_over.set()
        server.shutdown()
        thread.join(30)


class Names:
    """A resolver: what each name leads to, one answer a look-up; the last one stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {name: [["127.0.0.1"]] for name in (HOST, OTHER, STRANGER)}
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: int, *_: object, **__: object) -> list[Any]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        left = self.answers[host]
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, 0))
            if ":" in text
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port))
            for text in addresses
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> Names:
    resolver = Names()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    return resolver


Post = Callable[..., NoticeFailed | None]


@pytest.fixture
def post(contexts: tuple[ssl.SSLContext, ssl.SSLContext], names: Names) -> Post:
    """Send to each URL in turn with one sender; what came of the last."""

    def send(*urls: str, allowed: tuple[str, ...] = ("127.0.0.1",), timeout_s: float = 30) -> Any:
        async def run() -> NoticeFailed | None:
            webhook = Webhook(is_allowed=lambda ip: str(ip) in allowed, tls=contexts[1], timeout_s=timeout_s)
            failed = None
            try:
                for url in urls:
                    try:
                        await webhook.post(url, SECRET, EVENT, id=ID)
                        failed = None
                    except NoticeFailed as error:
                        failed = error
            finally:
                await webhook.aclose()
            return failed

        return asyncio.run(run())

    return send


def outcome(failed: NoticeFailed | None) -> tuple[str, bool] | None:
    return failed and (failed.reason, failed.retryable)


@pytest.mark.parametrize("host", [HOST, "127.0.0.1"])
@pytest.mark.parametrize("status", [200, 202, 204])
def test_arrives_and_verifies(receiver: Receiver, post: Post, host: str, status: int) -> None:
    assert post(receiver.url(f"/{status}", host)) is None
    [(_, headers, body)] = receiver.seen
    assert verify(SECRET, headers, body, time.time())
    assert body == EVENT
    assert headers["webhook-id"] == ID
    assert headers["host"] == f"{host}:{receiver.port}"
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *((status, False) for status in (300, 301, 302, 303, 304, 400, 401, 403, 404, 409, 410, 413, 499)),
        *((status, True) for status in (408, 425, 429, 500, 502, 503, 504, 599)),
        *((status, False) for status in (307, 308)),  # without a Location
    ],
)
def test_any_other_answer_is_a_failure(receiver: Receiver, post: Post, status: int, retryable: bool) -> None:
    failed = post(receiver.url(f"/{status}"))
    assert outcome(failed) == (f"the answer was {status}", retryable)
    assert "words of the receiver" not in f"{failed!r}"
    assert len(receiver.seen) == 1


@pytest.mark.parametrize("path", ["/silent", "/dripping"])
def test_a_slow_receiver_is_asked_again_later(receiver: Receiver, post: Post, path: str) -> None:
    assert outcome(post(receiver.url(path), timeout_s=1)) == ("no answer within 1 s", True)


def test_the_body_of_an_answer_is_not_read(receiver: Receiver, post: Post) -> None:
    assert post(receiver.url("/endless")) is None


def test_what_is_no_http_is_asked_again_later(receiver: Receiver, post: Post) -> None:
    assert outcome(post(receiver.url("/broken"))) == ("the connection broke", True)


def test_nobody_listens(receiver: Receiver, post: Post) -> None:
    with socket.socket() as bound:  # bound and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        failed = post(f"https://{HOST}:{bound.getsockname()[1]}/")
    assert outcome(failed) == ("no connection", True)


def test_follows_three_redirects_with_the_same_notice(receiver: Receiver, post: Post) -> None:
    receiver.redirects = {
        "/a": (307, "b"),
        "/b": (308, receiver.url("/c", OTHER)),
        "/c": (307, f"//127.0.0.1:{receiver.port}/200"),
    }
    assert post(receiver.url("/a")) is None
    assert [path for path, *_ in receiver.seen] == ["/a", "/b", "/c", "/200"]
    assert all(
        body == EVENT and verify(SECRET, headers, body, time.time()) for _, headers, body in receiver.seen
    )
    assert [headers["host"].partition(":")[0] for _, headers, _ in receiver.seen] == [
        HOST,
        HOST,
        OTHER,
        "127.0.0.1",
    ]
    assert all("cookie" not in headers for _, headers, _ in receiver.seen)


def test_does_not_follow_a_fourth(receiver: Receiver, post: Post) -> None:
    receiver.redirects = {"/a": (307, "/a")}
    assert outcome(post(receiver.url("/a"))) == ("more than 3 redirects", False)
    assert len(receiver.seen) == 4


@pytest.mark.parametrize("status", [301, 302, 303])
def test_does_not_follow_what_would_change_the_method(receiver: Receiver, post: Post, status: int) -> None:
    receiver.redirects = {"/a": (status, "/200")}
    assert outcome(post(receiver.url("/a"))) == (f"the answer was {status}", False)
    assert len(receiver.seen) == 1


@pytest.mark.parametrize(
    "location",
    [
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://127.0.0.2:{port}/200",
        "https://[::1]:{port}/200",
        "https://[::ffff:7f00:1]:{port}/200",
        "https://2130706433:{port}/200",
        "https://inside.example.com:{port}/200",
        "https://user@hooks.example.com:{port}/200",
        "https://localhost:{port}/200",
        "http://hooks.example.com:{port}/200",
        "//[",
        "file:///etc/passwd",
        "/200#fragment",
    ],
)
def test_a_redirect_keeps_the_rules(receiver: Receiver, names: Names, post: Post, location: str) -> None:
    names.answers["inside.example.com"] = [["192.168.1.1"]]
    receiver.redirects = {"/a": (307, location.format(port=receiver.port))}
    failed = post(receiver.url("/a"))
    assert failed is not None
    assert not failed.retryable
    assert "more than" not in failed.reason
    assert [path for path, *_ in receiver.seen] == ["/a"]


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["fd00:ec2::254", "127.0.0.1"], ["::ffff:127.0.0.1"]],
)
def test_a_name_with_any_private_address_is_refused(
    receiver: Receiver, names: Names, post: Post, addresses: list[str]
) -> None:
    names.answers[HOST] = [addresses]
    assert outcome(post(receiver.url("/200"))) == (
        "the host's name leads to an address that is not public",
        False,
    )
    assert receiver.seen == []


def test_a_name_is_looked_up_once_so_that_it_cannot_change_its_mind(
    receiver: Receiver, names: Names, post: Post
) -> None:
    names.answers[HOST] = [["127.0.0.1"], ["10.0.0.1"]]
    assert post(receiver.url("/200")) is None
    assert names.asked == [HOST]
    assert outcome(post(receiver.url("/200"))) == (
        "the host's name leads to an address that is not public",
        False,
    )
    assert len(receiver.seen) == 1


def test_takes_the_next_address_where_the_first_is_dead(receiver: Receiver, names: Names, post: Post) -> None:
    names.answers[HOST] = [["127.0.0.3", "127.0.0.1"]]
    assert post(receiver.url("/200"), allowed=("127.0.0.1", "127.0.0.3")) is None


def test_a_name_without_an_address(receiver: Receiver, post: Post) -> None:
    assert outcome(post(receiver.url("/200", "nowhere.example.com"))) == (
        "the host's name has no address",
        True,
    )


def test_a_certificate_for_another_name(receiver: Receiver, post: Post) -> None:
    """Even where a connection to the same address was good for a name that the certificate has."""
    failed = post(receiver.url("/200"), receiver.url("/200", STRANGER))
    assert outcome(failed) == ("the certificate is not valid for this host", True)
    assert len(receiver.seen) == 1


def test_a_certificate_of_nobody_known(receiver: Receiver, names: Names) -> None:
    async def run() -> None:
        webhook = Webhook(is_allowed=lambda _: True)
        try:
            await webhook.post(receiver.url("/200"), SECRET, EVENT, id=ID)
        finally:
            await webhook.aclose()

    with pytest.raises(NoticeFailed, match="certificate"):
        asyncio.run(run())
    assert receiver.seen == []


def test_only_public_addresses_unless_a_test_says_otherwise(receiver: Receiver, names: Names) -> None:
    async def run(url: str) -> None:
        webhook = Webhook()
        try:
            await webhook.post(url, SECRET, EVENT, id=ID)
        finally:
            await webhook.aclose()

    for host in (HOST, "127.0.0.1"):
        with pytest.raises(NoticeFailed, match="not public"):
            asyncio.run(run(receiver.url("/200", host)))


def test_takes_no_proxy_from_the_environment(
    receiver: Receiver, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(receiver.url("/200")) is None


def test_a_malformed_secret_or_url_is_a_failure_that_no_retry_mends(receiver: Receiver) -> None:
    async def run(url: str, secret: str) -> None:
        webhook = Webhook()
        try:
            await webhook.post(url, secret, EVENT, id=ID)
        finally:
            await webhook.aclose()

    for url, secret in ((receiver.url("/200"), "whsec_secret"), ("http://hooks.example.com/", SECRET)):
        with pytest.raises(NoticeFailed) as failed:
            asyncio.run(run(url, secret))
        assert not failed.value.retryable
        assert secret not in f"{failed.value!r} {failed.value}"


def test_a_failure_travels_between_processes() -> None:
    failed = pickle.loads(pickle.dumps(NoticeFailed("the answer was 503", retryable=True)))  # noqa: S301
    assert (str(failed), outcome(failed)) == ("the answer was 503", ("the answer was 503", True))
