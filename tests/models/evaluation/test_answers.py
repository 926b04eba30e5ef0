import numpy as np
import pytest

from models.evaluation import answers as module
from models.evaluation.answers import Subject, ask
from models.heads import Head
from models.manifest import load_manifest
from tests.models.evaluation.colours import CLASSES, ColourEngine, make_artefacts, make_photos

LITE0, LITE2 = load_manifest("imagenet-lite0"), load_manifest("imagenet-lite2")


@pytest.fixture
def subject(monkeypatch, tmp_path):
    """Makes a subject whose engine is ``engine(manifest)``."""

    def make(manifest=LITE0, engine=ColourEngine):
        monkeypatch.setattr(module, "create_engine", lambda _device, given, _folder, threads: engine(given))
        return Subject(manifest, make_artefacts(tmp_path / manifest.folder), "cpu")

    return make


def files(folder):
    return [path.read_bytes() for path in sorted(folder.rglob("*.png"))]


def test_models_of_several_sizes_answer_in_order_and_what_is_no_photo_is_left_out(subject, tmp_path):
    make_photos(tmp_path / "photos", 12)
    subjects = [subject(LITE0), subject(LITE2)]
    photos = files(tmp_path / "photos")
    kept, found = ask(subjects, [*photos[:3], b"no photo", *photos[3:], photos[0][:60]])
    assert kept == [0, 1, 2, *range(4, 37)]
    for one, given in zip(subjects, found, strict=True):
        assert one.engine.batches == [31, 5]
        likeliest = one.answers(given).classes.argmax(axis=1)
        names = ("broccoli", "pizza", "strawberry")  # as the folders are sorted
        assert likeliest.tolist() == [CLASSES[name] for name in names for _ in range(12)]
    assert ask(subjects, []) == ([], [[], []])


def test_arrays_say_what_the_service_would_answer(subject, tmp_path):
    make_photos(tmp_path / "photos", 1)
    one = subject(engine=lambda manifest: ColourEngine(manifest, {"pizza": "no food"}))
    _, (given,) = ask([one], files(tmp_path / "photos"))
    found = one.answers(given)
    broccoli, fish, strawberry = range(3)
    assert found.passed.tolist() == [True, False, True]
    assert found.scored.tolist() == [True, False, True]
    assert found.foods[found.shares[broccoli].argmax()].id == "broccoli"
    assert found.scores[[broccoli, strawberry]].argmax(axis=1).tolist() == [4, 4]
    assert found.p_food[fish] < 0.01
    assert found.scores[fish].sum() == pytest.approx(1)  # a distribution all the same
    assert found[np.array([strawberry])].p_food.tolist() == [found.p_food[strawberry]]


def test_a_model_that_saw_no_food_at_all_is_in_doubt_between_all_scores(subject):
    class Fish(ColourEngine):
        def predict(self, pixels):
            return np.tile(np.eye(1, 1000, dtype=np.float32), (len(pixels), 1))

    one = subject(engine=Fish)
    found = one.answers(list(one.answer(np.zeros((1, 224, 224, 3), np.uint8))))
    assert found.scores.tolist() == [[0.2] * 5]
    assert not found.shares.any()


def test_heads_for_gate_and_score_are_read(subject):
    heads = (
        Head(name="food", kind="gate", size=1),
        *LITE0.heads,
        Head(name="score", kind="score", size=4),
    )

    class Three(ColourEngine):
        def predict(self, pixels):
            classes = super().predict(pixels)
            gate = np.full((len(pixels), 1), 0.75, np.float32)
            return np.concatenate([gate, classes, np.tile(np.float32([0, 1, 0, 0, 0]), (len(pixels), 1))], 1)

    one = subject(LITE0.model_copy(update={"heads": heads}), Three)
    found = one.answers(list(one.answer(np.full((2, 224, 224, 3), 30, np.uint8))))
    assert found.p_food.tolist() == [0.75, 0.75]
    assert found.scores.tolist() == [[0, 1, 0, 0, 0]] * 2


def test_speed_counts_size_loading_and_batches(subject):
    one = subject()
    found = one.speed()
    assert found["MB on disk"] == 1
    assert {1, 8, 32} == set(one.engine.batches)
    assert all(value >= 0 for value in found.values())
