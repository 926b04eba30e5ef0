"""What goes over the wire: requests, results, and the pages made of them."""

from __future__ import annotations

import unicodedata
from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Goal = Literal["less-sugar", "less-salt", "more-fibre", "weight", "blood-glucose", "blood-pressure"]
Diet = Literal["vegetarian", "vegan", "pescatarian", "halal", "kosher", "gluten-free", "lactose-free"]
Avoid = Literal[
    "alcohol", "beef", "celery", "crustaceans", "dairy", "egg", "fish", "gluten", "lupin", "meat", "molluscs",
    "mustard", "peanut", "pork", "sesame", "soy", "sulphites", "tree-nut",
]  # fmt: skip
Status = Literal["scored", "not_food", "needs_review"]
Score = Annotated[int, Field(ge=1, le=5)]
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}$")]


class Wire(BaseModel):
    """Base of everything on the wire: immutable, and an unknown field is an error, not a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Profile(Wire):
    """Who the tip is for. Everything is optional; an empty profile gets a general tip."""

    user: UserId | None = None
    goals: tuple[Goal, ...] = ()
    diet: tuple[Diet, ...] = ()
    avoid: tuple[Avoid, ...] = ()


class Dish(Wire):
    """One thing that may be on the plate."""

    name: str
    probability: float = Field(ge=0, le=1)


class TipOut(Wire):
    """A tip: its stable id, its words, and the public guideline it rests on."""

    id: str
    text: str
    source: str


class ImageFacts(Wire):
    """What is known about the photo itself. Width and height are as the viewer sees it (upright)."""

    sha256: str
    pdq: str
    width: int
    height: int
    bytes: int
    media_type: str
    key: str


class ModelRef(Wire):
    """Which model, and which version of it, gave a score."""

    name: str
    version: str


class Review(Wire):
    """A nutritionist's decision; ``dish`` is empty where they left it to the model."""

    score: Score
    dish: str = ""
    comment: str = ""
    reviewer: str = ""
    reviewed_at: datetime


class Result(Wire):
    """The answer to one photo."""

    id: str
    status: Status
    score: Score | None
    score_mean: float | None = Field(ge=1, le=5)
    score_probabilities: tuple[float, float, float, float, float] | None
    dishes: tuple[Dish, ...]
    food_probability: float = Field(ge=0, le=1)
    tip: TipOut | None
    image: ImageFacts
    duplicate_of: str | None
    model: ModelRef
    user: str | None = None
    review: Review | None = None
    created_at: datetime


class Analysis(Wire):
    """What is kept of a photo for its duplicates. Not part of the HTTP contract."""

    first_id: str
    status: Status
    score: Score | None
    score_mean: float | None
    score_probabilities: tuple[float, float, float, float, float] | None
    dishes: tuple[Dish, ...]
    food_probability: float
    group: str | None
    flags: tuple[str, ...]
    contains: tuple[str, ...]
    image: ImageFacts
    model: ModelRef


def _tidy(dish: str) -> str:
    """The same words are the same class: one Unicode form (NFC), single spaces, nothing invisible."""
    tidy = " ".join(unicodedata.normalize("NFC", dish).split())
    # A letter first also keeps a spreadsheet from taking the class for a formula.
    if tidy and not (tidy[0].isalnum() and tidy.isprintable()):
        raise ValueError("must begin with a letter or digit and hold nothing invisible")
    if tidy == "not_food":  # to the training this class says "no meal", against the score beside it
        raise ValueError("what is no food has no score")
    return tidy


class ReviewIn(Wire):
    """What a nutritionist sends. ``dish``: what is on the plate, in the words of the models or in others."""

    score: Score
    dish: Annotated[str, StringConstraints(max_length=64), AfterValidator(_tidy)] = ""
    comment: Annotated[str, StringConstraints(max_length=2000)] = ""
    reviewer: Annotated[str, StringConstraints(max_length=128)] = ""


class DayMean(Wire):
    """A day of the diary: how many photos have a score, and their mean."""

    date: date
    photos: int
    scored: int
    score_mean: float | None


class Diary(Wire):
    """A page of a user's results, newest first, with the mean of every day the page touches."""

    user: str
    items: tuple[Result, ...]
    days: tuple[DayMean, ...]
    next_cursor: str | None


class ReviewQueue(Wire):
    """Photos the model was unsure of, oldest first."""

    items: tuple[Result, ...]
    next_cursor: str | None


class Label(Wire):
    """What a nutritionist decided, as an example to train on; the columns of the CSV.

    ``image`` is the photo's key in the object store, ``class`` the dish or empty, ``model_score`` the mean of
    the model's own distribution.
    """

    model_config = ConfigDict(populate_by_name=True)

    image: str
    score: Score
    dish: str = Field(alias="class")
    id: str
    sha256: str
    model: str
    model_score: float | None
    reviewer: str
    reviewed_at: datetime
    comment: str


class Labels(Wire):
    """A page of labels, in the order of the reviews."""

    items: tuple[Label, ...]
    next_cursor: str | None


class UploadIn(Wire):
    """A request for a presigned upload: a photo of this type, of at most so many bytes, for this person."""

    media_type: Literal[
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
        "image/heic",
        "image/avif",
    ]
    bytes: int = Field(gt=0)
    profile: Profile = Profile()


class Upload(Wire):
    """A form that uploads one photo: send ``fields``, then the photo as ``file``, to ``url``.

    ``id`` is the result's to come; ``key`` is what to score it by where no queue does.
    """

    id: str
    key: str
    url: str
    fields: dict[str, str]
    expires_at: datetime


class Pending(Wire):
    """A photo without a result yet: ask again at ``Location``."""

    id: str
    status: Literal["pending"] = "pending"


class Failure(Wire):
    """Why a photo will have no result."""

    code: str
    detail: str


class Job(Wire):
    """What is kept of a photo that has no result yet. Not part of the HTTP contract.

    ``deleted``: whoever has it in work must not make a result of it.
    """

    profile: Profile = Profile()
    failed: Failure | None = None
    deleted: bool = False


class ScoreByKey(Wire):
    """Score a photo that is already in the bucket."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    profile: Profile = Profile()


class FoodOut(Wire):
    """A food a model knows, and how its score came about; `fooddx explain` says it at length.

    ``classes`` are the model's words for it; ``per_100`` is per 100 g, or 100 ml of a drink; ``components``
    are Nutri-Score's points, those taken off below 0; ``sources`` name the rows of USDA FoodData Central.
    """

    name: str
    classes: tuple[str, ...]
    score: Score
    grade: str
    points: int
    category: str
    components: dict[str, int]
    per_100: dict[str, float]
    sources: tuple[str, ...]


class ModelOut(Wire):
    """A model the service runs."""

    name: str
    version: str
    backbone: str
    licence: str
    input_size: int
    labels: int
    foods: tuple[FoodOut, ...]
    thresholds: dict[str, int | float]


class Models(Wire):
    """All models, and the name and version a result is marked with."""

    serving: ModelRef
    models: tuple[ModelOut, ...]


class Problem(Wire):
    """RFC 9457 problem details, with our stable code and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
