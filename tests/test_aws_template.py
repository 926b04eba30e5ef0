"""docs/aws/template.yaml: what cfn-lint says, what an emulator makes of it, what docs/aws/README.md promises.

moto's CloudFormation makes the bucket with its encryption, the queues, the key, the function and all of IAM.
It has no bucket policies, queue policies and alarms, and leaves out what else a bucket has. Those are checked
as they read once moto has filled in values; notifications are set by S3's own call, so that events flow.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import boto3
import httpx
import pytest
import yaml
from botocore.exceptions import ClientError
from cfnlint.api import ManualArgs, lint
from moto.cloudformation.models import cloudformation_backends
from moto.cloudformation.parsing import clean_json
from moto.core.authorization import enable_iam_authentication
from moto.server import ThreadedMotoServer
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from app.settings import Settings
from app.tenants.package import HANDLER

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (ROOT / "docs" / "aws" / "template.yaml").read_text()
README = (ROOT / "docs" / "aws" / "README.md").read_text()
ACCOUNT, REGION = "123456789012", "us-east-1"
NO_CLOUDFORMATION_IN_MOTO = {"AWS::S3::BucketPolicy", "AWS::SQS::QueuePolicy", "AWS::CloudWatch::Alarm"}
EVERYTHING = {
    "PhotoRetentionDays": "90",
    "PhotoKeyArn": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    "TenantBucketArns": "arn:aws:s3:::clinic-b-photos,arn:aws:s3:::clinic-c",
    "TenantAccounts": "210987654321,321098765432",
    "NoticeQueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:notices",
    "AlarmTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:alarms",
    "DecryptorCodeBucket": "template-code",
    "DecryptorConcurrency": "5",
}
DAY = 86_400

Client = Callable[..., Any]


@dataclass(frozen=True)
class Stack:
    """A stack that was created: its outputs, and its resources as they read with every value filled in."""

    outputs: dict[str, str]
    resources: dict[str, dict[str, Any]]

    def __getitem__(self, name: str) -> dict[str, Any]:
        properties: dict[str, Any] = self.resources[name]["Properties"]
        return properties

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        return {name: self[name] for name, resource in self.resources.items() if resource["Type"] == kind}

    def statements(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every policy statement, after the name of its resource."""

        def within(value: Any) -> Iterator[dict[str, Any]]:
            if isinstance(value, dict):
                yield from value.get("Statement", ())
                value = list(value.values())
            if isinstance(value, list):
                for item in value:
                    yield from within(item)

        for name, resource in self.resources.items():
            yield from ((name, statement) for statement in within(resource))


def listed(value: Any) -> list[Any]:
    """IAM takes one as it is and several as a list."""
    return value if isinstance(value, list) else [value]


def without_none(value: Any) -> Any:
    """What AWS::NoValue stands for is left out of a list: CloudFormation does that, moto does not."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_none(item) for item in value if item is not None]
    return value


@pytest.fixture(scope="module")
def aws() -> Iterator[Client]:
    """Makes a client of the emulator for a service, and for an access key where one is given."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()

    def client(service: str, key: str = "any", secret: str | None = None) -> Any:
        return boto3.client(
            service,
            endpoint_url=f"http://{host}:{port}",
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret or key,
        )

    yield client
    server.stop()


def create(aws: Client, name: str, **parameters: str) -> Stack:
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # also in the server's threads
        aws("cloudformation").create_stack(
            StackName=name,
            TemplateBody=TEMPLATE,
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": "Name", "ParameterValue": name}, *given],
        )
        (made,) = aws("cloudformation").describe_stacks(StackName=name)["Stacks"]
        backend = cloudformation_backends[ACCOUNT][REGION].get_stack(name)
        resources = {
            logical: without_none(clean_json(resource, backend.resource_map))
            for logical, resource in backend.template_dict["Resources"].items()
            if backend.resource_map.lazy_condition_map.get(resource.get("Condition"), True)
        }
    left_out = {kind for one in warned for kind in re.findall(r"parse (\S+) but", str(one.message))}
    assert left_out == NO_CLOUDFORMATION_IN_MOTO
    assert made["StackStatus"] == "CREATE_COMPLETE"
    return Stack({output["OutputKey"]: output["OutputValue"] for output in made["Outputs"]}, resources)


