"""The ``fooddx`` commands around models: what they print, what they change, and their exit status."""

import json
import sys
import types

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from app import model_commands
from app.client import Client
from models import evaluate
from models.build import BuildError
from models.evaluate import Comparison
from models.registry import Registry
from tests.loopback import serving
from tests.runs import write_run

NOWHERE = "http://127.0.0.1:9"
SERVING = "imagenet-lite0"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    for name in ("FOODDX_MODELS", "FOODDX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOODDX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FOODDX_API_KEY", "fdx_key-of-the-tests-0123456789")
    return tmp_path / "data"


@pytest.fixture
def registry(data_dir):
    """A registry in which imagenet-lite0 serves."""
    registry = Registry(data_dir / "registry")
    registry.promote(SERVING)
    return registry


@pytest.fixture
def built(monkeypatch):
    """Refs of what would have been built."""
    refs = []

    def build_apart(manifests, out_dir):
        assert out_dir.name == "models"
        refs.extend(manifest.ref for manifest in manifests)

    monkeypatch.setattr("models.build.build_apart", build_apart)
    return refs


@pytest.fixture
def salad(registry, built, tmp_path):
    """A registered model."""
    return registry.register(write_run(tmp_path / "salad-1")).ref


@pytest.fixture
def fooddx(data_dir, fooddx):
    """The command, over a data folder of the test's own."""
    return fooddx


@pytest.fixture
def compared(monkeypatch):
    """Decide how a comparison ends; what was compared."""
    calls = []

    def ends(difference):
        def compare(candidate, serving, source, *, split, models_dir, device, progress):
            progress("asking both models")
            calls.append((candidate.ref, serving.ref, source, split, device))
            better, worse = {"score error": 0.4, "photos": 7}, {"score error": 0.5, "photos": None}
            figures = (better, worse) if difference < 0 else (worse, better)
            interval = (difference - 0.1, difference + 0.1)
            return Comparison(7, *figures, difference, interval, difference > 0)

        monkeypatch.setattr("models.evaluate.compare", compare)
        return calls

    return ends


def service(models):
    """A service that says it serves each of ``models`` in turn, and at last the last one."""
    remaining = list(models)

    async def answer(_):
        name, _, version = remaining[0].partition("@")
        if len(remaining) > 1:
            remaining.pop(0)
        return JSONResponse({"serving": {"name": name, "version": version or "1"}, "models": []})

    return serving(lambda: Starlette(routes=[Route("/v1/models", answer)]))


# register


def test_a_run_is_built_and_registered_and_again_changes_nothing(fooddx, registry, built, tmp_path):
    run = write_run(tmp_path / "salad-1")
    status, out, err = fooddx("model", "register", run)
    assert (status, err) == (0, "")
    assert "salad@1 is registered." in out
    assert "fooddx model promote salad@1 --data" in out
    assert built == ["salad@1"]
    assert registry.serving() == (SERVING,)
    status, out, _ = fooddx("model", "register", run)
    assert status == 0
    assert "salad@1 is registered already, with the same content." in out


def test_what_cannot_be_built_is_not_registered(fooddx, registry, tmp_path, monkeypatch):
    def fail(manifests, out_dir):
        raise BuildError("salad@1 could not be built:\n[red]names differ[/]")

    monkeypatch.setattr("models.build.build_apart", fail)
    status, out, err = fooddx("model", "register", write_run(tmp_path / "salad-1"))
    assert (status, out) == (1, "")
    assert err == "fooddx: salad@1 could not be built:\n[red]names differ[/]\n"
    assert "salad@1" not in {entry.ref for entry in registry.entries()}


def test_a_first_registration_makes_a_data_folder_that_is_closed_to_others(fooddx, data_dir, built, tmp_path):
    assert fooddx("model", "register", write_run(tmp_path / "salad-1"))[0] == 0
    assert data_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("broken", ["no run", "tampered with", "no labels"])
def test_a_run_that_is_not_as_it_should_is_told_in_a_line(fooddx, built, tmp_path, broken):
    run = tmp_path / "salad-1"
    if broken != "no run":
        write_run(run)
    if broken == "tampered with":
        (run / "weights.safetensors").write_text("others")
    if broken == "no labels":
        (run / "labels.csv").write_text("nothing")
    status, out, err = fooddx("model", "register", run)
    assert (status, out, built) == (1, "", [])
    assert err.startswith("fooddx: ")
    assert len(err.splitlines()) == 1


# promote


def test_a_model_that_was_not_compared_is_not_promoted(fooddx, registry, salad):
    status, out, err = fooddx("model", "promote", salad)
    assert (status, out) == (1, "")
    assert "nobody knows whether salad@1 is better than imagenet-lite0" in err
    assert registry.serving() == (SERVING,)


