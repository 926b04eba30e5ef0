"""What happens to a result afterwards: it is read, listed by day, reviewed and deleted."""

import dataclasses
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from app.schemas import Diary, ReviewQueue
from models.manifest import load_manifest
from tests.api.conftest import is_problem
from tests.photos import coffee_jpeg, coffee_png

UNKNOWN = "0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11"
ANA = '{"user": "ana"}'


def photo(number: int) -> bytes:
    """The coffee, in as many different files as needed."""
    return coffee_jpeg(64, 48, quality=60 + number)


@pytest.fixture
def unsure(api):
    """The service with a model that is never sure of a score."""
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"review": 0.0})
    return api


def diary(api, user: str = "ana", **query) -> Diary:
    response = api.get("/v1/scores", params={"user": user, **query})
    assert response.status_code == 200, response.text
    return Diary.model_validate_json(response.content)


def queue(api, **query) -> ReviewQueue:
    response = api.get("/v1/reviews", params=query)
    assert response.status_code == 200, response.text
    return ReviewQueue.model_validate_json(response.content)


def pages(read, *args, **query):
    """Every item, page by page."""
    cursor = {}
    while True:
        page = read(*args, **cursor, **query)
        yield page.items
        if page.next_cursor is None:
            return
        cursor = {"cursor": page.next_cursor}


# One result


def test_a_result_is_read_as_it_was_answered(api):
    first, duplicate = (api.result(coffee_jpeg(), ANA) for _ in range(2))
    assert api.get(f"/v1/scores/{first['id']}").json() == first
    assert api.get(f"/v1/scores/{duplicate['id']}").json() == duplicate


@pytest.mark.parametrize("tail", ["", "/image"])
def test_an_unknown_result_is_not_found(api, tail):
    is_problem(api.get(f"/v1/scores/{UNKNOWN}{tail}"), 404, "not_found")


@pytest.mark.parametrize(
    "result_id",
    [
        "1",
        "result",
        UNKNOWN.upper(),
        UNKNOWN + "0",
        UNKNOWN.replace("7c1f", "4c1f"),
        UNKNOWN + "%0a",
        "*",
        "{a}:b",
    ],
)
def test_what_is_no_id_is_refused(api, result_id):
    for method, tail in (("GET", ""), ("GET", "/image"), ("DELETE", ""), ("POST", "/review")):
        problem = is_problem(api.request(method, f"/v1/scores/{result_id}{tail}"), 422, "invalid_field")
        assert problem.detail.startswith("result_id: ")


@pytest.mark.parametrize("data", [coffee_jpeg(64, 48), coffee_png(32, 24)], ids=["jpeg", "png"])
def test_the_photo_of_a_result_is_what_was_sent(api, data):
    result = api.result(data)
    response = api.get(f"/v1/scores/{result['id']}/image")
    assert response.content == data
    assert response.headers["content-type"] == result["image"]["media_type"]
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


# The diary


def test_a_diary_is_newest_first_and_of_one_user(api):
    ids = [api.result(photo(number), ANA)["id"] for number in range(4)]
    api.result(photo(9), '{"user": "bo"}')
    api.result(photo(9))
    page = diary(api)
    assert page.user == "ana"
    assert [item.id for item in page.items] == ids[::-1]
    assert page.next_cursor is None


def test_a_diary_is_read_page_by_page(api):
    ids = [api.result(photo(number), ANA)["id"] for number in range(7)]
    for limit in (1, 3, 7, 100):
        found = list(pages(diary, api, limit=limit))
        assert [item.id for items in found for item in items] == ids[::-1]
        assert all(len(items) == limit for items in found[:-1])


def test_what_comes_later_does_not_move_the_next_page(api):
    ids = [api.result(photo(number), ANA)["id"] for number in range(4)]
    first = diary(api, limit=2)
    api.result(photo(5), ANA)
    second = diary(api, limit=2, cursor=first.next_cursor)
    assert [item.id for item in (*first.items, *second.items)] == ids[::-1]


