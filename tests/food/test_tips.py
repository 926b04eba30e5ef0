"""The tips: a table fit for everybody, and a choice that keeps to what a person eats."""

import csv
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.food.foods import FLAGS, GROUPS, TAGS
from app.food.tips import COLUMNS, THIS_FOOD, Tip, TipContext, excluded_tags, load_tips, rank
from app.schemas import Avoid, Diet, Goal, Profile

TABLE = Path(__file__).parents[2] / "models" / "tables" / "tips.csv"
TIPS = load_tips(TABLE)

EATS_NOTHING_LISTED = Profile(diet=get_args(Diet), avoid=get_args(Avoid))


def subsets(words: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(words), unique=True).map(tuple)


profiles = st.builds(
    Profile,
    goals=subsets(get_args(Goal)),
    diet=subsets(get_args(Diet)),
    avoid=subsets(get_args(Avoid)),
)
contexts = st.builds(
    TipContext,
    score=st.sampled_from([None, 1, 2, 3, 4, 5]),
    group=st.sampled_from([None, *GROUPS]),
    flags=subsets(FLAGS).map(frozenset),
    contains=subsets(TAGS).map(frozenset),
)
seeds = st.integers() | st.text()


class TestTheTable:
    def test_is_large_and_well_sourced(self):
        assert len(TIPS) >= 200
        assert len({tip.source for tip in TIPS}) >= 15
        assert len({tip.text for tip in TIPS}) == len(TIPS)
        for source in {tip.source for tip in TIPS}:
            assert len({tip.source_url for tip in TIPS if tip.source == source}) == 1, source

    def test_every_text_is_a_sentence_or_two_and_every_source_has_a_year(self):
        for tip in TIPS:
            assert re.fullmatch(r"[A-Z].*[.!?]", tip.text), tip
            assert len(re.findall(r"[.!?](?= |$)", tip.text)) <= 3, tip
            assert re.search(r", (19|20)\d\d$", tip.source), tip

    def test_no_text_blames_or_promises(self):
        unkind = r"bad|guilty?|obese|overweight|never|forbidden|junk|cheat|must"
        medical = r"cures?|prevents?|treats?|lowers your|disease|medicines?|insulin|\d+ ?(mg|kcal|calories)"
        found = [tip.id for tip in TIPS if re.search(rf"\b({unkind}|{medical})\b", tip.text, re.IGNORECASE)]
        assert not found

    @pytest.mark.parametrize("group", GROUPS)
    def test_every_group_has_three_tips_that_anybody_may_get(self, group: str):
        found = [tip for tip in TIPS if group in tip.groups and not (tip.flags or tip.goals)]
        assert sum(tip.suggests <= {THIS_FOOD} for tip in found) >= 3

    @pytest.mark.parametrize("flag", FLAGS)
    def test_every_flag_has_two_tips_that_anybody_may_get(self, flag: str):
        found = [tip for tip in TIPS if flag in tip.flags and not (tip.groups or tip.goals)]
        assert sum(tip.suggests <= {THIS_FOOD} for tip in found) >= 2

    @pytest.mark.parametrize("score", range(1, 6))
    def test_every_score_has_three_tips_that_anybody_may_get(self, score: int):
        assert sum(score in tip.scores and tip.suggests <= {THIS_FOOD} for tip in TIPS) >= 3

    @pytest.mark.parametrize("goal", get_args(Goal))
    def test_every_goal_has_four_tips_that_anybody_may_get_for_any_photo(self, goal: str):
        found = [tip for tip in TIPS if goal in tip.goals and not (tip.scores or tip.groups or tip.flags)]
        assert sum(not tip.suggests for tip in found) >= 4

    def test_ten_tips_are_for_everybody_even_with_no_idea_of_the_photo(self):
        assert sum(tip.suits_everybody for tip in TIPS) >= 10


