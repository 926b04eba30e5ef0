"""Servers that check S3 signatures, each in an environment of its own beside the lock, on 127.0.0.1 only.

swift (OpenStack's object store, with its S3 door) checks what a request's headers sign; it knows no POST
Object. ministack, told to, checks every request against IAM, and a presigned form: its signature and every
condition of its policy. It plays a whole AWS account, CloudFormation included; all of it is in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx

from app.serving import free_port
from app.stores.embedded import die_with_parent

FOLDER = Path(__file__).parents[1] / "build" / "emulators"
START_TIMEOUT_S = 60.0
REGION = "us-east-1"

SWIFT = [
    "swift==2.38.3",
    "certifi==2026.10.18",
    "cffi==2.1.1",
    "charset-normalizer==3.5.2",
    "cryptography==50.0.2",
    "dnspython==2.9.2",
    "eventlet==0.41.3",
    "greenlet==3.5.6",
    "idna==3.20",
    "lxml==6.1.3",
    "PasteDeploy==3.1.0",
    "pycparser==3.12",
    "pyeclib==1.8.0",
    "requests==2.34.2",
    "urllib3==2.8.0",
    "xattr==1.3.0",
]
MINISTACK = [
    "ministack==1.5.33",
    "botocore==1.43.106",
    "defusedxml==0.7.1",
    "graphql-core==3.2.12",
    "h11==0.16.0",
    "h2==4.4.1",
    "hpack==4.2.0",
    "hypercorn==0.18.0",
    "hyperframe==6.1.0",
    "jmespath==1.1.0",
    "jsonata-python==0.7.1",
    "priority==2.0.0",
    "python-dateutil==2.9.0.post0",
    "PyYAML==6.0.3",
    "six==1.17.0",
    "urllib3==2.8.0",
    "wsproto==1.3.2",
]


class EmulatorError(RuntimeError):
    """An emulator did not start; the text says why."""


@dataclass(frozen=True)
class KeyPair:
    """What signs for one user."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


ROOT = KeyPair("test", "test")
"""May do everything in ministack, which takes it unseen; every other key pair it checks."""


@dataclass(frozen=True)
class Account:
    """An emulated AWS account: what boto3 makes of it, as root or as one of its users."""

    url: str

    def client(self, service: str, keys: KeyPair = ROOT) -> Any:
        """A client of boto3; it is yours to close."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=keys.access_key_id,
            aws_secret_access_key=keys.secret_access_key,
        )

    def user(self, name: str, *policies: str, statements: Sequence[dict[str, Any]] = ()) -> KeyPair:
        """The keys of a new user who may do what managed ``policies`` (ARNs) and ``statements`` say."""
        with contextlib.closing(self.client("iam")) as iam:
            iam.create_user(UserName=name)
            for policy in policies:
                iam.attach_user_policy(UserName=name, PolicyArn=policy)
            if statements:
                document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
                iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document)
            made = iam.create_access_key(UserName=name)["AccessKey"]
        return KeyPair(made["AccessKeyId"], made["SecretAccessKey"])


@dataclass(frozen=True)
class Verifier:
    """A running server that checks signatures, and the one key pair it knows."""

    url: str
    access_key_id: str
    secret_access_key: str
    region: str = REGION

    def make_bucket(self, name: str) -> str:
        """An empty bucket; its name."""
        keys = KeyPair(self.access_key_id, self.secret_access_key)
        with contextlib.closing(Account(self.url).client("s3", keys)) as client:
            client.create_bucket(Bucket=name)
        return name


def install() -> None:
    """Make both environments, where they are missing; for the set-up before the tests."""
    _python_with(SWIFT)
    _python_with(MINISTACK)


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[Verifier]:
    """Swift with its data in ``folder``: account, container, object and proxy server in one process."""
    access_key_id, secret = "tests:writer", "a-secret-of-swift"
    program = Path(__file__).with_name("swift_server.py")
    with _running(
        [str(_python_with(SWIFT)), "-W", "ignore", str(program), str(folder)],
        {"SWIFT_USER": access_key_id, "SWIFT_KEY": secret},
        folder,
    ) as server:
        # It prints its port when it listens, and ends when its standard input does.
        port = server.stdout.readline() if server.stdout else ""
        if not port:
            raise EmulatorError((folder / "log").read_text())
        yield Verifier(f"http://127.0.0.1:{int(port)}", access_key_id, secret)


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[Verifier]:
    """Ministack's S3, with signatures checked; its log in ``folder``."""
    with account(folder, "s3", "iam", "sts") as made:
        anything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        keys = made.user("writer", statements=[anything])
        yield Verifier(made.url, keys.access_key_id, keys.secret_access_key)


@contextlib.contextmanager
def account(folder: Path, *services: str) -> Iterator[Account]:
    """An empty account with these services of AWS, gone at the end; the emulator's log in ``folder``.

    Raises:
        EmulatorError: it did not start.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "LOG_LEVEL": "WARNING",
        "MINISTACK_HOST": "127.0.0.1",
        "SERVICES": ",".join(services),
        "TMPDIR": str(folder),
    }
    with _running([str(_python_with(MINISTACK)), "-m", "ministack"], settings, folder) as server:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise EmulatorError((folder / "log").read_text())
            time.sleep(0.05)
        yield Account(url)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/_ministack/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """A server with nothing of our environment but the path, stopped at the end."""
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(  # noqa: S603 - our own words
            command,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C in the terminal is for whoever started it.
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call
        )
        with server:
            try:
                yield server
            finally:
                server.terminate()


def _python_with(pins: Sequence[str]) -> Path:
    """The interpreter of an environment with exactly these packages, made at first use and kept."""
    digest = hashlib.sha256(repr((pins, sys.version)).encode()).hexdigest()[:12]
    name = f"{pins[0].partition('==')[0]}-{digest}"
    folder = FOLDER / name
    python, done = folder / "bin" / "python", folder / "installed"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=False)
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
            install = [*pip, "install", "-q", "--no-deps", "--only-binary", ":all:", *pins]
            subprocess.run(install, check=True)  # noqa: S603 - our own words
            done.touch()
    return python
