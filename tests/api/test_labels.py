"""Reviews as labels: the same rows as JSON and as a CSV, page by page, harmless in a spreadsheet."""

import csv
import io
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.examples import LABELS_CSV
from app.api.labels import COLUMNS, to_csv
from app.schemas import Label, Labels, ReviewIn
from tests.api.conftest import OTHER_KEY, is_problem
from tests.photos import coffee_jpeg

CSV = {"Accept": "text/csv"}


def reviewed(api, count: int, **review) -> list[str]:
    """Ids of that many results, reviewed one after the other."""
    ids = [api.result(coffee_jpeg(64, 48, quality=60 + number))["id"] for number in range(count)]
    for result_id in ids:
        assert api.post(f"/v1/scores/{result_id}/review", json={"score": 2} | review).status_code == 200
    return ids


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table, newline=""), strict=True))


def test_both_forms_say_the_same(api):
    result = api.result(coffee_jpeg(), '{"user": "ana"}')
    given = {"score": 2, "dish": "flat white", "comment": 'A "large" one,\nno sugar.', "reviewer": "dr-lee"}
    review = api.post(f"/v1/scores/{result['id']}/review", json=given).json()["review"]
    (label,) = api.get("/v1/labels").json()["items"]
    assert label == {
        "image": result["image"]["key"],
        "score": 2,
        "class": "flat white",
        "id": result["id"],
        "sha256": result["image"]["sha256"],
        "model": "imagenet-lite0@1",
        "model_score": result["score_mean"],
        "reviewer": "dr-lee",
        "reviewed_at": review["reviewed_at"],
        "comment": 'A "large" one,\nno sugar.',
    }
    response = api.get("/v1/labels", headers=CSV)
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert "link" not in response.headers
    assert rows(response.text) == [{name: str(value) for name, value in label.items()}]
    assert "ana" not in response.text, "who ate it is nothing to learn from"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv", "text/csv; charset=utf-8"),
        ("Text/CSV; header=present, */*;q=0.1", "text/csv; charset=utf-8"),
        ("*/*", "application/json"),
        ("text/*", "application/json"),
        ("", "application/json"),
    ],
)
def test_a_csv_is_what_asks_for_one(api, accept, kind):
    assert api.get("/v1/labels", headers={"Accept": accept}).headers["content-type"] == kind


def test_without_a_review_there_are_no_labels(api):
    api.result(coffee_jpeg())
    assert api.get("/v1/labels").json() == {"items": [], "next_cursor": None}
    assert api.get("/v1/labels", headers=CSV).text == ",".join(COLUMNS) + "\r\n"


def test_both_forms_are_read_page_by_page(api):
    ids = reviewed(api, 5)
    for limit in (1, 2, 5, 1000):
        found, query = [], {"limit": limit}
        while query:
            page = api.get("/v1/labels", params=query).json()
            found.append([label["id"] for label in page["items"]])
            query = page["next_cursor"] and {"limit": limit, "cursor": page["next_cursor"]}
        assert [result_id for page in found for result_id in page] == ids
        assert {len(page) for page in found[:-1]} <= {limit}

        tables, url = [], httpx.URL("/v1/labels", params={"limit": limit})
        while url:
            response = api.get(str(url), headers=CSV)
            tables.append([row["id"] for row in rows(response.text)])
            url = "next" in response.links and url.join(response.links["next"]["url"])
        assert tables == found


def test_a_second_review_gives_one_label(api):
    (result_id,) = reviewed(api, 1, dish="espresso")
    api.post(f"/v1/scores/{result_id}/review", json={"score": 5})
    (label,) = api.get("/v1/labels").json()["items"]
    assert (label["score"], label["class"]) == (5, "")


def test_a_deleted_result_is_no_label(api):
    kept, gone = reviewed(api, 2)
    api.delete(f"/v1/scores/{gone}")
    assert [label["id"] for label in api.get("/v1/labels").json()["items"]] == [kept]


def test_labels_are_of_one_tenant(make_api):
    api = make_api(keys={OTHER_KEY: "other"})
    reviewed(api, 1)
    theirs = api.get("/v1/labels", headers={"Authorization": f"Bearer {OTHER_KEY}"})
    assert theirs.json()["items"] == []


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0}, {"limit": 1001}, {"cursor": ""}, {"cursor": "-1"}, {"cursor": "1" * 17},
        {"cursor": "x"}, {"cursor": "0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11"},
    ],
)  # fmt: skip
def test_a_wrong_query_is_named(api, query):
    problem = is_problem(api.get("/v1/labels", params=query, headers=CSV), 422, "invalid_field")
    assert problem.detail.startswith(f"{next(iter(query))}: ")


def test_the_example_is_a_page():
    (row,) = rows(LABELS_CSV)
    assert tuple(row) == COLUMNS


# What a nutritionist may write, and what a spreadsheet may see.

words = st.one_of(
    st.text(max_size=20),
    st.text(st.sampled_from("=+-@＝＋－＠ \t\r\n\x00\u00a0',\"a1"), max_size=6),
)


def label_of(review: ReviewIn) -> Label:
    return Label(
        image="default/9f/9f86", score=review.score, dish=review.dish, id="1", sha256="9f86", model="m@1",
        model_score=None, reviewer=review.reviewer, reviewed_at=datetime(2026, 5, 1, tzinfo=UTC),
        comment=review.comment,
    )  # fmt: skip


@given(comment=words, reviewer=words)
def test_nothing_that_is_written_becomes_a_formula(comment, reviewer):
    review = ReviewIn(score=3, comment=comment, reviewer=reviewer)
    (row,) = rows(to_csv(Labels(items=(label_of(review),), next_cursor=None)))
    for name, text in (("comment", comment), ("reviewer", reviewer)):
        cell = row[name]
        assert cell in {text, f"'{text}"}
        assert cell.strip("".join(map(chr, range(33))) + "\u00a0")[:1] not in set("=+-@＝＋－＠")
        assert cell == text or not text[:1].isalnum(), "no more is changed than must be"


@given(dish=words)
def test_a_dish_that_is_taken_is_no_formula_and_one_line(dish):
    try:
        review = ReviewIn(score=3, dish=dish)
    except ValueError:
        return
    (row,) = rows(to_csv(Labels(items=(label_of(review),), next_cursor=None)))
    assert row["class"] == review.dish == ReviewIn(score=3, dish=review.dish).dish
    assert not row["class"] or row["class"][0].isalnum()
    assert row["class"].isprintable()