MEAT = "meat beef pork poultry"
# Words of a text, and the tags they need. Tags may come more than once.
NEEDS = (
    ("yogh?urts? milk kefir cheeses? butter cream creamy dairy ghee feta mozzarella", "dairy"),
    ("fish salmon tuna sardines? mackerel herring trout cod anchovy anchovies", "fish"),
    ("prawns? shrimps? crabs? lobsters? shellfish seafood", "crustaceans"),
    ("mussels? clams? oysters? squid shellfish seafood", "molluscs"),
    ("eggs? omelettes? mayonnaise mayo meringues?", "egg"),
    ("nuts", "tree-nut peanut"),
    ("almonds? walnuts? hazelnuts? cashews? pistachios? pecans? marzipan", "tree-nut"),
    ("peanuts?", "peanut"),
    ("tofu soya? edamame tempeh miso", "soy"),
    ("hummus tahini sesame (?<!pumpkin.or.sunflower.)seeds", "sesame"),
    ("bread toast loaf loaves flour batter pasta noodles? couscous bulgur barley oats? rye", "gluten"),
    ("whole-?meal whole.?grains? cereals? crackers? croutons? granola muesli porridge wheat spelt", "gluten"),
    ("chicken turkey duck", "poultry"),
    ("meats? mince", MEAT),
    ("beef steaks?", "beef"),
    ("pork ham bacon salami chorizo sausages?", "pork"),
    ("honey", "honey"),
    ("wine", "alcohol sulphites"),
    ("beer", "alcohol gluten"),
    ("alcohol alcoholic", "alcohol"),
    ("mustard curry vinaigrette", "mustard"),
    ("celery celeriac vegetable.soup vegetable.sticks stock", "celery"),
    ("dried.fruits? dried.apricots raisins vinegar", "sulphites"),
    ("pickles? gherkins?", "mustard sulphites"),
    ("lupins? pulses", "lupin"),
    ("(good|great|strong).choice well.chosen lovely enjoy.(it|this) of.this have.again", THIS_FOOD),
)
# Read one by one: here the word names what to leave out, or another food.
REVIEWED = {
    "tomato-in-place-of-creamy": {"creamy"},
    "blend-to-thicken": {"cream"},
    "fish-without-batter": {"batter"},
    "just-nuts-in-the-jar": {"butter"},
}


def untagged(tip: Tip) -> set[str]:
    """The food words of a tip's text whose tags it lacks."""
    return {
        found.group().lower()
        for words, tags in NEEDS
        for found in re.finditer(rf"\b({'|'.join(words.split())})\b", tip.text, re.IGNORECASE)
        if not tip.suggests.issuperset(tags.split())
    }


class TestSuggests:
    def test_holds_the_tags_of_every_food_in_the_text(self):
        assert {tip.id: words for tip in TIPS if (words := untagged(tip))} == REVIEWED

    def test_unnamed_meat_is_every_kind_of_meat(self):
        assert all(tip.suggests.issuperset(MEAT.split()) for tip in TIPS if "meat" in tip.suggests)

    def test_dairy_is_not_suggested_where_there_is_usually_meat(self):
        with_meat = {"meat", "mixed-dish", "fast-food", "sandwich", "soup"}
        assert not [tip.id for tip in TIPS if "dairy" in tip.suggests and tip.groups & with_meat]


class TestExcludedTags:
    @pytest.mark.parametrize(
        ("profile", "tags"),
        [
            (Profile(), ""),
            (Profile(diet=("vegetarian",)), "meat beef pork poultry fish crustaceans molluscs"),
            (
                Profile(diet=("vegan",)),
                "meat beef pork poultry fish crustaceans molluscs dairy egg honey",
            ),
            (Profile(diet=("pescatarian",)), "meat beef pork poultry"),
            (Profile(diet=("halal",)), "pork alcohol"),
            (Profile(diet=("kosher",)), "pork crustaceans molluscs"),
            (Profile(diet=("gluten-free",)), "gluten"),
            (Profile(diet=("lactose-free",)), "dairy"),
            (Profile(avoid=("meat",)), "meat beef pork poultry"),
            (Profile(avoid=("beef",)), "beef"),
            (Profile(diet=("halal", "gluten-free"), avoid=("peanut",)), "pork alcohol gluten peanut"),
        ],
    )
    def test_follows_from_diet_and_avoid(self, profile: Profile, tags: str):
        assert excluded_tags(profile) == set(tags.split())

    def test_every_word_a_profile_may_hold_excludes_known_tags(self):
        for diet in get_args(Diet):
            assert excluded_tags(Profile(diet=(diet,))) <= set(TAGS)
        for word in get_args(Avoid):
            assert {word} <= excluded_tags(Profile(avoid=(word,))) <= set(TAGS)