@pytest.fixture(scope="module")
def plain(aws: Client) -> Stack:
    """Every parameter at its default."""
    return create(aws, "template-plain")


@pytest.fixture(scope="module")
def full(aws: Client) -> Stack:
    """Everything that can be had."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as package:
        package.writestr("nothing.py", "")
    aws("s3").create_bucket(Bucket="template-code")
    aws("s3").put_object(Bucket="template-code", Key="decryptor.zip", Body=code.getvalue())
    return create(aws, "template-full", **EVERYTHING)


@pytest.fixture(params=["plain", "full"])
def stack(request: pytest.FixtureRequest) -> Stack:
    made: Stack = request.getfixturevalue(request.param)
    return made


# --- cfn-lint -------------------------------------------------------------------------------------


def findings(template: str) -> list[str]:
    found = lint(template, config=ManualArgs(include_checks=["I"], regions=[REGION, "eu-central-1"]))
    return [f"{match.rule.id} line {match.linenumber}: {match.message}" for match in found]


def test_cfn_lint_finds_nothing() -> None:
    assert findings(TEMPLATE) == []


def test_cfn_lint_would_find_errors_warnings_and_advice() -> None:
    wrong = TEMPLATE
    for right, mistake in (
        ("sqs:ReceiveMessage", "sqs:RecieveMessage"),
        ("!GetAtt DeadLetterQueue.Arn", "!GetAtt DeadLetters.Arn"),
        ("DependsOn: IntakeQueuePolicy", "DependsOn: PhotoBucketPolicy"),  # a circle
        ("    DeletionPolicy: Delete\n    UpdateReplacePolicy: Delete\n", ""),
    ):
        assert right in wrong
        wrong = wrong.replace(right, mistake)
    assert {finding.split()[0] for finding in findings(wrong)} >= {"W3037", "E1010", "E3004", "I3011"}


def test_there_are_no_anchors() -> None:
    # cfn-lint reads them, CloudFormation does not.
    assert not [event for event in yaml.parse(TEMPLATE) if isinstance(event, yaml.AliasEvent)]


# --- photos ---------------------------------------------------------------------------------------


def test_nobody_makes_a_photo_public(stack: Stack) -> None:
    block = stack["PhotoBucket"]["PublicAccessBlockConfiguration"]
    assert set(block) == {"BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"}
    assert all(block.values())
    assert stack["PhotoBucket"]["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]


def test_everything_at_rest_is_encrypted(aws: Client, plain: Stack, full: Stack) -> None:
    kms = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": EVERYTHING["PhotoKeyArn"]}
    for stack, encryption in ((plain, {"SSEAlgorithm": "AES256"}), (full, kms)):
        name = stack["PhotoBucket"]["BucketName"]
        made = aws("s3").get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]
        assert made["Rules"][0]["ApplyServerSideEncryptionByDefault"] == encryption
        (wanted,) = stack["PhotoBucket"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert wanted["BucketKeyEnabled"] is True
        queues = stack.of_type("AWS::SQS::Queue").values()
        assert [queue["SqsManagedSseEnabled"] for queue in queues] == [True, True]
        key = aws("kms").get_key_rotation_status(KeyId=stack.outputs["CredentialKeyArn"])
        assert key["KeyRotationEnabled"] is True


def test_what_expires_and_when(plain: Stack, full: Stack) -> None:
    rules, more = (
        {rule["Id"]: rule for rule in stack["PhotoBucket"]["LifecycleConfiguration"]["Rules"]}
        for stack in (plain, full)
    )
    assert rules.keys() == {"unclaimed", "unfinished"}
    assert rules["unclaimed"]["Prefix"] == "uploads/"
    # A dead letter that is sent back on its last day still finds its photo, however long it waited before.
    lives = [plain[queue]["MessageRetentionPeriod"] for queue in ("IntakeQueue", "DeadLetterQueue")]
    assert rules["unclaimed"]["ExpirationInDays"] * DAY > sum(lives)
    assert more["retention"] == {"Id": "retention", "Status": "Enabled", "ExpirationInDays": 90}
    # A version would outlive the deletion that was answered 204.
    assert "VersioningConfiguration" not in plain["PhotoBucket"]


# --- the queue intake -----------------------------------------------------------------------------


def test_an_upload_becomes_a_message_and_a_poison_message_a_dead_letter(aws: Client, plain: Stack) -> None:
    sqs, s3, bucket = aws("sqs"), aws("s3"), plain["PhotoBucket"]["BucketName"]
    queue, dead = plain.outputs["IntakeQueueUrl"], plain.outputs["DeadLetterQueueUrl"]
    (wanted,) = plain["PhotoBucket"]["NotificationConfiguration"]["QueueConfigurations"]

    def receive(url: str) -> list[dict[str, Any]]:
        answer = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=0, VisibilityTimeout=0)
        return [json.loads(message["Body"]) for message in answer.get("Messages", [])]

    same = {
        "QueueArn": wanted["Queue"],
        "Events": [wanted["Event"]],
        "Filter": {"Key": {"FilterRules": wanted["Filter"]["S3Key"]["Rules"]}},
    }
    s3.put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [same]}
    )
    assert [message["Event"] for message in receive(queue)] == ["s3:TestEvent"]
    sqs.purge_queue(QueueUrl=queue)
    s3.put_object(Bucket=bucket, Key="default/ab/abcd", Body=b"a photo that was scored")
    upload = s3.generate_presigned_post(bucket, "uploads/default/0199 a")
    posted = httpx.post(upload["url"], data=upload["fields"], files={"file": b"a photo"})
    assert posted.status_code == 204

    attempts = [receive(queue) for _ in range(int(dict(defaults())["MaxReceives"]))]
    (record,) = attempts[0][0]["Records"]
    assert record["s3"]["bucket"]["name"] == bucket
    assert unquote_plus(record["s3"]["object"]["key"]) == "uploads/default/0199 a"
    assert all(attempt == attempts[0] for attempt in attempts)
    assert receive(queue) == []
    assert receive(dead) == attempts[0]


def test_who_may_send_to_the_queues(stack: Stack) -> None:
    bucket, queue = f"arn:aws:s3:::{stack['PhotoBucket']['BucketName']}", stack["IntakeQueue"]["QueueName"]
    intake = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}"
    senders: dict[str, tuple[Any, Any]] = {"EventsOfPhotoBucket": (bucket, ACCOUNT)}
    if queue == "template-full-intake":
        buckets, accounts = (EVERYTHING[name].split(",") for name in ("TenantBucketArns", "TenantAccounts"))
        senders["EventsOfTenantBuckets"] = buckets, accounts
    allowed = [s for name, s in stack.statements() if "QueuePolicy" in name and s["Effect"] == "Allow"]
    assert allowed == [
        {
            "Sid": sid,
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": intake,
            "Condition": {
                "ArnEquals": {"aws:SourceArn": sender},
                "StringEquals": {"aws:SourceAccount": account},
            },
        }
        for sid, (sender, account) in senders.items()
    ]
    redrive = {"redrivePermission": "byQueue", "sourceQueueArns": [intake]}
    assert stack["DeadLetterQueue"]["RedriveAllowPolicy"] == redrive


@pytest.mark.parametrize(
    ("parameter", "value", "taken"),
    [
        ("TenantBucketArns", "arn:aws:s3:::clinic-b.photos", True),
        ("TenantBucketArns", "arn:aws:s3:::*", False),
        ("TenantBucketArns", "arn:aws:s3:::clinic-b/*", False),
        ("TenantBucketArns", "clinic-b", False),
        ("TenantAccounts", "210987654321", True),
        ("TenantAccounts", "*", False),
    ],
)
def test_whom_the_operator_may_let_in(plain: Stack, parameter: str, value: str, taken: bool) -> None:
    # moto does not look at patterns; CloudFormation matches each item as a whole.
    pattern = parameters()[parameter]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, value)) is taken
    assert re.fullmatch(pattern, parameters()[parameter]["Default"])


def test_alarms(plain: Stack, full: Stack) -> None:
    alarms = full.of_type("AWS::CloudWatch::Alarm").values()
    dead = full["IntakeQueue"]["RedrivePolicy"]["deadLetterTargetArn"].rpartition(":")[2]
    assert {(a["MetricName"], a["Dimensions"][0]["Value"], a["Threshold"]) for a in alarms} == {
        ("ApproximateAgeOfOldestMessage", full["IntakeQueue"]["QueueName"], 300),
        ("ApproximateNumberOfMessagesVisible", dead, 0),
    }
    for stack, topics in ((full, [EVERYTHING["AlarmTopicArn"]]), (plain, [])):
        assert [a["AlarmActions"] for a in stack.of_type("AWS::CloudWatch::Alarm").values()] == [topics] * 2


# --- who may do what ------------------------------------------------------------------------------


def test_what_is_allowed_is_named(full: Stack) -> None:
    broad = {
        (name, statement["Sid"])
        for name, statement in full.statements()
        if statement["Effect"] == "Allow"
        and (
            any("*" in action for action in listed(statement["Action"]))
            or "*" in (statement.get("Resource"), statement.get("Principal"))
        )
    }
    # In a key's policy it is the key itself; of what describes, EC2 lets nothing narrower be named.
    assert broad == {("CredentialKey", "LeaveItToIam"), ("HeadPolicy", "SeeNodes")}


def test_bucket_and_queues_refuse_what_is_not_tls(stack: Stack) -> None:
    refused = [
        (statement["Action"], resource)
        for _, statement in stack.statements()
        if (statement["Effect"], statement.get("Principal")) == ("Deny", "*")
        and statement["Condition"] == {"Bool": {"aws:SecureTransport": False}}
        for resource in listed(statement["Resource"])
    ]
    bucket = f"arn:aws:s3:::{stack['PhotoBucket']['BucketName']}"
    redrive = stack["IntakeQueue"]["RedrivePolicy"], stack["DeadLetterQueue"]["RedriveAllowPolicy"]
    queues = redrive[0]["deadLetterTargetArn"], *redrive[1]["sourceQueueArns"]
    assert sorted(refused) == sorted(
        [("s3:*", bucket), ("s3:*", f"{bucket}/*"), *(("sqs:*", queue) for queue in queues)]
    )


@pytest.mark.parametrize(
    ("policy", "opens"),
    [
        ("PhotoPolicy", True),
        ("IngressPolicy", False),
        ("IntakePolicy", False),
        ("CredentialReaderPolicy", False),
        ("HeadPolicy", False),
    ],
)
def test_one_policy_opens_the_photos_and_no_other_bucket(
    aws: Client, plain: Stack, policy: str, opens: bool
) -> None:
    # moto enforces IAM for S3, down to the resource. Of other services it knows only the resource "*".
    iam, bucket, other = aws("iam"), plain["PhotoBucket"]["BucketName"], f"other-than-{policy.lower()}"
    iam.create_user(UserName=policy)
    made = {
        p["PolicyName"].rpartition("-")[0]: p["Arn"] for p in iam.list_policies(Scope="Local")["Policies"]
    }
    iam.attach_user_policy(UserName=policy, PolicyArn=made[f"template-plain-{policy}"])
    key = iam.create_access_key(UserName=policy)["AccessKey"]
    aws("s3").create_bucket(Bucket=other)
    s3 = aws("s3", key["AccessKeyId"], key["SecretAccessKey"])

    def may(call: str, **arguments: Any) -> bool:
        try:
            getattr(s3, call)(**arguments)
        except ClientError as error:
            return str(error.response["Error"]["Code"]) != "AccessDenied"
        return True

    def opened(bucket: str, key: str) -> list[bool]:
        return [may(call, Bucket=bucket, Key=key) for call in ("get_object", "put_object", "delete_object")]

    with enable_iam_authentication():
        assert opened(bucket, "default/ab/1") == opened(bucket, "uploads/default/1") == [opens] * 3
        assert opened(other, "uploads/default/1") == [False] * 3
        assert may("list_objects_v2", Bucket=bucket) is opens
        assert not may("delete_bucket_policy", Bucket=bucket)


def test_credentials_are_read_for_a_tenant_that_is_named(stack: Stack) -> None:
    key = stack.outputs["CredentialKeyArn"]
    uses = {name: statement for name, statement in stack.statements() if statement.get("Resource") == key}
    assert uses.keys() - {"DecryptorPolicy"} == {"CredentialReaderPolicy", "CredentialWriterPolicy"}
    for statement in uses.values():
        assert statement["Condition"] == {
            "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": "tenant"},
            "Null": {"kms:EncryptionContext:tenant": False},
        }
    (refused,) = [s for s in stack["CredentialKey"]["KeyPolicy"]["Statement"] if s["Effect"] == "Deny"]
    assert refused["Principal"] == refused["Resource"] == "*"
    assert refused["Condition"] == {"Null": {"kms:EncryptionContext:tenant": True}}
    for action in {action for statement in uses.values() for action in listed(statement["Action"])}:
        assert any(action.startswith(pattern.rstrip("*")) for pattern in refused["Action"])


def test_the_head_ends_only_nodes_of_its_cluster_and_hands_on_one_role(plain: Stack) -> None:
    (ends,) = [s for _, s in plain.statements() if "ec2:TerminateInstances" in listed(s["Action"])]
    assert ends["Condition"] == {
        "StringEquals": {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": "template-plain"}
    }
    (hands_on,) = [s for _, s in plain.statements() if "iam:PassRole" in listed(s["Action"])]
    assert hands_on["Resource"].startswith(f"arn:aws:iam::{ACCOUNT}:role/template-plain-CpuRole-")
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert dict(defaults())["Name"] == cluster["cluster_name"]


def test_the_function(aws: Client, plain: Stack, full: Stack) -> None:
    assert plain.of_type("AWS::Lambda::Function") == plain.of_type("AWS::Logs::LogGroup") == {}
    made = aws("lambda").get_function(FunctionName=full.outputs["DecryptorArn"])
    assert made["Configuration"]["Handler"] == HANDLER
    assert made["Configuration"]["Role"].startswith(
        f"arn:aws:iam::{ACCOUNT}:role/template-full-DecryptorRole-"
    )
    assert made["Concurrency"]["ReservedConcurrentExecutions"] == 5
    assert made["Configuration"]["Runtime"] in {f"python{v}" for v in re.findall(r"--python (\S+)", README)}
    assert full["Decryptor"]["LoggingConfig"]["LogGroup"].startswith("template-full-DecryptorLogs-")


# --- docs/aws/README.md ---------------------------------------------------------------------------


def parameters() -> dict[str, dict[str, Any]]:
    """The template's, once a stack is made of it."""
    found: dict[str, dict[str, Any]] = (
        cloudformation_backends[ACCOUNT][REGION].get_stack("template-plain").template_dict["Parameters"]
    )
    return found


