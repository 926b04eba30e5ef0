import json

import numpy as np
import pytest

from models import evaluate
from models.evaluate import compare
from models.evaluation import answers
from models.manifest import load_manifest
from models.photos import Photo
from models.training.dataset import DatasetError
from tests.models.evaluation.colours import CLASSES, ColourEngine, make_artefacts, make_photos

GOOD, OLD = load_manifest("imagenet-lite1"), load_manifest("imagenet-lite0")


@pytest.fixture
def mistakes(monkeypatch):
    """Which class each model takes for which; nothing is built, and engines look at colours alone."""
    found = {}

    def create(_device, manifest, _artefacts, threads):
        return ColourEngine(manifest, found.get(manifest.name, {}))

    def built(manifest, folder, _progress=None):
        return make_artefacts(folder / manifest.folder)

    monkeypatch.setattr(answers, "create_engine", create)
    monkeypatch.setattr(answers, "BATCHES", (1,))
    monkeypatch.setattr("models.evaluation.report.report", lambda record: ", ".join(record["models"]))
    monkeypatch.setattr(evaluate, "build", built)
    monkeypatch.setattr(evaluate, "build_apart", lambda manifests, folder: built(manifests[0], folder))
    return found


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder)
    return folder


def compared(candidate, serving, photos):
    return compare(candidate, serving, photos, split="all", models_dir=photos.parent / "models")


def test_the_model_that_scores_better_wins_whichever_way_round(mistakes, photos):
    mistakes[OLD.name] = {"pizza": "broccoli"}
    better, worse = compared(GOOD, OLD, photos), compared(OLD, GOOD, photos)
    assert better.photos == 12
    assert (better.candidate["food top-1"], better.serving["food top-1"]) == (1, 0.6667)
    assert better.candidate["score error"] < better.serving["score error"]
    assert better.difference == pytest.approx(-worse.difference)
    assert better.interval[0] < better.difference < better.interval[1] < 0
    assert (better.worse, worse.worse) == (False, True)


def test_of_equal_scores_the_one_that_names_fewer_foods_is_worse(mistakes, photos):
    mistakes[OLD.name] = {"strawberry": "broccoli", "broccoli": "strawberry"}  # both have five stars
    assert compared(OLD, GOOD, photos).difference == 0
    assert compared(OLD, GOOD, photos).worse
    assert not compared(GOOD, OLD, photos).worse


@pytest.mark.parametrize(
    ("recall", "alarms", "worse"),
    [(0.99, 0.02, False), (0.94, 0.02, True), (0.96, 0.05, False), (0.99, 0.2, True), (1.0, None, False)],
)
def test_a_gate_may_be_a_little_worse_and_no_more(recall, alarms, worse):
    serving = {"gate recall": 0.99, "false alarms": 0.04}
    candidate = {"gate recall": recall - 0.001, "false alarms": alarms}
    assert evaluate.gate_is_worse(candidate, serving) is worse


def test_a_model_is_not_worse_than_itself(mistakes, photos):
    steps = []
    found = compare(OLD, OLD, photos, split="all", models_dir=photos.parent / "models", progress=steps.append)
    assert (found.difference, found.interval, found.worse) == (0, (0, 0), False)
    assert found.candidate == found.serving
    assert len(steps) == 4


def test_without_a_known_score_there_is_nothing_to_compare(mistakes, tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder, classes=["pizza"])
    (folder / "pizza").rename(folder / "food")
    with pytest.raises(DatasetError, match="score"):
        compared(GOOD, OLD, folder)