class TestRank:
    @given(profiles, contexts, seeds)
    def test_every_tip_is_true_of_the_photo_and_allowed_to_the_person(self, profile, context, seed):
        excluded = excluded_tags(profile)
        for tip in rank(TIPS, context, profile, seed):
            assert not tip.suggests & excluded
            assert not (THIS_FOOD in tip.suggests and context.contains & excluded)
            assert not tip.goals or tip.goals & set(profile.goals)
            assert not tip.groups or context.group in tip.groups
            assert not tip.scores or context.score in tip.scores
            assert tip.flags <= context.flags

    @given(profiles, contexts, seeds)
    def test_there_are_two_at_least_and_no_tip_comes_twice(self, profile, context, seed):
        first, second, *rest = [tip.id for tip in rank(TIPS, context, profile, seed)]
        assert first != second
        assert len({first, second, *rest}) == 2 + len(rest)

    @given(profiles, contexts, seeds)
    def test_the_most_specific_come_first(self, profile, context, seed):
        found = [tip.specificity for tip in rank(TIPS, context, profile, seed)]
        assert found == sorted(found, reverse=True)

    @given(profiles, contexts, seeds, st.randoms(use_true_random=False))
    def test_depends_on_the_seed_and_not_on_the_order_of_the_table(self, profile, context, seed, random):
        shuffled = random.sample(TIPS, len(TIPS))
        assert rank(shuffled, context, profile, seed) == rank(TIPS, context, profile, seed)

    @pytest.mark.parametrize("group", [None, *GROUPS])
    @pytest.mark.parametrize("score", [None, 1, 2, 3, 4, 5])
    def test_somebody_who_eats_nothing_on_the_list_still_gets_ten(self, group: str | None, score: int | None):
        context = TipContext(score, group, contains=frozenset(TAGS))
        assert len(rank(TIPS, context, EATS_NOTHING_LISTED, "image")) >= 10

    @pytest.mark.parametrize("profile", [Profile(), EATS_NOTHING_LISTED])
    @pytest.mark.parametrize("group", [None, *GROUPS])
    def test_the_same_dish_every_day_brings_different_tips(self, group: str | None, profile: Profile):
        for goals in ((), *((goal,) for goal in get_args(Goal))):
            person = profile.model_copy(update={"goals": goals})
            for flags in (frozenset(), *(frozenset({flag}) for flag in FLAGS)):
                for contains in (frozenset(), frozenset(TAGS)):
                    context = TipContext(3, group, flags, contains)
                    firsts = {rank(TIPS, context, person, day)[0].id for day in range(16)}
                    assert len(firsts) >= 2, (context, goals)

    def test_a_goal_and_the_food_outrank_either_alone(self):
        context = TipContext(2, "fast-food", frozenset({"high-salt"}))
        best = rank(TIPS, context, Profile(goals=("less-salt",)), "image")[0]
        assert "less-salt" in best.goals
        assert best.flags or best.groups

    def test_praise_is_kept_back_when_the_food_may_hold_what_the_person_avoids(self):
        profile, praise = Profile(avoid=("peanut",)), "make-it-easy-to-repeat"
        noodles = TipContext(5, "mixed-dish", contains=frozenset({"peanut"}))
        assert praise not in {tip.id for tip in rank(TIPS, noodles, profile, "image")}
        assert praise in {tip.id for tip in rank(TIPS, noodles, Profile(), "image")}


