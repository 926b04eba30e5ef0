"""FoodDX with all that it uses of AWS, on this machine: ``make run-aws``.

    python -m loadtests.aws

Creates the stack of docs/aws/template.yaml in an emulated account, gives the service the policies that the
template gives a node, registers two tenants, and runs ``fooddx serve`` over it. docs/aws/local.md says what
there is to see. Ctrl-C stops everything; what was in the account is gone then, and the results with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from cfnlint.decode import decode_str  # type: ignore[import-untyped]
from rich.console import Console

from app.settings import SettingsError, load_settings
from app.stores.embedded import EmbeddedStore, EmbeddedStoreError, die_with_parent
from app.stores.tenants import TenantAdmin
from app.tenants.credentials import encrypt
from app.tenants.kms import KmsKeys
from app.tenants.tenants import Tenant
from loadtests.emulators import REGION, ROOT, Account, EmulatorError, KeyPair, account

TEMPLATE: Final = Path(__file__).parents[1] / "docs" / "aws" / "template.yaml"
SERVICES: Final = ("cloudformation", "iam", "kms", "monitoring", "s3", "sqs", "sts")
SHARED, OWN = "clinic-a", "clinic-b"
"""A tenant whose photos are in the bucket of the stack, and one with a bucket and credentials of its own."""
UNJUDGED: Final = ("aws:SecureTransport", "kms:EncryptionContext")
"""Condition keys, or how they begin."""
OWN_BUCKET: Final = "clinic-b-photos"


@dataclass(frozen=True)
class Cloud:
    """A stack of the template in an account.

    Attributes:
        account: where it is.
        outputs: of the stack, see docs/aws/README.md.
        service: keys of who may do what a ``cpu`` node may, and nothing else.
        operator: keys of who may seal credentials, and nothing else.
    """

    account: Account
    outputs: Mapping[str, str]
    service: KeyPair
    operator: KeyPair

    def aws_environment(self, keys: KeyPair) -> dict[str, str]:
        """The variables of AWS with which a process finds this account."""
        return {
            "AWS_ENDPOINT_URL": self.account.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
        }

    @property
    def settings(self) -> dict[str, str]:
        """The service's settings by name, as docs/aws/README.md makes them of the outputs."""
        return {
            "store": self.outputs["PhotoStore"],
            "queue": self.outputs["IntakeQueueUrl"],
            "dead_letter_queue": self.outputs["DeadLetterQueueUrl"],
            "credential_key": self.outputs["CredentialKeyArn"],
        }


def for_emulator(template: dict[str, Any]) -> dict[str, Any]:
    """The template less the conditions that the emulator has no facts for.

    It speaks plain HTTP, which TLS-only statements refuse, and tells policies nothing of an encryption
    context, which its KMS holds a data key to all the same. A statement that denies on such a condition is
    left out, one that allows holds without it; a policy without statements is none.
    """
    resources = {}
    for name, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        changed = {
            part: document | {"Statement": [*filter(None, map(_judgeable, document["Statement"]))]}
            for part, document in properties.items()
            if part in {"PolicyDocument", "KeyPolicy"}
        }
        if all(document["Statement"] for document in changed.values()):
            resources[name] = resource | {"Properties": properties | changed}
    return template | {"Resources": resources}


def _judgeable(statement: dict[str, Any]) -> dict[str, Any] | None:
    keys = [key for test in statement.get("Condition", {}).values() for key in test]
    if not any(key.startswith(UNJUDGED) for key in keys):
        return statement
    if statement["Effect"] == "Deny":
        return None
    return {name: value for name, value in statement.items() if name != "Condition"}


@contextlib.contextmanager
def emulated_cloud(folder: Path) -> Iterator[Cloud]:
    """The stack of the template in an empty account of an emulator, whose log is in ``folder``."""
    with account(folder, *SERVICES) as made:
        yield create_stack(made)


