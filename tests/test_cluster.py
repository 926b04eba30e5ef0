"""cluster.yaml, held against Ray's schema, EC2's own model of RunInstances, and what we promise about it."""

from __future__ import annotations

import copy
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.aws import config as rays_aws
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
SERVE_VARIABLES = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_AUTH_MODE": "token",
}
STUB_RAY = '#!/bin/sh\nenv > "$HOME/$1.env"\necho "$@" > "$HOME/$1.arguments"\n'


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The file as `ray up` reads it, before Ray's defaults."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def run_instances() -> Shape:
    return (
        ServiceModel(Loader().load_service_model("ec2", "service-2"))
        .operation_model("RunInstances")
        .input_shape
    )


def node_configs(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind["node_config"] for name, kind in cluster["available_node_types"].items()}


def wrong_enums(value: Any, shape: Shape, path: str = "") -> Iterator[str]:
    """Values outside their enum: botocore's validator checks keys and types, and leaves these to EC2."""
    if shape.type_name == "structure":
        for key in value.keys() & shape.members.keys():
            yield from wrong_enums(value[key], shape.members[key], f"{path}.{key}")
    elif shape.type_name == "list":
        for index, item in enumerate(value):
            yield from wrong_enums(item, shape.member, f"{path}[{index}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: {value!r} is not one of EC2's values"


def node_config_faults(node_config: dict[str, Any], shape: Shape) -> list[str]:
    # Ray adds the counts when it launches.
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return report.generate_report().splitlines() or list(wrong_enums(node_config, shape))


def start(cluster: dict[str, Any], commands: str, home: Path) -> tuple[dict[str, str], str]:
    """What `ray start` would see, its environment and arguments: the set-up's ray.env, and a stub for Ray."""
    ray = home / "venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text(STUB_RAY)
    ray.chmod(0o755)
    setup = [command for command in cluster["setup_commands"] if "ray.env" in command]
    for command in [*setup, *cluster[commands]]:
        subprocess.run(
            ["bash", "-c", f"ulimit() {{ :; }}; {command}"],
            env={"HOME": str(home), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.1"},
            check=True,
        )
    environment = dict(
        line.split("=", 1) for line in (home / "start.env").read_text().splitlines() if "=" in line
    )
    return environment, (home / "start.arguments").read_text()


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_ray_accepts_the_labels(cluster: dict[str, Any]) -> None:
    for kind in cluster["available_node_types"].values():
        validate_node_label_syntax(kind.get("labels", {}))


def test_ec2_accepts_every_node_config(cluster: dict[str, Any], run_instances: Shape) -> None:
    configs = node_configs(cluster).items()
    assert [
        (name, fault) for name, config in configs for fault in node_config_faults(config, run_instances)
    ] == []


@pytest.mark.parametrize(
    "path", [["idle_timeout_minute"], ["auth", "ssh_usr"], ["available_node_types", "cpu", "max_worker"]]
)
def test_a_misspelt_key_is_caught_by_rays_schema(cluster: dict[str, Any], path: list[str]) -> None:
    *parents, misspelt = path
    target = cluster
    for parent in parents:
        target = target[parent]
    target[misspelt] = 1
    with pytest.raises(ValidationError, match=misspelt):
        validate_config(prepare_config(cluster))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"InstanceTyp": "g6.xlarge"}, "InstanceTyp"),
        ({"InstanceType": "g66.xlarge"}, "g66.xlarge"),
        ({"MetadataOptions": {"HttpToken": "required"}}, "HttpToken"),
        ({"IamInstanceProfile": {"ARN": "arn:aws:iam::123456789012:instance-profile/head"}}, "ARN"),
        ({"MetadataOptions": {"HttpTokens": "yes"}}, "HttpTokens"),
        ({"BlockDeviceMappings": [{"Ebs": {"VolumeSize": "120"}}]}, "VolumeSize"),
    ],
)
def test_a_wrong_node_config_is_caught_by_ec2s_model(
    cluster: dict[str, Any], run_instances: Shape, wrong: dict[str, Any], complaint: str
) -> None:
    config = copy.deepcopy(node_configs(cluster)["gpu-spot"]) | wrong
    assert complaint in " ".join(node_config_faults(config, run_instances))


