"""The function's zip: the same bytes each time, complete by itself, and nothing in it that is not needed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from app.tenants.credentials import encrypt
from app.tenants.kms import EnvironmentCredentials, KmsKeys
from app.tenants.package import HANDLER, ROOT, Built, build, main, pinned

SECRETS = {"secret_access_key": "wJalr-the-secret"}
AWS = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "of the tests"}
# As Lambda does: a Python without packages, the handler by its name, an event a line.
RUNTIME = """
import sys, json, importlib
sys.path.insert(0, sys.argv[1])
module, _, name = sys.argv[2].rpartition(".")
handler = getattr(importlib.import_module(module), name)
for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)))
assert all(sys.argv[1] in file for file in map(str, [
    getattr(m, "__file__", None) for n, m in sys.modules.items() if n.split(".")[0] in ("app", "cryptography")
]) if file != "None")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built") / "new" / "decryptor.zip")


def test_it_is_the_same_each_time(built, tmp_path):
    again = build(tmp_path / "decryptor.zip")
    assert again.sha256 == built.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert again.path.read_bytes() == built.path.read_bytes()


def test_it_is_what_it_says(built):
    with zipfile.ZipFile(built.path) as archive:
        entries = archive.infolist()
    assert (built.size, built.unpacked) == (
        built.path.stat().st_size,
        sum(entry.file_size for entry in entries),
    )
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    names = [entry.filename for entry in entries]
    assert names == sorted(names, key=lambda name: Path(name).parts)
    ours = {name for name in names if name.startswith("app/") and name.endswith(".py")}
    assert ours == {"app/__init__.py"} | {
        f"app/tenants/{name}.py" for name in ("__init__", "decryptor", "envelope", "kms")
    }
    sources = [name for name in names if name.endswith(".py")]
    assert built.bytecode
    assert len([name for name in names if name.endswith(".pyc")]) == len(sources)
    assert {name.partition("/")[0].partition(".")[0] for name in names} == {
        "app",
        "cryptography",
        "_cffi_backend",
    }
    assert built.size < 8e6


def test_it_runs_by_itself(built, tmp_path):
    with zipfile.ZipFile(built.path) as archive:
        archive.extractall(tmp_path)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("kms", region_name="eu-west-1", endpoint_url=url, **{
            name.lower(): AWS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        })  # fmt: skip
        key_id = client.create_key()["KeyMetadata"]["KeyId"]
        keys = KmsKeys("eu-west-1", EnvironmentCredentials(AWS).itself, key_id=key_id, endpoint=url)
        text = encrypt(SECRETS, "clinic-a", keys)
        events = [("clinic-a", text), ("clinic-b", text), ("clinic-a", text[:-1]), ("clinic-a", "fdxc7.x")]
        lines = [json.dumps({"tenant": tenant, "credentials": sealed}) for tenant, sealed in events]
        answers = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", RUNTIME, str(tmp_path), HANDLER],
            env=AWS | {"AWS_ENDPOINT_URL": url, "AWS_LAMBDA_RUNTIME_API": "x"},
            input="\n".join(lines), capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        server.stop()
    first, *refused = map(json.loads, answers.stdout.splitlines())
    assert first == {"credentials": SECRETS}
    assert [answer["error"]["code"] for answer in refused] == ["wrong_tenant", "damaged", "unknown_version"]
    assert answers.stderr == ""


def test_the_command_says_what_it_built(capsys, tmp_path, built):
    assert main([str(tmp_path / "decryptor.zip")]) == 0
    said = capsys.readouterr().out
    assert built.sha256 in said
    assert HANDLER in said
    assert "glibc 2." in said


def test_other_targets_are_fetched_as_the_lock_pins_them():
    pins = pinned((ROOT / "requirements.lock").read_text(), ("cryptography", "cffi"))
    starts = [line.partition("==")[0] for line in pins.splitlines() if not line.startswith(" ")]
    assert sorted(starts) == ["cffi", "cryptography"]
    assert pins.count("--hash=sha256:") > 20
    assert not pins.rstrip().endswith("\\")