def create_stack(made: Account, name: str = "fooddx") -> Cloud:
    """Create the stack and its two users.

    Raises:
        EmulatorError: the stack could not be created; the text says which resource and why.
    """
    template, _ = decode_str(TEMPLATE.read_text())
    with contextlib.closing(made.client("sts")) as sts:
        number = sts.get_caller_identity()["Account"]
    parameters = {
        "Name": name,
        "TenantBucketArns": f"arn:aws:s3:::{OWN_BUCKET}",
        "TenantAccounts": number,
    }
    with contextlib.closing(made.client("cloudformation")) as cloudformation:
        cloudformation.create_stack(
            StackName=name,
            TemplateBody=json.dumps(for_emulator(template)),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
        while (stack := cloudformation.describe_stacks(StackName=name)["Stacks"][0])["StackStatus"].endswith(
            "_IN_PROGRESS"
        ):
            time.sleep(0.1)
        if stack["StackStatus"] != "CREATE_COMPLETE":
            events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
            why = [f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason')}" for event in events]
            raise EmulatorError("\n".join(why))
        role = cloudformation.describe_stack_resource(StackName=name, LogicalResourceId="CpuRole")
    with contextlib.closing(made.client("iam")) as iam:
        attached = iam.list_attached_role_policies(
            RoleName=role["StackResourceDetail"]["PhysicalResourceId"]
        )["AttachedPolicies"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    return Cloud(
        account=made,
        outputs=outputs,
        service=made.user("service", *(policy["PolicyArn"] for policy in attached)),
        operator=made.user("operator", outputs["CredentialWriterPolicyArn"]),
    )


def seed(cloud: Cloud, tenants: TenantAdmin) -> dict[str, str]:
    """Register the two tenants; the API key of each."""
    bucket_keys = own_bucket(cloud, OWN_BUCKET)
    operator = KmsKeys.from_environment(
        cloud.aws_environment(cloud.operator), key_id=cloud.outputs["CredentialKeyArn"]
    )
    credentials = {
        "access_key_id": bucket_keys.access_key_id,
        "secret_access_key": bucket_keys.secret_access_key,
        "region": REGION,
        "endpoint": cloud.account.url,
    }
    now = datetime.now(UTC)
    api_keys = {}
    for empty in (
        Tenant(id=SHARED, made_at=now),
        Tenant(
            id=OWN,
            store=f"s3://{OWN_BUCKET}",
            credentials=encrypt(credentials, OWN, operator),
            made_at=now,
        ),
    ):
        tenant, api_keys[empty.id] = empty.with_new_key(now, timedelta())
        tenants.add(tenant)
    return api_keys


def own_bucket(cloud: Cloud, bucket: str) -> KeyPair:
    """A bucket that a tenant brings, which tells our queue of uploads; the keys that it gives us."""
    arn = f"arn:aws:s3:::{bucket}"
    with contextlib.closing(cloud.account.client("s3")) as s3:
        s3.create_bucket(Bucket=bucket)
        # Of what the service itself writes there, outside uploads/, it is not told.
        rule = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "uploads/"}]}}
        notice = {
            "QueueArn": cloud.outputs["IntakeQueueArn"],
            "Events": ["s3:ObjectCreated:*"],
            "Filter": rule,
        }
        s3.put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [notice]}
        )
    photos = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    return cloud.account.user(
        OWN,
        statements=[
            {"Effect": "Allow", "Action": photos, "Resource": f"{arn}/*"},
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": arn},
        ],
    )


