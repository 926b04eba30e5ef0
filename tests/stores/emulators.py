"""Servers that check S3 signatures, each in an environment of its own beside the lock. Started by the tests.

swift (OpenStack's object store, with its S3 door) checks what a request's headers sign; it knows no POST
Object. ministack, told to, checks a presigned form: its signature and every condition of its policy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx

FOLDER = Path(__file__).parents[2] / "build" / "emulators"
START_TIMEOUT_S = 60.0

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


@dataclass(frozen=True)
class Verifier:
    """A running server that checks signatures, and the one key pair it knows."""

    url: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"

    def make_bucket(self, name: str) -> str:
        """An empty bucket; its name."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
        )
        with contextlib.closing(client):
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
    with _running(
        [
            str(_python_with(SWIFT)),
            "-W",
            "ignore",
            str(Path(__file__).with_name("swift_server.py")),
            str(folder),
        ],
        {"SWIFT_USER": access_key_id, "SWIFT_KEY": secret},
        folder,
    ) as server:
        # It prints its port when it listens, and ends when its standard input does.
        assert server.stdout
        port = server.stdout.readline()
        assert port, (folder / "log").read_text()
        yield Verifier(f"http://127.0.0.1:{int(port)}", access_key_id, secret)


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[Verifier]:
    """Ministack's S3, with signatures checked; its log in ``folder``."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "LOG_LEVEL": "WARNING",
        "MINISTACK_HOST": "127.0.0.1",
        "SERVICES": "s3,iam,sts",
        "TMPDIR": str(folder),
    }
    with _running([_python_with(MINISTACK), "-m", "ministack"], settings, folder) as server:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "ministack did not start"
            time.sleep(0.05)
        yield Verifier(url, *_new_user(url))


def _new_user(url: str) -> tuple[str, str]:
    """A key pair that ministack checks; those of its root it takes unseen."""
    root = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    anything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    with contextlib.closing(boto3.client("iam", endpoint_url=url, **root)) as iam:
        iam.create_user(UserName="writer")
        iam.put_user_policy(
            UserName="writer",
            PolicyName="writes",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [anything]}),
        )
        made = iam.create_access_key(UserName="writer")["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/_ministack/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def _running(
    command: list[str | Path], environment: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """A server with nothing of our environment but the path, stopped at the end."""
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with server:
            try:
                yield server
            finally:
                server.terminate()


def _python_with(pins: tuple[str, ...]) -> Path:
    """The interpreter of an environment with exactly these packages, made at first use and kept."""
    name = (
        f"{pins[0].partition('==')[0]}-{hashlib.sha256(repr((pins, sys.version)).encode()).hexdigest()[:12]}"
    )
    folder = FOLDER / name
    python, done = folder / "bin" / "python", folder / "installed"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=False)
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
            subprocess.run([*pip, "install", "-q", "--no-deps", "--only-binary", ":all:", *pins], check=True)
            done.touch()
    return python


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