def test_a_day_has_the_mean_of_its_scores(api):
    photos = [photo(number) for number in range(3)]
    ids = [api.result(data, ANA)["id"] for data in photos]
    for result_id, score in zip(ids, (1, 2, 2), strict=True):
        assert api.post(f"/v1/scores/{result_id}/review", json={"score": score}).status_code == 200
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"food": 1.0})
    assert api.result(photo(4), ANA)["status"] == "not_food"
    # The mean is the whole day's, however little of it is on the page.
    for limit in (1, 20):
        (day,) = diary(api, limit=limit).days
        assert (day.photos, day.scored, day.score_mean) == (4, 3, 1.67)


def test_a_day_without_a_score_has_no_mean(unsure):
    unsure.result(photo(0), ANA)
    (day,) = diary(unsure).days
    assert (day.photos, day.scored, day.score_mean) == (1, 0, None)


@pytest.mark.parametrize("name", ["UTC", "Europe/Madrid", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_a_day_begins_where_the_user_is(api, name):
    result = api.result(photo(0), ANA)
    created = datetime.fromisoformat(result["created_at"])
    assert created.tzinfo == UTC
    (day,) = diary(api, timezone=name).days
    assert day.date == created.astimezone(ZoneInfo(name)).date()


def test_days_without_a_time_zone_are_those_of_utc(api):
    api.result(photo(0), ANA)
    assert diary(api) == diary(api, timezone="UTC")


def test_a_user_nobody_knows_has_an_empty_diary(api):
    assert diary(api, "nobody") == Diary(user="nobody", items=(), days=(), next_cursor=None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "user"),
        ({"user": ""}, "user"),
        ({"user": "a b"}, "user"),
        ({"user": "a*"}, "user"),
        ({"user": "ana\n"}, "user"),
        ({"user": "a" * 129}, "user"),
        ({"user": "ana", "limit": "0"}, "limit"),
        ({"user": "ana", "limit": "101"}, "limit"),
        ({"user": "ana", "limit": "9" * 5000}, "limit"),
        ({"user": "ana", "limit": "ten"}, "limit"),
        ({"user": "ana", "cursor": "x"}, "cursor"),
        ({"user": "ana", "cursor": f"({UNKNOWN}"}, "cursor"),
        ({"user": "ana", "timezone": ""}, "timezone"),
        ({"user": "ana", "timezone": "Atlantis/Capital"}, "timezone"),
        ({"user": "ana", "timezone": "../../etc/passwd"}, "timezone"),
        ({"user": "ana", "timezone": "/etc/localtime"}, "timezone"),
    ],
)
def test_a_wrong_query_is_named(api, query, field):
    problem = is_problem(api.get("/v1/scores", params=query), 422, "invalid_field")
    assert problem.detail.startswith(f"{field}: ")
    assert not any(value in problem.detail for value in query.values() if len(value) > 5)


# Reviews


def test_a_review_decides_a_doubtful_photo(unsure):
    result = unsure.result(coffee_jpeg(), ANA)
    assert [item.id for item in queue(unsure).items] == [result["id"]]

    given = {"score": 2, "dish": "flat white", "comment": "Sweetened.", "reviewer": "dr-lee"}
    response = unsure.post(f"/v1/scores/{result['id']}/review", json=given)
    assert response.status_code == 200
    reviewed = response.json()
    assert (reviewed["status"], reviewed["score"]) == ("scored", 2)
    review = reviewed.pop("review")
    reviewed_at = datetime.fromisoformat(review.pop("reviewed_at"))
    assert datetime.fromisoformat(result["created_at"]) <= reviewed_at <= datetime.now(UTC)
    assert review == given
    kept = {name: value for name, value in result.items() if name not in {"status", "score", "review"}}
    assert reviewed == kept | {"status": "scored", "score": 2}

    assert unsure.get(f"/v1/scores/{result['id']}").json() == response.json()
    assert queue(unsure).items == ()
    assert diary(unsure).days[0].score_mean == 2.0


