"""The judge: several models as one, and the thresholds that make a revision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.food.assessment import Thresholds
from app.food.foods import load_foods, load_labels
from app.food.tips import TipContext, excluded_tags
from app.judge import TableJudge
from app.messages import Inference, Scored
from app.schemas import Profile
from models.heads import Head
from models.manifest import TABLES, ManifestError, load_manifest

LABELS = load_labels(TABLES / "imagenet.csv", load_foods(TABLES / "foods.csv"))
ONE = TableJudge(["imagenet-lite0"])
TWO = TableJudge(["imagenet-lite0", "imagenet-lite1"])


def sure_of(**shares: float) -> NDArray[np.float32]:
    """A softmax with these shares on the first class of each food, the rest on one that is no food."""
    probabilities = np.zeros(len(LABELS), dtype=np.float32)
    for food, share in shares.items():
        place = next(label.index for label in LABELS if label.food and label.food.name == food)
        probabilities[place] = share
    no_food = next(label.index for label in LABELS if label.food is None)
    probabilities[no_food] = 1 - probabilities.sum()
    return probabilities


def scored(*probabilities: NDArray[np.float32]) -> Scored:
    return Scored(Inference(probabilities, 0, 0), "image/jpeg", 1, 1, "", 0)


class TestOneModel:
    def test_names_itself(self):
        assert (ONE.model.name, ONE.model.version) == ("imagenet-lite0", "1")
        assert ONE.revision.startswith("imagenet-lite0@1#")

    def test_judges_by_its_manifest(self):
        assert ONE.thresholds == load_manifest("imagenet-lite0").thresholds
        found = ONE.assess(scored(sure_of(pizza=0.9)))
        assert (found.status, found.dishes[0][0]) == ("scored", "pizza")
        assert found.food_probability == pytest.approx(0.9)
        assert ONE.assess(scored(sure_of())).status == "not_food"

    def test_a_model_nobody_knows_is_refused(self):
        with pytest.raises(ManifestError, match="no-such-model"):
            TableJudge(["no-such-model"])

    def test_describes_itself(self):
        (described,) = ONE.describe().models
        assert described.name == "imagenet-lite0"
        assert described.input_size == load_manifest("imagenet-lite0").input.size
        assert described.labels == 1000
        names = [food.name for food in described.foods]
        assert names == sorted(names)
        pizza = described.foods[names.index("pizza")]
        assert (pizza.classes, pizza.score) == (("pizza",), 2)
        assert sum(pizza.components.values()) == pizza.points
        assert pizza.sources[0].startswith("100% FDC ")
        assert described.thresholds == dataclasses.asdict(ONE.thresholds)
        assert ONE.describe().serving == ONE.model

    def test_a_gate_decides_what_is_food(self, monkeypatch):
        manifest = load_manifest("imagenet-lite0")
        gated = manifest.model_copy(
            update={"heads": (Head(name="food", kind="gate", size=1), *manifest.heads)}
        )
        monkeypatch.setattr("app.judge.load_manifest", lambda *_: gated)
        judge = TableJudge(["gated"])
        pizza = sure_of(pizza=0.9)
        for gate, status in [(0.05, "not_food"), (0.95, "scored")]:
            found = judge.assess(scored(np.concatenate([np.float32([gate]), pizza])))
            assert (found.status, round(found.food_probability, 2)) == (status, gate)

    def test_a_score_head_takes_the_place_of_the_tables(self, monkeypatch):
        manifest = load_manifest("imagenet-lite0")
        taught = manifest.model_copy(
            update={"heads": (*manifest.heads, Head(name="score", kind="score", size=4))}
        )
        monkeypatch.setattr("app.judge.load_manifest", lambda *_: taught)
        own = np.float32([0, 0, 0.1, 0.2, 0.7])
        found = TableJudge(["taught"]).assess(scored(np.concatenate([sure_of(pizza=0.9), own])))
        assert found.score_probabilities == pytest.approx(own)
        assert (found.score, found.dishes[0][0], found.group) == (5, "pizza", "fast-food")


class TestSeveralModels:
    def test_join_names_versions_and_descriptions(self):
        assert (TWO.model.name, TWO.model.version) == ("imagenet-lite0+imagenet-lite1", "1+1")
        assert TWO.revision.startswith("imagenet-lite0+imagenet-lite1@1+1#")
        assert [model.name for model in TWO.describe().models] == ["imagenet-lite0", "imagenet-lite1"]
        assert [model.input_size for model in TWO.describe().models] == [224, 240]
        assert TWO.describe().serving == TWO.model

    def test_have_another_revision_in_another_order(self):
        other = TableJudge(["imagenet-lite1", "imagenet-lite0"])
        assert len({ONE.revision, TWO.revision, other.revision}) == 3

    def test_share_the_word(self):
        found = TWO.assess(scored(sure_of(pizza=0.8), sure_of(pizza=0.4, burrito=0.4)))
        assert dict(found.dishes) == pytest.approx({"pizza": 0.6, "burrito": 0.2})
        assert found.food_probability == pytest.approx(0.8)

    def test_that_agree_answer_like_one(self):
        pizza = sure_of(pizza=0.9)
        assert TWO.assess(scored(pizza, pizza)) == ONE.assess(scored(pizza))

    @pytest.mark.parametrize("answers", [0, 1, 3])
    def test_of_which_one_is_missing_or_too_many_are_a_fault(self, answers):
        with pytest.raises(ValueError, match="zip"):
            TWO.assess(scored(*[sure_of(pizza=0.9)] * answers))

    def test_keep_to_the_thresholds_of_the_first(self, monkeypatch):
        own = {"imagenet-lite0": Thresholds(food=0.2), "imagenet-lite1": Thresholds(food=0.9)}
        monkeypatch.setattr(
            "app.judge.load_manifest",
            lambda name, _: load_manifest(name).model_copy(update={"thresholds": own[name]}),
        )
        judge = TableJudge(list(own))
        assert judge.thresholds == own["imagenet-lite0"]


class TestThresholds:
    def test_that_are_not_food_enough_or_sure_enough(self):
        pizza = scored(sure_of(pizza=0.9))
        assert ONE.adjusted({"food": 0.95}).assess(pizza).status == "not_food"
        assert ONE.adjusted({"dishes": 0}).assess(pizza).dishes == ()
        mixed = scored(sure_of(pizza=0.5, cucumber=0.5))
        assert ONE.adjusted({"review": 0}).assess(mixed).status == "needs_review"
        assert ONE.adjusted({"review": 2}).assess(mixed).status == "scored"

    def test_adjusting_leaves_the_judge_as_it_was(self):
        before = ONE.thresholds
        assert ONE.adjusted({"food": 0.9}).thresholds == dataclasses.replace(before, food=0.9)
        assert ONE.thresholds == before

    def test_nothing_adjusted_is_the_same_revision(self):
        assert ONE.adjusted({}).revision == ONE.revision == TableJudge(["imagenet-lite0"]).revision

    def test_adjusting_starts_from_the_manifest_each_time(self):
        assert ONE.adjusted({"food": 0.9}).adjusted({}).revision == ONE.revision

    @pytest.mark.parametrize("field", dataclasses.fields(Thresholds), ids=lambda field: field.name)
    def test_each_of_them_makes_another_revision(self, field):
        judge = ONE.adjusted(
            {field.name: {"food": 0.33, "review": 0.5, "dish": 0.2, "dishes": 2}[field.name]}
        )
        assert judge.revision != ONE.revision
        assert judge.model == ONE.model
        assert judge.describe().models[0].thresholds == dataclasses.asdict(judge.thresholds)

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_revisions_are_equal_exactly_when_thresholds_are(self, one: float, two: float):
        judges = ONE.adjusted({"food": one}), ONE.adjusted({"food": two})
        assert (judges[0].revision == judges[1].revision) == (one == two)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"fod": 0.5},
            {"food": 1.5},
            {"food": -0.1},
            {"food": float("nan")},
            {"food": "0.5"},
            {"review": 2.1},
            {"dish": 0},
            {"dishes": -1},
            {"dishes": 2.5},
            {"dishes": None},
        ],
    )
    def test_that_make_no_sense_are_refused(self, wrong):
        with pytest.raises((TypeError, ValueError)):
            ONE.adjusted(wrong)


class TestTips:
    CONTEXT = TipContext(2, "fast-food", frozenset({"high-salt"}), frozenset({"gluten", "dairy"}))

    def test_there_are_always_two_to_choose_from(self):
        profile = Profile(diet=("vegan", "gluten-free"), avoid=("soy", "tree-nut", "peanut", "sesame"))
        tips = ONE.tips(self.CONTEXT, profile, "seed")
        assert len({tip.id for tip in tips}) >= 2
        assert all(tip.suggests.isdisjoint(excluded_tags(profile)) for tip in tips)

    def test_the_same_seed_gives_the_same_tips_and_another_seed_others(self):
        def first(seed: str) -> str:
            return ONE.tips(self.CONTEXT, Profile(), seed)[0].id

        assert first("one") == first("one")
        assert len({first(str(number)) for number in range(50)}) > 1