class TestLoading:
    SOURCE = ("A guideline, 2020", "https://example.org")
    GOOD = ("a-tip", "Eat a pear.", *SOURCE, "1 2", "fruit", "", "weight", "")
    EVERYBODY = (("tip-1", "Eat a plum.", *SOURCE, *[""] * 5), ("tip-2", "Eat an apple.", *SOURCE, *[""] * 5))

    def write(self, folder: Path, *rows: tuple[str, ...], heading: tuple[str, ...] = COLUMNS) -> Path:
        path = folder / "tips.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([heading, *rows])
        return path

    def test_reads_every_column(self, tmp_path: Path):
        *_, tip = load_tips(self.write(tmp_path, *self.EVERYBODY, self.GOOD))
        assert tip == Tip(
            *self.GOOD[:4],
            scores=frozenset({1, 2}),
            groups=frozenset({"fruit"}),
            flags=frozenset(),
            goals=frozenset({"weight"}),
            suggests=frozenset(),
        )

    @pytest.mark.parametrize(
        ("column", "cell", "says"),
        [
            ("id", "A Tip", "not a lower-case slug"),
            ("id", "", "not a lower-case slug"),
            ("id", "tip-1", "'tip-1' is there twice"),
            ("text", "", "1 to 200 characters"),
            ("text", " Eat a pear.", "no space around"),
            ("text", "x" * 201, "1 to 200 characters"),
            ("source", " ", "source is missing"),
            ("source_url", "http://example.org", "https://"),
            ("scores", "1 6", "scores has unknown 6"),
            ("scores", "1,2", "scores has unknown 1,2"),
            ("groups", "fruits", "groups has unknown fruits"),
            ("flags", "high-sugar sweet", "flags has unknown sweet"),
            ("goals", "health", "goals has unknown health"),
            ("suggests", "nuts", "suggests has unknown nuts"),
        ],
    )
    def test_names_the_file_and_line_of_a_mistake(self, tmp_path: Path, column: str, cell: str, says: str):
        bad = tuple(cell if name == column else good for name, good in zip(COLUMNS, self.GOOD, strict=True))
        with pytest.raises(ValueError, match=rf"^tips\.csv:4: .*{re.escape(says)}"):
            load_tips(self.write(tmp_path, *self.EVERYBODY, bad))

    def test_refuses_a_row_with_a_cell_too_few(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"^tips\.csv:4: 8 cells instead of 9"):
            load_tips(self.write(tmp_path, *self.EVERYBODY, self.GOOD[:-1]))

    def test_refuses_another_heading(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"^tips\.csv:1: the first line must be id,"):
            load_tips(self.write(tmp_path, *self.EVERYBODY, heading=COLUMNS[::-1]))

    def test_refuses_an_empty_file(self, tmp_path: Path):
        (tmp_path / "tips.csv").touch()
        with pytest.raises(ValueError, match=r"^tips\.csv:0: the first line must be"):
            load_tips(tmp_path / "tips.csv")

    def test_refuses_text_that_is_not_utf_8(self, tmp_path: Path):
        (tmp_path / "tips.csv").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"^tips\.csv:0: .*utf-8"):
            load_tips(tmp_path / "tips.csv")

    def test_refuses_an_unclosed_quote(self, tmp_path: Path):
        path = self.write(tmp_path, *self.EVERYBODY)
        with path.open("a", encoding="utf-8") as file:
            file.write('"a-tip')
        with pytest.raises(ValueError, match=r"^tips\.csv:4: unexpected end"):
            load_tips(path)

    def test_refuses_a_table_that_leaves_somebody_with_one_tip(self, tmp_path: Path):
        with pytest.raises(ValueError, match="at least two tips"):
            load_tips(self.write(tmp_path, self.EVERYBODY[0], self.GOOD))