def test_the_command_measures_everything_on_data(mistakes, photos, tmp_path, capsys):
    mistakes["imagenet-lite0"] = {"pizza": "broccoli"}
    out = tmp_path / "out"
    status = evaluate.main([
        "--data", str(photos), "--split", "all", "--model", "imagenet-lite1", "--manifest", str(OLD.source),
        "--models-dir", str(tmp_path / "models"), "--out", str(out),
    ])  # fmt: skip
    assert status == 0
    record = json.loads((out / "evaluation.json").read_text())
    assert record["data"]["groups"] == {"fruit": 4, "fast-food": 4, "vegetable": 4}
    assert record["command"].startswith("python -m models.evaluate")
    one, two = record["models"].values()
    assert (one["overall"]["food top-1"], two["overall"]["food top-1"]) == (1, 0.6667)
    assert two["against the first"]["score error"] > 0
    assert one["robustness"]["none"] == {
        "photos": 12, "food top-1": 1, "score within one": 1, "gate recall": 1,
    }  # fmt: skip
    assert two["worst confusions"][0]["truth"] == "pizza"
    assert one["speed"]["MB on disk"] == 1
    said = capsys.readouterr().out
    assert "No linear baseline" in said  # of all photos, it would have learnt some
    assert "less the first model" in said
    assert (out / "report.html").read_text() == "imagenet-lite1, imagenet-lite0"


def test_the_baseline_is_trained_on_the_datas_own_photos(mistakes, photos, tmp_path, monkeypatch, capsys):
    asked = []

    def baseline(*arguments):
        asked.append(arguments)
        return GOOD

    monkeypatch.setattr(evaluate, "train_baseline", baseline)
    monkeypatch.setattr("models.evaluation.truth.split_of", lambda _: "test")
    monkeypatch.setattr("models.evaluation.measure.CORRUPTIONS", ())
    out = tmp_path / "out"
    arguments = ["--data", str(photos), "--model", OLD.name, "--out", str(out), "--models-dir", str(out)]
    assert evaluate.main(arguments) == 0
    record = json.loads((out / "evaluation.json").read_text())
    assert [*record["models"]] == ["imagenet-lite0", "linear baseline"]
    assert asked[0][:3] == (photos, record["data"]["sha256"], out)

    def too_few(*_):
        raise DatasetError("too few photos [sic]")

    monkeypatch.setattr(evaluate, "train_baseline", too_few)
    assert evaluate.main(arguments) == 0
    assert "No linear baseline: too few photos [sic]" in capsys.readouterr().out
    assert evaluate.main([*arguments, "--no-baseline"]) == 0
    assert "linear baseline" not in capsys.readouterr().out


def test_without_data_the_photos_come_from_packages(mistakes, photos, tmp_path, monkeypatch, capsys):
    file = (photos / "pizza" / "0.png").read_bytes()
    monkeypatch.setattr(
        evaluate,
        "fetch_photos",
        lambda *_: {"imagenet": [Photo("a", file, str(CLASSES["pizza"])), Photo("b", file, "0")]},
    )
    monkeypatch.setattr(evaluate, "available", lambda: (OLD.name, GOOD.name))
    out = tmp_path / "out"
    assert evaluate.main(["--out", str(out), "--models-dir", str(tmp_path)]) == 0
    record = json.loads((out / "evaluation.json").read_text())
    assert [*record["models"]] == [OLD.name, GOOD.name]
    assert record["models"][OLD.name]["imagenet"]["top1"] == 0.5
    assert not (out / "report.html").exists()
    assert "non-food taken for food" in capsys.readouterr().out


def test_what_cannot_be_evaluated_ends_in_a_sentence(mistakes, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert evaluate.main(["--data", str(tmp_path / "nowhere"), "--model", "imagenet-lite0", *out]) == 1
    assert "does not exist" in capsys.readouterr().out
    assert evaluate.main(["--model", "no-such-model", *out]) == 1
    assert "no-such-model" in capsys.readouterr().out


def test_a_photo_that_cannot_be_decoded_is_counted_apart(mistakes, photos, tmp_path):
    whole = (photos / "pizza" / "0.png").read_bytes()
    (photos / "pizza" / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = compared(GOOD, OLD, photos)
    assert found.candidate["photos"] == 12
    assert np.isfinite(found.difference)