def test_a_later_review_replaces_an_earlier_one(unsure):
    path = f"/v1/scores/{unsure.result(coffee_jpeg())['id']}"
    for score in (1, 5):
        unsure.post(f"{path}/review", json={"score": score, "comment": f"It is a {score}."})
    result = unsure.get(path).json()
    assert (result["score"], result["review"]["comment"]) == (5, "It is a 5.")


def test_a_sure_score_may_be_corrected_too(api):
    result = api.result(coffee_jpeg())
    assert result["score"] == 4
    reviewed = api.post(f"/v1/scores/{result['id']}/review", json={"score": 3}).json()
    review = reviewed["review"]
    assert (reviewed["score"], review["dish"], review["comment"]) == (3, "", "")


def test_a_review_is_of_one_result_and_not_of_its_duplicates(unsure):
    first, second = (unsure.result(coffee_jpeg()) for _ in range(2))
    unsure.post(f"/v1/scores/{first['id']}/review", json={"score": 5})
    assert unsure.get(f"/v1/scores/{second['id']}").json() == second
    assert [item.id for item in queue(unsure).items] == [second["id"]]


def test_a_photo_of_no_food_has_no_score_to_correct(api):
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"food": 1.0})
    result_id = api.result(coffee_jpeg())["id"]
    is_problem(api.post(f"/v1/scores/{result_id}/review", json={"score": 3}), 409, "already_decided")


def test_the_queue_is_oldest_first_page_by_page(unsure):
    ids = [unsure.result(photo(number))["id"] for number in range(5)]
    for limit in (1, 2, 5, 100):
        assert [item.id for items in pages(queue, unsure, limit=limit) for item in items] == ids


def test_a_deleted_photo_needs_no_review(unsure):
    kept, gone = (unsure.result(photo(number))["id"] for number in range(2))
    unsure.delete(f"/v1/scores/{gone}")
    assert [item.id for item in queue(unsure).items] == [kept]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("", "body: "),
        ("{", "body: "),
        ("[]", "body: "),
        ("{}", "body.score: "),
        ('{"score": null}', "body.score: "),
        ('{"score": 0}', "body.score: "),
        ('{"score": 6}', "body.score: "),
        ('{"score": 2.5}', "body.score: "),
        ('{"score": "Ana-4711"}', "body.score: "),
        ('{"score": 3, "comment": "%s"}' % ("Ana-4711" * 300), "body.comment: "),
        ('{"score": 3, "reviewer": "%s"}' % ("Ana-4711" * 20), "body.reviewer: "),
        ('{"score": 3, "dish": "%s"}' % ("4711" * 17), "body.dish: "),
        ('{"score": 3, "dish": "=4711"}', "body.dish: "),
        ('{"score": 3, "dish": "4711\\u202e"}', "body.dish: "),
        ('{"score": 3, "dish": "not_food"}', "body.dish: "),
        ('{"score": 3, "mood": "Ana-4711"}', "body.mood: "),
        ('{"\\ud800": 3}', "body: "),
    ],
)
def test_a_wrong_review_is_named_and_not_repeated(api, body, field):
    result_id = api.result(coffee_jpeg(64, 48))["id"]
    problem = is_problem(api.post(f"/v1/scores/{result_id}/review", content=body), 422, "invalid_field")
    assert problem.detail.startswith(field)
    assert "4711" not in problem.detail
    assert api.get(f"/v1/scores/{result_id}").json()["review"] is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("pizza", "pizza"),
        ("Pizza_4-Stagioni (½)", "Pizza_4-Stagioni (½)"),
        (" \tapple \n pie ", "apple pie"),
        ("cre\u0300me bru\u0302le\u0301e", "crème brûlée"),
        ("麻婆豆腐", "麻婆豆腐"),
    ],
)
def test_a_dish_in_the_same_words_is_the_same_class(api, given, kept):
    path = f"/v1/scores/{api.result(coffee_jpeg(64, 48))['id']}/review"
    assert api.post(path, json={"score": 3, "dish": given}).json()["review"]["dish"] == kept


