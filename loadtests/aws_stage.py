"""FoodDX over an emulated AWS account, with a proxy before each store that can be made to fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import redis

from app.serving import free_port
from app.stores.embedded import EmbeddedStore, die_with_parent
from app.stores.tenants import TenantAdmin
from app.tenants.access import REFRESH_EVERY_S
from app.tenants.credentials import decrypt, encrypt
from app.tenants.kms import KmsKeys
from app.tenants.places import is_kept
from app.tenants.tenants import UPLOADS
from loadtests.aws import OWN, OWN_BUCKET, SHARED, Cloud, seed
from loadtests.calls import Call, Client
from loadtests.emulators import ROOT, Account, EmulatorError
from loadtests.proxy import Mode, Proxy, Streams, denial

DATA_DIR: Final = Path(__file__).parents[1] / "build" / "aws-faults"
"""Keeps built models from one run to the next, and the last run's logs."""
TENANTS: Final = (SHARED, OWN)
BUDGET_S: Final = 1.0
START_S: Final = 180.0
_TIMEOUT_S: Final = 15.0
_REPLICA: Final = re.compile(r"ray::ServeReplica:fooddx:(\w+)")
_STRANGE: Final = re.compile(r"AWS_|FOODDX_|.*_PROXY$", re.IGNORECASE)
_S3_DENIAL: Final = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_JSON_DENIAL: Final = '{"__type": "AccessDeniedException", "message": "not authorized"}'


@dataclass(frozen=True)
class Leftovers:
    """What no result is of.

    Attributes:
        to_sweep: keys of photos that the service has noted, so that its sweep deletes them.
        forgotten: keys of photos that it has not.
        uploads: keys of uploads that nobody scored: the bucket's lifecycle deletes them.
        dead_letters: why the intake gave up a message, one each.
    """

    to_sweep: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Everything that runs.

    Attributes:
        cloud: the account, by no proxy.
        store: the results, by no proxy.
        proxies: between the service and ``s3``, ``kms``, ``sqs`` and ``redis``.
        clients: one of each tenant.
        service: the process of ``fooddx serve``.
        opened: the second tenant's credentials in the clear.
    """

    cloud: Cloud
    store: EmbeddedStore
    proxies: Mapping[str, Proxy]
    clients: Sequence[Client]
    service: psutil.Process
    opened: Mapping[str, str] = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be in a problem's text."""
        keys = (self.cloud.service, self.cloud.operator)
        return (self.opened["secret_access_key"], *(pair.secret_access_key for pair in keys))

    def replicas(self) -> dict[int, str]:
        """The deployment of each replica that runs, by process."""
        found = {}
        for process in self.service.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if title := _REPLICA.match(" ".join(process.cmdline())):
                    found[process.pid] = title[1]
        return found

    async def seal_anew(self) -> None:
        """Seal the second tenant's credentials under a new data key, and wait until every replica knows."""
        await asyncio.to_thread(self._seal)
        await asyncio.sleep(REFRESH_EVERY_S + 0.5)

    def _seal(self) -> None:
        sealed = encrypt(self.opened, OWN, _root_keys(self.cloud))
        with TenantAdmin(self.store.url) as tenants:
            tenants.change(OWN, lambda tenant: tenant.model_copy(update={"credentials": sealed}))

    def past_proxies(self, url: str) -> str:
        """The URL of an object as somebody calls it for whom S3 does not fail."""
        return url.replace(_url(self.proxies["s3"]), self.cloud.account.url)

    def leftovers(self) -> Leftovers:
        """Search buckets and queue; blocks."""
        account, outputs, found = self.cloud.account, self.cloud.outputs, Leftovers()
        shared, _, prefix = outputs["PhotoStore"].removeprefix("s3://").partition("/")
        with (
            contextlib.closing(account.client("s3")) as s3,
            contextlib.closing(redis.Redis.from_url(self.store.url)) as results,
        ):
            for bucket, start in ((shared, f"{prefix}/" if prefix else ""), (OWN_BUCKET, "")):
                pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
                for key in (stored["Key"] for page in pages for stored in page.get("Contents", ())):
                    own = key.removeprefix(start)
                    tenant, sha256 = own.partition("/")[0], own.rpartition("/")[2]
                    if tenant == UPLOADS:
                        found.uploads.append(key)
                    elif is_kept(tenant, own) and not results.exists(f"fooddx:{{{tenant}}}:refs:{sha256}"):
                        noted = results.zscore(f"fooddx:{{{tenant}}}:pending", sha256) is not None
                        (found.to_sweep if noted else found.forgotten).append(key)
        with contextlib.closing(account.client("sqs")) as sqs:
            while letters := sqs.receive_message(
                QueueUrl=outputs["DeadLetterQueueUrl"],
                MaxNumberOfMessages=10,
                VisibilityTimeout=300,
                MessageAttributeNames=["All"],
            ).get("Messages"):
                for letter in letters:
                    why = letter.get("MessageAttributes", {})
                    found.dead_letters.append(": ".join(value["StringValue"] for value in why.values()))
        return found


