"""serve_config.yaml, held against Ray's schema key by key, the graph in the code, and cluster.yaml."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from app.judge import TableJudge
from app.settings import PREFIX, Settings, SettingsError, load_settings

with warnings.catch_warnings():
    # Ray 2.60's own classes, when they are first imported.
    warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
    from ray.serve import Application
    from ray.serve.deployment import deployment_to_schema
    from ray.serve.schema import ServeDeploySchema

    from app.deployments.parts import JudgeConfig
    from app.deployments.scorer import ScorerConfig
    from app.main import graph

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "serve_config.yaml").read_text()
ON_THE_CLUSTER = re.sub(r"^( *)#: ", r"\1", TEXT, flags=re.MULTILINE)
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(params=[TEXT, ON_THE_CLUSTER], ids=["as it stands", "on the cluster"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def deployments(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in config["applications"][0]["deployments"]}


def in_code(tmp_path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The deployments of the graph that this file's arguments make, by name."""
    arguments = config["applications"][0]["args"] | {"data_dir": tmp_path, "redis_url": "redis://nowhere"}
    application = graph(load_settings(**arguments))
    found, waiting = {}, [application]
    while waiting:
        bound = waiting.pop()._bound_deployment
        found[bound.name] = bound
        waiting += [part for part in bound.init_args if isinstance(part, Application)]
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schema classes among the alternatives of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {Union, types.UnionType, list}:
        for part in get_args(annotation):
            yield from models_in(part)


def unknown_keys(value: Any, annotation: Any, path: str = "") -> list[str]:
    """Keys that the schema does not have. A plain ``dict`` in it, such as user_config, may hold anything."""
    if isinstance(value, list):
        return [key for item in value for key in unknown_keys(item, annotation, path)]
    schemas = list(models_in(annotation))
    if not isinstance(value, dict) or not schemas:
        return []
    fields = {field.alias or name: field for schema in schemas for name, field in schema.model_fields.items()}
    wrong = [f"{path}{key}" for key in value if key not in fields]
    for key, inner in value.items():
        if key in fields:
            wrong += unknown_keys(inner, fields[key].annotation, f"{path}{key}.")
    return wrong