def test_a_better_model_is_promoted_and_both_columns_are_shown(
    fooddx, registry, salad, compared, built, tmp_path
):
    calls = compared(-0.25)
    status, out, err = fooddx(
        "model", "promote", salad, "--data", tmp_path, "--split", "all", "--url", NOWHERE
    )
    assert (status, err) == (0, "")
    assert calls == [("salad@1", SERVING, tmp_path, "all", "cpu")]
    rows = [line.split() for line in out.splitlines()]
    assert ["score", "error", "0.400", "0.500"] in rows
    assert ["photos", "7", "–"] in rows
    assert "-0.250 points (95 % interval -0.350 to -0.150); below 0" in out
    assert "salad@1 is promoted, in the place of imagenet-lite0" in out
    assert f"No service runs at {NOWHERE}; the next start takes it up." in out
    assert built == ["salad@1"], "so that whoever serves it need not wait"
    assert registry.serving() == (salad,)


def test_a_worse_model_is_promoted_by_force_alone(fooddx, registry, salad, compared, tmp_path):
    compared(+0.05)
    promote = ("model", "promote", salad, "--data", tmp_path, "--url", NOWHERE)
    status, out, err = fooddx(*promote)
    assert status == 1
    assert "salad@1 is worse: imagenet-lite0 stays. --force promotes it all the same" in err
    assert "-0.050 to +0.150; chance may explain it" in out
    assert registry.serving() == (SERVING,)
    assert fooddx(*promote, "--force")[0] == 0
    assert registry.serving() == (salad,)


def test_what_was_promoted_during_the_comparison_stays(fooddx, registry, salad, compared, monkeypatch):
    compared(-0.25)

    def meanwhile(manifest, settings):
        registry.promote("imagenet-lite2")

    monkeypatch.setattr(model_commands, "_build", meanwhile)
    status, _, err = fooddx("model", "promote", salad, "--data", "photos")
    assert status == 1
    assert "meanwhile imagenet-lite2 serves" in err
    assert registry.serving() == ("imagenet-lite2",)


def test_data_that_cannot_be_read_is_told_and_nothing_is_promoted(fooddx, registry, salad, tmp_path):
    status, _, err = fooddx("model", "promote", salad, "--data", tmp_path / "none")
    assert status == 1
    assert err.startswith("fooddx: ")
    assert "does not exist" in err
    assert registry.serving() == (SERVING,)


def test_what_serves_is_promoted_already(fooddx, registry):
    status, out, _ = fooddx("model", "promote", SERVING)
    assert (status, out) == (0, "imagenet-lite0 is promoted already.\n")


# What follows a promotion


def test_a_running_service_is_watched_until_it_has_the_model(fooddx, registry, salad, monkeypatch):
    monkeypatch.setattr(model_commands, "_ASK_EVERY_S", 0.01)
    with service([SERVING, SERVING, salad, "never asked"]) as url:
        status, out, err = fooddx("model", "promote", salad, "--force", "--url", url)
    assert (status, err) == (0, "")
    assert f"The service at {url} has it after" in out


def test_a_service_that_keeps_its_model_is_told(fooddx, registry, salad, monkeypatch):
    monkeypatch.setattr(model_commands, "PATIENCE_S", 0.0)
    with service([SERVING]) as url:
        status, _, err = fooddx("model", "promote", salad, "--force", "--url", url)
    assert status == 1
    assert f"the service at {url} still serves imagenet-lite0@1: its terminal" in err
    assert registry.serving() == (salad,), "it is promoted all the same"


def test_an_answer_that_is_no_answer_leaves_the_promotion_done(fooddx, registry, salad):
    with serving(Starlette) as url:
        status, out, _ = fooddx("model", "promote", salad, "--force", "--url", url)
    assert status == 0
    assert "could not be asked whether it took it up: HTTP 404" in out


def test_a_service_with_models_of_its_own_is_not_waited_for(fooddx, salad, monkeypatch):
    monkeypatch.setenv("FOODDX_MODELS", "imagenet-lite1,imagenet-lite2")
    monkeypatch.setattr(model_commands, "_await_service", lambda *_: pytest.fail("it would wait in vain"))
    status, _, err = fooddx("model", "promote", salad, "--force")
    assert status == 0
    assert (
        "FOODDX_MODELS names imagenet-lite1, imagenet-lite2: a service with this setting keeps to it" in err
    )


def test_what_a_cluster_needs_is_told(fooddx, registry, salad):
    _, out, _ = fooddx("model", "promote", salad, "--force", "--url", NOWHERE)
    assert (
        f"copy {registry.folder / 'salad-1'} to every node, add `models: [salad@1]` to the user_config" in out
    )


def test_a_rollback_undoes_the_promotion_and_follows_up_alike(fooddx, registry, salad):
    registry.promote(salad)
    with service([SERVING]) as url:
        status, out, err = fooddx("model", "rollback", "--url", url)
    assert (status, err) == (0, "")
    assert "Back to imagenet-lite0, in the place of salad@1." in out
    assert "has it after" in out
    assert "models: [imagenet-lite0]" in out
    assert "every node" not in out, "every node has the project's own"
    assert registry.serving() == (SERVING,)


def test_nothing_to_go_back_to(fooddx, data_dir):
    status, _, err = fooddx("model", "rollback")
    assert status == 1
    assert "nothing served before meals-lite2" in err


# list, explain, labels