def main() -> int:
    """The command: 0 after Ctrl-C, 1 where something did not start or ended by itself."""
    console = Console(highlight=False, soft_wrap=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    _spare_proxies()
    try:
        with contextlib.ExitStack() as stack:
            return _serve(stack, console)
    except KeyboardInterrupt:
        console.print("The emulated account is gone, and with it photos, results and tenants.")
        return 0
    except (SettingsError, EmulatorError, EmbeddedStoreError) as error:
        console.print(f"FoodDX on an emulated AWS cannot start: {error}", style="red", markup=False)
        return 1


def _serve(stack: contextlib.ExitStack, console: Console) -> int:
    settings = load_settings()
    data_dir = settings.data_dir / "aws"
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fooddx-aws-")))
    with _step(console, "An AWS account, emulated, with the stack of docs/aws/template.yaml"):
        cloud = stack.enter_context(emulated_cloud(folder))
    with _step(console, f"Results store, and in it the tenants {SHARED} and {OWN}"):
        store = stack.enter_context(EmbeddedStore(folder / "valkey"))
        with TenantAdmin(store.url) as tenants:
            api_keys = seed(cloud, tenants)
    ours = cloud.settings | {"data_dir": str(data_dir), "redis_url": store.url}
    load_settings(**ours)  # what is wrong with them is said here, not in a child
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= cloud.aws_environment(cloud.service)
    environment |= {f"FOODDX_{name.upper()}": value for name, value in ours.items()}
    base = f"http://127.0.0.1:{settings.port}"
    service = stack.enter_context(_service(environment))
    if _ready(service, base):
        time.sleep(0.5)  # until the service has said so itself
        words = walk_through(cloud, base, api_keys, data_dir / "sample.jpg", data_dir / "upload.json")
        console.print(words, markup=False)
    return 1 if service.wait() else 0


@contextlib.contextmanager
def _service(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(Path(sys.executable).with_name("fooddx")), "serve"]
    service = subprocess.Popen(  # noqa: S603 - our own words
        command,
        env=environment,
        process_group=0,  # Ctrl-C in the terminal is for this process, which stops the service first
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, before any thread of ours
    )
    try:
        yield service
    finally:
        service.terminate()
        service.wait()


def _ready(service: subprocess.Popen[bytes], base: str) -> bool:
    """Wait until the service answers; False when it ended instead, having said why."""
    with httpx.Client(trust_env=False, timeout=5) as client:
        while service.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{base}/readyz").is_success:
                    return True
            time.sleep(0.2)
    return False


def walk_through(cloud: Cloud, base: str, api_keys: Mapping[str, str], photo: Path, upload: Path) -> str:
    """What to type to see ``photo`` go through bucket and queue; ``upload`` will hold the form."""
    read = f'import json; form = json.load(open("{upload}"))'
    form = (
        f'{read}; print("url = " + form["url"], '
        '*(f"form-string = \\"{name}={value}\\"" for name, value in form["fields"].items()), sep="\\n")'
    )
    asked = f'{{"media_type": "image/jpeg", "bytes": {photo.stat().st_size}}}'
    return f"""
A photo by way of bucket and queue, for {SHARED}: its photos are in {cloud.outputs["PhotoStore"]}

  key={api_keys[SHARED]}

or for {OWN}: in s3://{OWN_BUCKET}, with credentials of its own

  key={api_keys[OWN]}

1. Ask for a form

  curl -sS -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{asked}' \\
       {base}/v1/uploads | tee '{upload}'; echo

2. Send the photo to the bucket, which tells the queue, from which the service takes it

  python3 -c '{form}' \\
       | curl -sS -K - -F 'file=@{photo}' -w '%{{http_code}}\\n'

3. Get the result: 202 until it is there

  curl -sS -i -H "Authorization: Bearer $key" \\
       {base}/v1/scores/$(python3 -c '{read}; print(form["id"])')

How long that takes, over 200 photos:

  FOODDX_API_KEY=$key {sys.executable} -m loadtests.intake --url {base} --uploads 200

The account, for any program that speaks to AWS:

  export AWS_ENDPOINT_URL={cloud.account.url} AWS_REGION={REGION} \\
         AWS_ACCESS_KEY_ID={ROOT.access_key_id} AWS_SECRET_ACCESS_KEY={ROOT.secret_access_key}
"""


def _spare_proxies() -> None:
    """A proxy named in the environment knows nothing of this machine's loopback."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))


@contextlib.contextmanager
def _step(console: Console, words: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(f"{words} …"):
        yield
    console.print(f"[green]✓[/] {words} [dim]{time.perf_counter() - start:.1f} s[/]")


if __name__ == "__main__":
    raise SystemExit(main())