def test_an_unknown_result_cannot_be_reviewed(api):
    is_problem(api.post(f"/v1/scores/{UNKNOWN}/review", json={"score": 3}), 404, "not_found")


# Deletion


def test_a_deleted_result_is_gone_from_every_store(api):
    result = api.result(coffee_jpeg(), ANA)
    response = api.delete(f"/v1/scores/{result['id']}")
    assert (response.status_code, response.content) == (204, b"")
    for tail in ("", "/image"):
        is_problem(api.get(f"/v1/scores/{result['id']}{tail}"), 404, "not_found")
    assert diary(api).items == ()
    assert api.stored() == []
    is_problem(api.delete(f"/v1/scores/{result['id']}"), 404, "not_found")


def test_a_photo_stays_as_long_as_a_result_rests_on_it(api):
    first, second = (api.result(coffee_jpeg()) for _ in range(2))
    api.delete(f"/v1/scores/{first['id']}")
    assert api.get(f"/v1/scores/{second['id']}/image").content == coffee_jpeg()
    api.delete(f"/v1/scores/{second['id']}")
    assert api.stored() == []


def test_a_deleted_photo_is_new_when_it_comes_again(api):
    first = api.result(coffee_jpeg())
    api.delete(f"/v1/scores/{first['id']}")
    assert api.result(coffee_jpeg())["duplicate_of"] is None
    assert api.local.scorer.calls == 2


def test_a_deleted_user_is_gone_and_nobody_else(api):
    mine = [api.result(photo(number), ANA) for number in range(3)]
    api.result(photo(0), ANA)
    theirs = api.result(photo(0), '{"user": "bo"}')
    response = api.delete("/v1/users/ana")
    assert (response.status_code, response.content) == (204, b"")
    assert diary(api).items == ()
    for result in mine:
        is_problem(api.get(f"/v1/scores/{result['id']}"), 404, "not_found")
    assert [item.id for item in diary(api, "bo").items] == [theirs["id"]]
    assert api.stored() == [theirs["image"]["sha256"]]


def test_a_user_nobody_knows_is_deleted_already(api):
    for _ in range(2):
        assert api.delete("/v1/users/nobody").status_code == 204


@pytest.mark.parametrize("user", ["a b", "a*", "x" * 129, "%0a"])
def test_what_is_no_user_is_not_deleted(api, user):
    assert is_problem(api.delete(f"/v1/users/{user}"), 422, "invalid_field").detail.startswith("user: ")


# The rest of the contract


def test_the_models_are_what_results_are_marked_with(api):
    answer = api.get("/v1/models").json()
    assert api.result(coffee_jpeg())["model"] == answer["serving"]
    (model,) = answer["models"]
    assert (model["name"], model["input_size"], model["labels"]) == ("imagenet-lite0", 224, 1000)
    assert "espresso" in [food["name"] for food in model["foods"]]
    assert model["thresholds"] == dataclasses.asdict(load_manifest("imagenet-lite0").thresholds)


@pytest.mark.parametrize(
    ("body", "field"), [("{}", "media_type"), ('{"media_type": "image/jpeg", "bytes": 0}', "bytes")]
)
def test_a_wrong_upload_is_named(api, body, field):
    assert f"body.{field}: " in is_problem(api.post("/v1/uploads", content=body), 422, "invalid_field").detail


def test_a_presigned_upload_needs_object_storage(api):
    body = {"media_type": "image/jpeg", "bytes": 1415302}
    is_problem(api.post("/v1/uploads", json=body), 501, "needs_object_storage")