def test_the_list_says_which_one_is_promoted_and_how_good_each_was(fooddx, registry, salad):
    registry.promote(salad)
    status, out, err = fooddx("model", "list")
    assert (status, err) == (0, "")
    rows = {line.replace("▶", " ").split()[0]: line for line in out.splitlines()}
    assert {name for name, line in rows.items() if "▶" in line} == {salad}
    assert "top1 0.750, top5 1.000" in rows[salad]
    assert "with FoodDX" in rows[SERVING]
    status, out, _ = fooddx("model", "list", "--format", "json")
    models = {entry.pop("model"): entry for entry in json.loads(out)}
    assert status == 0
    assert models[SERVING] == {"version": "1", "promoted": False, "registered_at": None, "figures": {}}
    assert models[salad]["promoted"]
    assert models[salad]["registered_at"].startswith("20")


@pytest.mark.parametrize(
    "command", [("list",), ("rollback",), ("promote", "imagenet-lite1", "--force")], ids=" ".join
)
def test_a_damaged_registry_is_told_in_a_line(fooddx, registry, command):
    (registry.folder / "serving.json").write_text("{")
    status, out, err = fooddx("model", *command)
    assert (status, out) == (1, "")
    assert "serving.json is damaged" in err
    assert len(err.splitlines()) == 1


def test_a_food_is_explained_by_the_model_that_serves_or_another(fooddx, registry, salad):
    status, out, _ = fooddx("explain", "carbonara")
    assert status == 0
    assert "Nutri-Score" in out.splitlines()[0]
    assert "classes   carbonara" in out
    registry.promote(salad)
    assert "classes" not in fooddx("explain", "carbonara")[1], (
        "the food is known, the model has no such class"
    )
    assert "classes   carbonara" in fooddx("explain", "carbonara", "--model", SERVING)[1]
    status, _, err = fooddx("explain", "stone")
    assert (status, err) == (1, "fooddx: 'stone' is a class that is not food\n")
    status, _, err = fooddx("explain", "apple", "pies")
    assert status == 1
    assert "no food or class 'apple pies'; did you mean apple pie" in err


def test_labels_are_exported_to_a_folder(fooddx, monkeypatch, tmp_path):
    calls = []

    def export_labels(self, folder, photos):
        calls.append((folder, photos))
        return 3

    monkeypatch.setattr(Client, "export_labels", export_labels)
    status, out, _ = fooddx("labels", tmp_path, "--url", NOWHERE)
    assert (status, out) == (0, f"3 labels in {tmp_path}/labels.csv\n")
    assert fooddx("labels", tmp_path, "--photos")[0] == 0
    assert calls == [(tmp_path, False), (tmp_path, True)]


# train, evaluate


def test_training_takes_the_arguments_of_its_module(fooddx, data_dir, tmp_path, monkeypatch):
    runs = []
    fake = types.ModuleType("models.train")
    fake.add_arguments = lambda parser: parser.add_argument("--epochs", type=int, required=True)

    def run(options, console, registry):
        runs.append((options.epochs, registry))
        if options.epochs < 0:
            raise ValueError("fewer than none")
        return tmp_path / "salad-1"

    fake.run = run
    monkeypatch.setitem(sys.modules, "models.train", fake)
    monkeypatch.setattr("models.train", fake, raising=False)
    status, out, _ = fooddx("model", "train", "--epochs", "3")
    assert (status, out) == (0, f"Next: fooddx model register {tmp_path / 'salad-1'}\n")
    assert runs == [(3, data_dir / "registry")]
    assert fooddx("model", "train", "--epochs", "-1") == (1, "", "fooddx: fewer than none\n")
    status, _, err = fooddx("model", "train")
    assert status == 2
    assert "usage: fooddx model train [-h] --epochs" in err
    assert "--epochs" in fooddx("model", "train", "--help")[1]


def test_an_evaluation_gets_arguments_that_it_understands(fooddx, data_dir, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "_run", lambda options, console: seen.append(options))
    run = write_run(tmp_path / "salad-1")
    status, _, _ = fooddx("model", "evaluate", run, "--data", tmp_path, "--out", tmp_path / "out")
    assert status == 0
    fooddx("model", "evaluate", SERVING, "--data", tmp_path, "--split", "all", "--no-baseline")
    first, second = seen
    assert (first.model, first.manifest) == (None, [run / "manifest.toml"])
    assert (first.data, first.split, first.baseline, first.out) == (tmp_path, "test", True, tmp_path / "out")
    assert (second.model, second.manifest, second.split, second.baseline) == ([SERVING], [], "all", False)
    assert first.models_dir == data_dir / "models"


@pytest.mark.parametrize(
    "arguments",
    [
        ("model",),
        ("model", "dance"),
        ("model", "register"),
        ("model", "evaluate", SERVING),
        ("model", "promote", SERVING, "--split", "train"),
        ("model", "list", "--format", "xml"),
        ("explain",),
        ("labels",),
    ],
    ids=" ".join,
)
def test_bad_usage_is_status_2_and_shows_the_usage(fooddx, arguments):
    status, out, err = fooddx(*arguments)
    assert (status, out) == (2, "")
    assert "usage: fooddx" in err
