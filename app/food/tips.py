"""Tips: what this person could do next time, picked from a table that a nutritionist can edit.

The table is ``models/tables/tips.csv``; ``TIPS.md`` beside it explains the columns. Two kinds of column
decide whether a tip may be shown. Conditions say what it is true of: the photo (scores, groups, flags) and
the person (goals). ``suggests`` names every restricted food in its words, and says "this" where they ask
for the food in the photo itself, so that no tip asks anybody to eat what their profile rules out.
Everything here is a function of its arguments: no clock, no store, no global random state.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, get_args

from app.food.foods import FLAGS, GROUPS, KINDS_OF_MEAT, SLUG, TAGS, TableError
from app.schemas import Diet, Goal, Profile

THIS_FOOD: Final = "this"
"""The word of ``suggests`` for the food in the photo, whatever it is."""

COLUMNS: Final = ("id", "text", "source", "source_url", "scores", "groups", "flags", "goals", "suggests")
MAX_TEXT_CHARS: Final = 200

_MEAT: Final = KINDS_OF_MEAT | {"meat"}
_ANIMAL: Final = _MEAT | {"fish", "crustaceans", "molluscs"}
_DIET_EXCLUDES: Final[Mapping[Diet, frozenset[str]]] = {
    "vegetarian": _ANIMAL,
    "vegan": _ANIMAL | {"dairy", "egg", "honey"},
    "pescatarian": _MEAT,
    "halal": frozenset({"pork", "alcohol"}),
    "kosher": frozenset({"pork", "crustaceans", "molluscs"}),
    "gluten-free": frozenset({"gluten"}),
    "lactose-free": frozenset({"dairy"}),
}


@dataclass(frozen=True, slots=True)
class Tip:
    """A row of the table. An empty set is no condition; ``suggests`` is what its words ask to eat."""

    id: str
    text: str
    source: str
    source_url: str
    scores: frozenset[int]
    groups: frozenset[str]
    flags: frozenset[str]
    goals: frozenset[str]
    suggests: frozenset[str]

    @property
    def suits_everybody(self) -> bool:
        """Whether no photo and no profile can rule this tip out."""
        return not (self.scores or self.groups or self.flags or self.goals or self.suggests)

    @property
    def specificity(self) -> int:
        """0 to 2: one for serving a goal, one for speaking of this food, be it by its group or its nutrients.

        Coarse on purpose: finer steps would leave one tip at the top, and the same dish would always get it.
        """
        return bool(self.goals) + bool(self.groups or self.flags)


@dataclass(frozen=True, slots=True)
class TipContext:
    """What is known of the photo, perhaps nothing. ``contains`` are the tags of the foods it may show."""

    score: int | None = None
    group: str | None = None
    flags: frozenset[str] = frozenset()
    contains: frozenset[str] = frozenset()


def load_tips(path: Path) -> tuple[Tip, ...]:
    """The tips of the CSV table at ``path``, in its order.

    Raises:
        TableError: a line is not exactly as TIPS.md says, or fewer than two tips suit any photo and any
            profile, since `rank` owes everybody two.
        OSError: the file cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, strict=True)
        try:
            tips = tuple(_parse_all(rows))
        except (ValueError, csv.Error) as error:
            raise TableError(f"{path.name}:{rows.line_num}: {error}") from error
    if sum(tip.suits_everybody for tip in tips) < 2:
        raise TableError(f"{path.name}:1: at least two tips must have no conditions and suggest nothing")
    return tips


def excluded_tags(profile: Profile) -> frozenset[str]:
    """Every tag this person does not eat: what they avoid and what their diets rule out."""
    tags = frozenset[str](profile.avoid).union(*(_DIET_EXCLUDES[diet] for diet in profile.diet))
    return tags | _MEAT if "meat" in tags else tags


def rank(tips: Iterable[Tip], context: TipContext, profile: Profile, seed: int | str) -> tuple[Tip, ...]:
    """Every tip this person may be given for this photo, best first.

    The more specific a tip, the earlier it comes; equals are shuffled by ``seed`` (an image id, say), and
    the order of the table plays no part. With a table from `load_tips` there are at least two, and they
    differ: a caller who finds that the first was shown last time takes the second.
    """
    excluded = excluded_tags(profile)
    if not excluded.isdisjoint(context.contains):
        excluded |= {THIS_FOOD}
    score, group, flags, goals = context.score, context.group, context.flags, frozenset(profile.goals)
    candidates = [
        tip
        for tip in tips
        if (not tip.groups or group in tip.groups)
        and (not tip.goals or not tip.goals.isdisjoint(goals))
        and tip.flags <= flags
        and (not tip.scores or score in tip.scores)
        and tip.suggests.isdisjoint(excluded)
    ]

    def order(tip: Tip) -> tuple[int, bytes]:
        return -tip.specificity, blake2b(f"{seed}/{tip.id}".encode(), digest_size=8).digest()

    return tuple(sorted(candidates, key=order))


def _parse_all(rows: Iterator[list[str]]) -> Iterator[Tip]:
    """The checked rows below the heading. Raises ValueError at the first row that is wrong."""
    if tuple(next(rows, ())) != COLUMNS:
        raise ValueError(f"the first line must be {','.join(COLUMNS)}")
    seen: set[str] = set()
    for tip in map(_parse, rows):
        if tip.id in seen:
            raise ValueError(f"id {tip.id!r} is there twice")
        seen.add(tip.id)
        yield tip


def _parse(cells: list[str]) -> Tip:
    """One row of the table, checked. Raises ValueError saying what is wrong with it."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    if not SLUG.fullmatch(row["id"]):
        raise ValueError(f"id {row['id']!r} is not a lower-case slug")
    if not 1 <= len(row["text"].strip()) == len(row["text"]) <= MAX_TEXT_CHARS:
        raise ValueError(f"the text must have 1 to {MAX_TEXT_CHARS} characters, with no space around them")
    if not row["source"].strip():
        raise ValueError("the source is missing")
    if not row["source_url"].startswith("https://"):
        raise ValueError(f"source_url {row['source_url']!r} does not start with https://")
    return Tip(
        id=row["id"],
        text=row["text"],
        source=row["source"],
        source_url=row["source_url"],
        scores=frozenset(map(int, _words(row, "scores", set("12345")))),
        groups=_words(row, "groups", set(GROUPS)),
        flags=_words(row, "flags", set(FLAGS)),
        goals=_words(row, "goals", set(get_args(Goal))),
        suggests=_words(row, "suggests", {*TAGS, THIS_FOOD}),
    )


def _words(row: Mapping[str, str], column: str, known: Set[str]) -> frozenset[str]:
    words = frozenset(row[column].split())
    if unknown := words - known:
        raise ValueError(f"{column} has unknown {', '.join(sorted(unknown))}")
    return words