def test_every_node_type_asks_for_imdsv2_an_ami_and_encrypted_gp3(cluster: dict[str, Any]) -> None:
    for name, config in node_configs(cluster).items():
        assert config["ImageId"].startswith("ami-"), name  # without one, Ray takes an Ubuntu 18.04 AMI
        assert config["MetadataOptions"]["HttpTokens"] == "required", name
        for disk in config["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"] is True, name
            assert disk["Ebs"]["VolumeType"] == "gp3", name


def test_ray_is_never_left_to_open_ssh_to_the_world(cluster: dict[str, Any]) -> None:
    # Ray makes its own group, port 22 open to 0.0.0.0/0, for any node type that names none.
    assert all(config["SecurityGroupIds"] for config in node_configs(cluster).values())
    assert "security_group" not in cluster["provider"]
    assert "0.0.0.0/0" not in yaml.safe_dump(cluster)


def test_head_and_cpu_nodes_have_a_role_each_and_gpu_nodes_none(cluster: dict[str, Any]) -> None:
    roles = {name: config.get("IamInstanceProfile") for name, config in node_configs(cluster).items()}
    profile = "arn:aws:iam::123456789012:instance-profile/fooddx-{}InstanceProfile-REPLACE"
    assert roles == {
        "head": {"Arn": profile.format("Head")},
        "cpu": {"Arn": profile.format("Cpu")},
        "gpu-spot": None,
        "gpu-on-demand": None,
    }


def test_ray_is_never_left_to_make_a_role(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def ask(*_: Any) -> None:
        raise Asked

    monkeypatch.setattr(rays_aws, "_get_instance_profile", ask)  # where Ray's default role begins
    prepared = prepare_config(cluster)
    assert rays_aws._configure_iam_role(copy.deepcopy(prepared)) == prepared
    del node_configs(prepared)["head"]["IamInstanceProfile"]
    with pytest.raises(Asked):
        rays_aws._configure_iam_role(prepared)


def test_gpu_nodes_are_spot_first_with_an_on_demand_alternative(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    spot, on_demand = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["node_config"].pop("InstanceMarketOptions")["MarketType"] == "spot"
    for key in ("node_config", "resources", "labels"):
        assert spot[key] == on_demand[key]


def test_the_head_holds_no_replicas(cluster: dict[str, Any]) -> None:
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}


def test_everything_installed_is_pinned(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    commands = prepared["head_setup_commands"] + prepared["worker_setup_commands"]
    for command in commands:
        for install in re.findall(r"pip install [^|&]*", command):
            assert "--require-hashes" in install or "--no-deps --no-build-isolation -e ~/fooddx" in install
    assert any("--require-hashes -r ~/fooddx/requirements.lock" in command for command in commands)
    assert not any("ray-wheels" in command for command in commands)  # the nightly in Ray's default commands


def test_the_cluster_runs_the_ray_that_is_tested_here(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/fooddx/requirements.lock"] == "./requirements.lock"
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert locked[1] == version("ray")


def test_the_cluster_runs_the_python_that_is_tested_here(cluster: dict[str, Any]) -> None:
    found = set(re.findall(r"\b3\.\d+\.\d+\b", " ".join(cluster["setup_commands"])))
    assert len(found) == 1
    assert found.pop().startswith(".".join(platform.python_version_tuple()[:2]) + ".")


def test_what_is_mounted_exists_and_is_neither_data_nor_history(cluster: dict[str, Any]) -> None:
    local = {path for path in cluster["file_mounts"].values() if path.startswith("./")}
    assert [path for path in sorted(local) if not (ROOT / path).exists()] == []
    assert not local & {"./", "./data", "./.venv", "./.git"}


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_serve_variables_are_set_before_ray_starts(
    cluster: dict[str, Any], commands: str, tmp_path: Path
) -> None:
    environment, _ = start(cluster, commands, tmp_path)
    assert environment.items() >= SERVE_VARIABLES.items()
    assert environment["AWS_REGION"] == cluster["provider"]["region"]


def test_the_dashboard_stays_on_the_heads_loopback(cluster: dict[str, Any], tmp_path: Path) -> None:
    _, arguments = start(cluster, "head_start_ray_commands", tmp_path)
    assert "--dashboard-host=127.0.0.1" in arguments


def test_workers_join_the_head(cluster: dict[str, Any], tmp_path: Path) -> None:
    _, arguments = start(cluster, "worker_start_ray_commands", tmp_path)
    assert "--address=10.0.0.1:6379" in arguments
