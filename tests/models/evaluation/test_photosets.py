import numpy as np

from app.food.assessment import Thresholds, assess
from models.evaluation.photosets import Seen, gate_figures, imagenet_figures, raw_food_figures
from models.manifest import load_catalogue, load_manifest

CATALOGUE = load_catalogue(load_manifest("imagenet-lite0"))
TENCH, STRAWBERRY, BROCCOLI = 0, 949, 937


def seen(truth, **mass):
    """A photo on which the model put ``mass``: class numbers after an underscore."""
    labels = np.zeros(1000, np.float32)
    for name, value in mass.items():
        labels[int(name[1:])] = value
    return Seen(str(truth), labels, assess(labels, CATALOGUE, Thresholds()))


def test_imagenet_figures_count_top_1_top_5_and_false_alarms():
    photos = [
        seen(TENCH, _0=1.0),
        seen(TENCH, _1=0.9, _0=0.1),  # in the top 5 only
        seen(TENCH, _949=1.0),  # taken for food
        seen(STRAWBERRY, _949=1.0),
    ]
    figures = imagenet_figures(photos, CATALOGUE)
    assert figures["photos"] == 4
    assert (figures["top1"], figures["non-food photos"], figures["non-food taken for food"]) == (
        0.5,
        3,
        1 / 3,
    )


def test_raw_food_figures_tell_the_gate_from_the_group():
    photos = [
        seen("Fruits", _949=1.0),
        seen("Fruits", _937=1.0),  # passes, in the wrong group
        seen("Fruits", _0=1.0),  # does not pass
        seen("Marine Fish", _0=1.0),  # not asked for its group
    ]
    figures = raw_food_figures(photos, CATALOGUE)
    assert figures["gate recall"] == 0.5
    assert figures["fruit photos"] == 3
    assert figures["fruit gate recall"] == 2 / 3
    assert figures["fruit in its group, of all"] == 1 / 3
    assert figures["fruit in its group, past the gate"] == 0.5
    assert figures["vegetable gate recall"] is None
    assert figures["fruit and vegetables scored 5"] == 2


def test_gate_figures_count_both_kinds_of_mistake():
    photos = [
        seen("food", _949=1.0),
        seen("food", _0=1.0),
        seen("not_food", _937=1.0),
        seen("not_food", _0=1.0),
        seen("not_food", _1=1.0),
    ]
    figures = gate_figures(photos, CATALOGUE)
    assert (figures["gate recall"], figures["taken for food"]) == (0.5, 1 / 3)
    assert figures["to review, past the gate"] == 0