class NoDuplicates(yaml.SafeLoader):
    """Refuses a key that comes twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"{keys} at line {node.start_mark.line + 1}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("text", [TEXT, ON_THE_CLUSTER], ids=["as it stands", "on the cluster"])
def test_no_key_comes_twice(text: str) -> None:
    assert yaml.load(text, NoDuplicates)  # noqa: S506 - a SafeLoader


def test_the_command_in_the_file_switches_the_cluster_lines_on() -> None:
    command = re.search(r"sed '(.*)' serve_config.yaml", TEXT)
    assert command
    sed = subprocess.run(["sed", command[1]], input=TEXT, capture_output=True, text=True, check=True)
    assert yaml.safe_load(sed.stdout) == yaml.safe_load(ON_THE_CLUSTER) != yaml.safe_load(TEXT)


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    ServeDeploySchema.model_validate(copy.deepcopy(config))


def test_every_key_is_one_that_ray_knows(config: dict[str, Any]) -> None:
    assert unknown_keys(config, ServeDeploySchema) == []


@pytest.mark.parametrize(
    "path",
    [
        ("proxy_locations",),
        ("http_options", "prot"),
        ("logging_config", "encodings"),
        ("applications", 0, "import_paths"),
        ("applications", 0, "deployments", 1, "max_ongoing_request"),
        ("applications", 0, "deployments", 0, "backpressure_config", "retry_after"),
        ("applications", 0, "deployments", 0, "ray_actor_options", "num_cpu"),
        ("applications", 0, "deployments", 2, "autoscaling_config", "max_replica"),
    ],
)
def test_a_misspelt_key_is_found(path: tuple[str | int, ...]) -> None:
    config = yaml.safe_load(ON_THE_CLUSTER)
    place: Any = config
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = 1
    assert unknown_keys(config, ServeDeploySchema) == [
        ".".join(step for step in path if isinstance(step, str))
    ]


def test_the_names_are_those_of_the_graph(config: dict[str, Any], tmp_path: Path) -> None:
    assert list(deployments(config)) == list(in_code(tmp_path, config))


def test_every_option_is_what_the_code_would_use(tmp_path: Path) -> None:
    config = yaml.safe_load(TEXT)
    code = in_code(tmp_path, config)
    for name, options in deployments(config).items():
        own = deployment_to_schema(code[name]).model_dump(include=set(options), exclude_none=True)
        if actor_options := own.get("ray_actor_options"):
            own["ray_actor_options"] = {key: value for key, value in actor_options.items() if value}
        assert own == options, name


def test_the_arguments_are_settings(config: dict[str, Any]) -> None:
    arguments = config["applications"][0]["args"]
    assert set(arguments) <= set(Settings.model_fields)
    load_settings(**arguments)


@pytest.mark.parametrize(
    "wrong", [{"budget": 1000}, {"budget_ms": "soon"}, {"models": "a,,b"}, {"device": "gpu"}]
)
def test_a_wrong_argument_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load_settings(**wrong)


def test_the_deployments_take_their_user_config(config: dict[str, Any]) -> None:
    parts = deployments(config)
    assert set(parts["Scorer"]["user_config"]) == set(ScorerConfig.model_fields)
    ScorerConfig.model_validate(parts["Scorer"]["user_config"])
    for name in {"Ingress", "Intake"} & set(parts):
        thresholds = JudgeConfig.model_validate(parts[name]["user_config"]).thresholds
        TableJudge(load_settings(**config["applications"][0]["args"]).models).adjusted(thresholds)
    assert "user_config" not in parts["Preprocessor"]


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (JudgeConfig, {"threshold": {}}),
        (JudgeConfig, {"thresholds": {"food": "high"}}),
        (ScorerConfig, {"batch": 16}),
        (ScorerConfig, {"batch_size": 0}),
    ],
)
def test_a_wrong_user_config_is_refused(model: type[BaseModel], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model.model_validate(wrong)


def test_it_fits_on_two_cpus(tmp_path: Path) -> None:
    config = yaml.safe_load(TEXT)
    needed = 0.0
    for name, bound in in_code(tmp_path, config).items():
        actor_options = deployments(config)[name].get("ray_actor_options", bound.ray_actor_options)
        needed += bound.num_replicas * actor_options["num_cpus"]
    assert needed <= 2


def test_calls_are_bounded_everywhere(config: dict[str, Any]) -> None:
    for name, options in deployments(config).items():
        assert options["max_ongoing_requests"] > 0, name
        assert options["max_queued_requests"] > 0, name  # Ray's own is -1: a queue without end
    scorer = deployments(config)["Scorer"]
    assert scorer["max_ongoing_requests"] >= 2 * scorer["user_config"]["batch_size"]


def test_every_pool_is_one_of_cluster_yaml_and_has_room() -> None:
    pools: dict[str, dict[str, float]] = {}
    nodes: dict[str, int] = {}
    for kind in CLUSTER["available_node_types"].values():
        if pool := kind.get("labels", {}).get("pool"):
            pools[pool] = kind["resources"]
            nodes[pool] = nodes.get(pool, 0) + kind["max_workers"]
    asked: dict[str, float] = dict.fromkeys(pools, 0.0)
    for name, options in deployments(yaml.safe_load(ON_THE_CLUSTER)).items():
        actor = options["ray_actor_options"]
        pool = actor["label_selector"]["pool"]
        assert actor["num_cpus"] <= pools[pool]["CPU"], name
        assert actor.get("num_gpus", 0) <= pools[pool].get("GPU", 0), name
        replicas = options.get("num_replicas") or options["autoscaling_config"]["max_replicas"]
        asked[pool] += replicas * max(actor["num_cpus"] / pools[pool]["CPU"], actor.get("num_gpus", 0))
    assert all(asked[pool] <= nodes[pool] for pool in pools), asked


def test_the_cluster_scores_on_gpus_that_are_asked_for() -> None:
    config = yaml.safe_load(ON_THE_CLUSTER)
    assert config["applications"][0]["args"]["device"] == "cuda"
    assert deployments(config)["Scorer"]["ray_actor_options"]["num_gpus"] == 1


def test_the_clusters_data_are_beside_the_mounted_code() -> None:
    data_dir = yaml.safe_load(ON_THE_CLUSTER)["applications"][0]["args"]["data_dir"]
    home = f"/home/{CLUSTER['auth']['ssh_user']}"
    mounts = {path.replace("~", home) for path in CLUSTER["file_mounts"]}
    assert str(Path(data_dir).parent / "app") in mounts


def test_the_front_is_reachable_from_a_load_balancer(config: dict[str, Any]) -> None:
    assert config["proxy_location"] == "EveryNode"
    assert config["http_options"]["host"] == "0.0.0.0"  # noqa: S104 - compared, not bound


def test_photos_are_decoded_on_a_gpu_only_where_the_scorer_has_one(tmp_path: Path) -> None:
    from app.main import graph

    settings = {"data_dir": tmp_path, "redis_url": "redis://localhost", "decode": "gpu"}
    with pytest.raises(SettingsError, match="decode=gpu"):
        graph(load_settings(**settings, device="cpu"))
    assert graph(load_settings(**settings, device="cuda"))