@contextlib.asynccontextmanager
async def staged(cloud: Cloud, store: EmbeddedStore) -> AsyncIterator[Stage]:
    """Proxies, tenants and the service, ready; all of it ended at the end.

    Raises:
        EmulatorError: the service did not start.
    """
    host, _, port = cloud.account.url.removeprefix("http://").rpartition(":")

    def aws() -> Awaitable[Streams]:
        return asyncio.open_connection(host, int(port))

    proxies = {
        "s3": Proxy(aws, denial("403 Forbidden", "application/xml", _S3_DENIAL)),
        "kms": Proxy(aws, denial("400 Bad Request", "application/x-amz-json-1.1", _JSON_DENIAL)),
        "sqs": Proxy(aws, denial("400 Bad Request", "application/x-amz-json-1.0", _JSON_DENIAL)),
        "redis": Proxy(lambda: asyncio.open_unix_connection(store.socket)),
    }
    url = f"http://127.0.0.1:{free_port()}"
    async with contextlib.AsyncExitStack() as stack:
        for proxy in proxies.values():
            await proxy.switch(Mode.PASS)
            stack.push_async_callback(proxy.close)
        service = _service(cloud, proxies, url)
        stack.push_async_callback(asyncio.to_thread, _end, service)
        # So the endpoint in the second tenant's credentials is the proxy too.
        behind = replace(cloud, account=Account(_url(proxies["s3"])))
        with TenantAdmin(store.url) as admin:
            api_keys = await asyncio.to_thread(seed, behind, admin)
            sealed = next(tenant.credentials for tenant in admin.all() if tenant.id == OWN)
        opened = await asyncio.to_thread(decrypt, sealed, OWN, _root_keys(cloud))
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        clients = [Client(tenant, api_keys[tenant], session, url) for tenant in TENANTS]
        await _ready(service, clients[0])
        yield Stage(cloud, store, proxies, clients, psutil.Process(service.pid), opened)


async def _ready(service: subprocess.Popen[bytes], client: Client) -> None:
    deadline = time.monotonic() + START_S
    readyz = Call("GET readyz", "GET", "/readyz")
    while (answer := await client.ask(readyz)).status not in readyz.well:
        if service.poll() is not None or time.monotonic() > deadline:
            raise EmulatorError(f"the service is not ready ({answer.words}); its log: {DATA_DIR / 'log'}")
        await asyncio.sleep(0.2)


def _service(cloud: Cloud, proxies: Mapping[str, Proxy], url: str) -> subprocess.Popen[bytes]:
    settings = cloud.settings | {
        "data_dir": str(DATA_DIR),
        "redis_url": f"redis://127.0.0.1:{proxies['redis'].port}",
        "port": url.rpartition(":")[2],
        "metrics_port": str(free_port()),
        "budget_ms": str(round(BUDGET_S * 1000)),
    }
    environment = {name: value for name, value in os.environ.items() if not _STRANGE.match(name)}
    environment |= cloud.aws_environment(cloud.service)
    environment |= {f"AWS_ENDPOINT_URL_{name.upper()}": _url(proxies[name]) for name in ("s3", "kms", "sqs")}
    environment |= {f"FOODDX_{name.upper()}": value for name, value in settings.items()}
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    with (DATA_DIR / "log").open("w") as log:
        return subprocess.Popen(  # noqa: S603 - our own words
            [str(Path(sys.executable).with_name("fooddx")), "serve"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C in the terminal is for this process, which stops the service first
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call
        )


def _end(service: subprocess.Popen[bytes]) -> None:
    service.terminate()
    service.wait()


def _url(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


def _root_keys(cloud: Cloud) -> KmsKeys:
    return KmsKeys.from_environment(cloud.aws_environment(ROOT), key_id=cloud.outputs["CredentialKeyArn"])