def defaults() -> Iterator[tuple[str, str]]:
    """Every parameter with its default."""
    return ((name, str(parameter["Default"])) for name, parameter in parameters().items())


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its own."""
    rows = re.findall(r"^\|(.+)\|$", README.partition(f"\n{heading}\n")[2].partition("\n#")[0], re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_permission_and_its_holder_is_in_the_readme(full: Stack) -> None:
    documented = {
        code(policy)[0]: (code(holder), set(code(may)))
        for policy, holder, may, _ in table("## Who may do what")
    }
    granted = {
        name: (
            [role.removeprefix("template-full-").partition("-")[0] for role in policy.get("Roles", ())],
            {
                action
                for statement in policy["PolicyDocument"]["Statement"]
                for action in listed(statement["Action"])
            },
        )
        for name, policy in full.of_type("AWS::IAM::ManagedPolicy").items()
    }
    assert documented == granted


@pytest.mark.usefixtures("plain")
def test_every_parameter_and_output_is_in_the_readme(full: Stack) -> None:
    assert {code(name)[0]: "".join(code(d)) for name, d, _ in table("## Parameters")} == dict(defaults())
    assert {code(name)[0] for name, _ in table("## Outputs")} == full.outputs.keys()


def test_the_settings_that_are_named_exist_and_fit() -> None:
    named = set(re.findall(r"settings? `(\w+)`", README))
    assert {"store", "queue", "dead_letter_queue", "credential_key", "photo_key", "notice_queue"} <= named
    assert named <= Settings.model_fields.keys()


@pytest.mark.usefixtures("plain")
def test_the_intake_gives_up_before_sqs_does() -> None:
    assert Settings.model_fields["intake_tries"].default < int(dict(defaults())["MaxReceives"])
