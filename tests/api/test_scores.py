"""POST /v1/scores: what goes in, what comes out, and what bounds both."""

import asyncio
import hashlib
import itertools
import json
import re
import socket
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from app.api.app import create_app
from app.schemas import Result
from app.telemetry import STAGES
from tests.api.conftest import Api, is_problem
from tests.conftest import API_KEY
from tests.loopback import serving
from tests.photos import coffee_jpeg

FIELDS = [
    "id", "status", "score", "score_mean", "score_probabilities", "dishes", "food_probability", "tip",
    "image", "duplicate_of", "model", "user", "review", "created_at",
]  # fmt: skip
IMAGE_FIELDS = ["sha256", "pdq", "width", "height", "bytes", "media_type", "key"]
PROFILE = '{"user": "ana", "goals": ["less-salt"], "diet": ["vegetarian"], "avoid": ["peanut"]}'
MIB = 2**20


def timings(response) -> dict[str, float]:
    """The stages of a Server-Timing header and their milliseconds, in its order."""
    entries = response.headers["server-timing"].split(", ")
    found = [re.fullmatch(r"(\w+);dur=(\d+\.\d)", entry) for entry in entries]
    return {match[1]: float(match[2]) for match in found}


class Pulled:
    """A body in pieces, that counts how many were asked for."""

    def __init__(self, *pieces: bytes, then: bytes = b"", hang: bool = False) -> None:
        self.count = 0
        self._pieces, self._then, self._hang = pieces, then, hang

    async def __aiter__(self):
        for piece in self._pieces:
            self.count += 1
            yield piece
        while self._then:
            self.count += 1
            yield self._then
        if self._hang:
            await asyncio.Event().wait()


# The result


def test_a_raw_photo_gets_the_documented_result(api):
    photo = coffee_jpeg()
    response = api.score(photo, {"Content-Type": "image/jpeg"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == FIELDS
    assert list(answer["image"]) == IMAGE_FIELDS
    assert list(answer["tip"]) == ["id", "text", "source"]
    assert list(answer["dishes"][0]) == ["name", "probability"]
    assert list(answer["model"]) == ["name", "version"]

    result = Result.model_validate_json(response.content)
    assert (result.status, result.score, result.dishes[0].name) == ("scored", 4, "espresso")
    assert sum(result.score_probabilities) == pytest.approx(1, abs=1e-3)
    mean = sum(score * p for score, p in enumerate(result.score_probabilities, 1))
    assert result.score_mean == pytest.approx(mean, abs=0.01)
    sha256 = hashlib.sha256(photo).hexdigest()
    assert result.image.sha256 == sha256
    assert result.image.key.endswith(f"/{sha256[:2]}/{sha256}")
    assert re.fullmatch(r"[0-9a-f]{64}", result.image.pdq)
    assert (result.image.width, result.image.height) == (600, 400)
    assert (result.image.bytes, result.image.media_type) == (len(photo), "image/jpeg")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", result.id)
    assert abs(result.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert (result.user, result.review, result.duplicate_of) == (None, None, None)


def test_a_200_means_stored_and_written(api):
    photo = coffee_jpeg()
    answer = api.score(photo)
    result_id, sha256 = answer.json()["id"], answer.json()["image"]["sha256"]
    assert api.stored() == [sha256]
    assert api.get(f"/v1/scores/{result_id}").json() == answer.json()
    assert api.get(f"/v1/scores/{result_id}/image").content == photo


def test_a_form_carries_a_profile(api):
    result = api.result(coffee_jpeg(), PROFILE)
    assert result["user"] == "ana"
    assert result["tip"]["id"]


def test_the_profile_may_come_first(api):
    form = [("profile", (None, PROFILE)), ("image", ("lunch.jpg", coffee_jpeg(), "image/jpeg"))]
    response = api.post("/v1/scores", files=form)
    assert response.json()["user"] == "ana"


@pytest.mark.parametrize(
    "claimed",
    [
        None,
        "image/png",
        "text/plain",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        ";;=\xff",
    ],
)
def test_content_and_not_the_header_decides_what_a_photo_is(api, claimed):
    headers = {"Content-Type": claimed.encode("latin-1")} if claimed else {}
    response = api.score(coffee_jpeg(64, 48), headers)
    assert response.json()["image"]["media_type"] == "image/jpeg"


def test_the_same_user_does_not_get_the_same_tip_twice_running(api):
    tips = [api.result(coffee_jpeg(64, 48), '{"user": "bo"}')["tip"]["id"] for _ in range(12)]
    assert all(one != next_one for one, next_one in itertools.pairwise(tips))


def test_a_photo_of_no_food_has_no_score_and_no_tip(api):
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"food": 1.0})
    result = Result.model_validate(api.result(coffee_jpeg()))
    assert (result.status, result.score, result.score_mean, result.score_probabilities, result.tip) == (
        "not_food", None, None, None, None,
    )  # fmt: skip
    assert result.dishes == ()


def test_a_doubtful_photo_waits_for_a_nutritionist_and_still_gets_a_tip(api):
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"review": 0.0})
    result = Result.model_validate(api.result(coffee_jpeg()))
    assert (result.status, result.score) == ("needs_review", None)
    assert result.score_probabilities is not None
    assert result.tip is not None


# The same photo again


def test_the_same_bytes_are_scored_once(api):
    first, second = api.result(coffee_jpeg()), api.result(coffee_jpeg(), PROFILE)
    assert api.local.scorer.calls == 1
    assert second["duplicate_of"] == first["id"] != second["id"]
    assert second["user"] == "ana"
    same = [
        "status",
        "score",
        "score_mean",
        "score_probabilities",
        "dishes",
        "food_probability",
        "image",
        "model",
    ]
    assert {name: second[name] for name in same} == {name: first[name] for name in same}
    assert len(api.stored()) == 1


def test_a_duplicate_of_a_duplicate_names_the_first(api):
    first, _, third = (api.result(coffee_jpeg()) for _ in range(3))
    assert third["duplicate_of"] == first["id"]


def test_other_thresholds_are_another_judgement(api):
    first = api.result(coffee_jpeg())
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"food": 1.0})
    second = api.result(coffee_jpeg())
    assert second["duplicate_of"] is None
    assert (first["status"], second["status"]) == ("scored", "not_food")


def test_twins_at_once_are_scored_once(api):
    async def twins():
        return await asyncio.gather(
            *(api.send("POST", "/v1/scores", content=coffee_jpeg()) for _ in range(6))
        )

    answers = api.run(twins())
    results = [answer.json() for answer in answers]
    assert [answer.status_code for answer in answers] == [200] * 6, results
    assert api.local.scorer.calls == 1
    (first,) = [result for result in results if result["duplicate_of"] is None]
    assert {result["duplicate_of"] for result in results} == {None, first["id"]}
    assert len({result["id"] for result in results}) == 6


# Headers


def test_server_timing_names_every_stage_in_order(api):
    start = time.perf_counter()
    stages = timings(api.score(coffee_jpeg()))
    elapsed_ms = (time.perf_counter() - start) * 1000
    assert tuple(stages) == STAGES
    # What the scorer of these tests says of itself.
    assert (stages["queue"], stages["decode"], stages["score"]) == (1.0, 3.0, 4.0)
    assert stages["auth"] + stages["dedupe"] + stages["tip"] <= elapsed_ms + 1
    assert stages["store"] > 0


def test_server_timing_of_a_duplicate_has_only_what_was_done(api):
    api.score(coffee_jpeg())
    assert list(timings(api.score(coffee_jpeg()))) == ["auth", "dedupe", "store", "tip"]


def test_errors_and_other_routes_have_a_server_timing_too(api):
    assert list(timings(api.score(b""))) == ["auth"]
    assert list(timings(api.score(coffee_jpeg(640, 480)[:5000])))[:2] == ["auth", "dedupe"]
    assert list(timings(api.get("/v1/models"))) == ["auth"]
    assert list(timings(api.get("/v1/models", headers={"Authorization": ""}))) == ["auth"]


@pytest.mark.parametrize("given", ["01a1fffee571761aac8ed1d772afddf5", "x", "trace-1/2:3", "~" * 128])
def test_a_request_id_is_sent_back(api, given):
    assert api.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    problem = is_problem(api.score(b"x", {"X-Request-Id": given}), 415, "unsupported_media_type")
    assert problem.request_id == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"a b",
        b"abc\n",
        b"abc\r\nSet-Cookie: a=1",
        b"abc\r\n\r\n<script>",
        b"\xc3\xbc",
        b"\0",
        b"~" * 129,
    ],
)
def test_a_request_id_that_could_be_misread_is_replaced(api, given):
    response = api.get("/healthz", headers=[(b"X-Request-Id", given)])
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert "set-cookie" not in response.headers


def test_every_request_gets_an_id_of_its_own(api):
    assert len({api.get("/healthz").headers["x-request-id"] for _ in range(5)}) == 5


def test_the_request_id_goes_along_with_the_photo(api):
    seen = []

    async def look(job):
        seen.append(job.request_id)

    api.local.scorer.before = look
    api.score(coffee_jpeg(), {"X-Request-Id": "trace-77"})
    assert seen == ["trace-77"]


@pytest.mark.parametrize(
    "given", [b"0", b"60001", b"-1", b"+5", b"1.5", b"1e3", b"", b" ", b"many", b"\xb2", b"5\n", b"9" * 5000]
)
def test_a_budget_is_a_whole_number_of_milliseconds(api, given):
    problem = is_problem(api.score(coffee_jpeg(64, 48), [(b"X-Budget-Ms", given)]), 422, "invalid_field")
    assert problem.detail.startswith("X-Budget-Ms: ")


async def for_ever(_job):
    await asyncio.Event().wait()


@pytest.mark.parametrize(("configured", "asked", "words"), [(60_000, "20", "20 ms"), (50, "60000", "50 ms")])
def test_the_smaller_budget_counts(make_api, configured, asked, words):
    api = make_api(budget_ms=configured)
    api.local.scorer.before = for_ever
    response = api.score(coffee_jpeg(), {"X-Budget-Ms": asked})
    assert words in is_problem(response, 504, "deadline_exceeded").detail
    assert response.headers["retry-after"] == "1"


def test_nothing_is_left_of_a_photo_that_took_too_long(api):
    api.local.scorer.before = for_ever
    is_problem(api.score(coffee_jpeg(), {"X-Budget-Ms": "20"}), 504, "deadline_exceeded")
    assert api.stored() == []
    api.local.scorer.before = None
    assert api.score(coffee_jpeg()).json()["duplicate_of"] is None


def test_the_deadline_goes_along_with_the_photo(api):
    seen = []

    async def look(job):
        seen.append(job.deadline)

    api.local.scorer.before = look
    start = time.time()
    api.score(coffee_jpeg(), {"X-Budget-Ms": "700"})
    assert start + 0.7 <= seen[0] <= time.time() + 0.7


def test_prefer_respond_async_is_answered_at_once(api):
    assert api.score(coffee_jpeg(), {"Prefer": "respond-async"}).json()["status"] == "scored"


# Idempotency-Key


def test_a_retry_with_the_same_key_gets_the_same_answer(api):
    first = api.score(coffee_jpeg(), {"Idempotency-Key": "k1"})
    again = api.score(coffee_jpeg(), {"Idempotency-Key": "k1"})
    assert again.status_code == 200
    assert again.content == first.content
    assert api.score(coffee_jpeg(), {"Idempotency-Key": "k2"}).json()["id"] != first.json()["id"]


@pytest.mark.parametrize("other", ["photo", "profile"])
def test_a_key_belongs_to_one_request(api, other):
    headers = {"Idempotency-Key": "k1"}
    api.score(coffee_jpeg(), headers)
    if other == "photo":
        response = api.score(coffee_jpeg(quality=80), headers)
    else:
        form = {"image": coffee_jpeg(), "profile": (None, PROFILE)}
        response = api.post("/v1/scores", files=form, headers=headers)
    is_problem(response, 409, "idempotency_key_reused")
    assert "retry-after" not in response.headers


def test_a_key_whose_first_request_is_under_way_is_to_be_asked_again(api):
    async def both():
        arrived, go = asyncio.Event(), asyncio.Event()

        async def hold(_job):
            arrived.set()
            await go.wait()

        api.local.scorer.before = hold
        headers = {"Idempotency-Key": "k1"}
        first = asyncio.create_task(api.send("POST", "/v1/scores", content=coffee_jpeg(), headers=headers))
        await arrived.wait()
        second = await api.send("POST", "/v1/scores", content=coffee_jpeg(), headers=headers)
        go.set()
        return (
            await first,
            second,
            await api.send("POST", "/v1/scores", content=coffee_jpeg(), headers=headers),
        )

    first, second, third = api.run(both())
    is_problem(second, 409, "idempotency_in_flight")
    assert second.headers["retry-after"] == "1"
    assert (first.status_code, third.content) == (200, first.content)
    assert api.local.scorer.calls == 1


def test_a_key_is_free_again_after_an_error(api):
    headers = {"Idempotency-Key": "k1"}
    is_problem(api.score(b"no photo", headers), 415, "unsupported_media_type")
    api.settled()
    assert api.score(coffee_jpeg(), headers).status_code == 200


def test_a_key_whose_result_was_deleted_says_so(api):
    headers = {"Idempotency-Key": "k1"}
    result_id = api.score(coffee_jpeg(), headers).json()["id"]
    assert api.delete(f"/v1/scores/{result_id}").status_code == 204
    is_problem(api.score(coffee_jpeg(), headers), 404, "not_found")


@pytest.mark.parametrize("key", [b"", b"a b", b"k\n", b"k\r\nX: y", b"\xc3\xa9", b"\x7f", b"k" * 256])
def test_a_key_is_visible_ascii(api, key):
    problem = is_problem(api.score(coffee_jpeg(64, 48), [(b"Idempotency-Key", key)]), 422, "invalid_field")
    assert problem.detail.startswith("Idempotency-Key: ")
    assert api.local.scorer.calls == 0


def test_a_key_may_have_255_characters(api):
    assert api.score(coffee_jpeg(64, 48), {"Idempotency-Key": "!~{}" + "k" * 251}).status_code == 200


# Scoring by key


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_stored_photo_is_scored_by_its_key(api, content_type):
    first = api.result(coffee_jpeg())
    headers = {"Content-Type": content_type}
    body = json.dumps({"key": first["image"]["key"], "profile": {"user": "ana"}})
    again = api.post("/v1/scores", content=body, headers=headers).json()
    assert (again["duplicate_of"], again["user"], again["image"]) == (first["id"], "ana", first["image"])
    missing = api.post("/v1/scores", content=json.dumps({"key": "inbox/lunch.jpg"}), headers=headers)
    is_problem(missing, 404, "not_found")


@pytest.mark.parametrize(
    ("body", "where"), [("{", "body: "), ("{}", "body.key: "), ('{"key": 5}', "body.key: "), ("[]", "body: ")]
)
def test_a_wrong_json_body_is_named_first(api, body, where):
    response = api.post("/v1/scores", content=body, headers={"Content-Type": "application/json"})
    assert is_problem(response, 422, "invalid_field").detail.startswith(where)


# Backpressure


def test_one_photo_too_many_is_refused_before_its_body_is_read(make_api):
    api = make_api(max_in_flight=2)
    photos = [coffee_jpeg(64, 48, quality=quality) for quality in (70, 80)]
    late = Pulled(coffee_jpeg())

    async def crowd():
        go, full = asyncio.Event(), asyncio.Barrier(len(photos) + 1)

        async def hold(_job):
            await full.wait()
            await go.wait()

        api.local.scorer.before = hold
        held = [asyncio.create_task(api.send("POST", "/v1/scores", content=photo)) for photo in photos]
        await full.wait()
        refused = await api.send("POST", "/v1/scores", content=late)
        others = [await api.send("GET", "/v1/models"), await api.send("GET", "/healthz")]
        go.set()
        return refused, others, [await task for task in held]

    refused, others, held = api.run(crowd())
    is_problem(refused, 429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert late.count == 0
    assert [response.status_code for response in [*others, *held]] == [200] * 4
    api.local.scorer.before = None
    assert api.score(late).status_code == 200
    assert api.local.service.admission.in_flight == 0


@pytest.mark.parametrize("photo", [b"", b"no photo", coffee_jpeg()[:500]])
def test_a_place_is_given_back_after_an_error(make_api, photo):
    api = make_api(max_in_flight=1)
    for _ in range(2):
        assert api.score(photo).status_code in {415, 422}
    assert api.score(coffee_jpeg(64, 48)).status_code == 200


# The size of a body


def test_the_largest_photo_is_taken_and_a_larger_one_is_not(make_api):
    photo = coffee_jpeg()
    assert make_api(max_body_bytes=len(photo)).score(photo).status_code == 200
    assert make_api(max_body_bytes=len(photo)).result(photo, PROFILE)["user"] == "ana"
    api = make_api(max_body_bytes=len(photo) - 1)
    is_problem(api.score(photo), 413, "body_too_large")
    is_problem(api.post("/v1/scores", files={"image": photo}), 413, "body_too_large")


def test_a_declared_length_over_the_cap_is_refused_at_once(make_api):
    api = make_api(max_body_bytes=MIB)
    for content_type, length in (("image/jpeg", MIB + 1), ("multipart/form-data; boundary=b", 2 * MIB)):
        body = Pulled(b"x" * (MIB + 1))
        headers = {"Content-Length": str(length), "Content-Type": content_type}
        problem = is_problem(api.score(body, headers), 413, "body_too_large")
        assert problem.detail == "The photo may have at most 1 MiB."
        assert body.count == 0


@pytest.mark.parametrize("declared", [b"\xb2", b"9" * 5000, b"-5", b"many"])
def test_a_length_that_is_no_number_does_not_matter(api, declared):
    assert api.score(Pulled(coffee_jpeg(64, 48)), [(b"Content-Length", declared)]).status_code == 200


_PART = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'


@pytest.mark.parametrize(
    ("content_type", "start"),
    [
        ("image/jpeg", b"\xff\xd8\xff"),
        ("multipart/form-data; boundary=b", _PART % b"image"),
        ("multipart/form-data; boundary=b", _PART % b"image" + b"x\r\n--b--\r\n"),
    ],
    ids=["raw", "image part", "after the form"],
)
def test_a_body_without_end_is_read_no_further_than_the_cap(make_api, content_type, start):
    api = make_api(max_body_bytes=MIB)
    body = Pulled(start, then=b" " * 65536)
    is_problem(api.score(body, {"Content-Type": content_type}), 413, "body_too_large")
    assert body.count <= 20


@pytest.mark.parametrize(
    ("start", "status"),
    [(b"--b\r\nX-Long: ", 400), (b"--b\r\n" + b"X: y\r\n" * 20, 400), (_PART % b"profile", 422)],
    ids=["header", "headers", "profile"],
)
def test_the_parts_of_a_form_are_bounded_too(make_api, start, status):
    body = Pulled(start, then=b"x" * 4096)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert make_api().score(body, headers).status_code == status
    assert body.count <= 6


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/scores"])
def test_json_has_a_cap_of_its_own(api, path):
    body = Pulled(then=b" " * 4096)
    response = api.post(path, content=body, headers={"Content-Type": "application/json"})
    assert "64 KiB" in is_problem(response, 413, "body_too_large").detail
    assert body.count <= 17


# The time of a body


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/scores", "image/jpeg"),
        ("/v1/scores", "multipart/form-data; boundary=b"),
        ("/v1/scores", "application/json"),
        ("/v1/uploads", "application/json"),
    ],
)
def test_a_body_that_does_not_come_is_given_up(make_api, path, content_type):
    api = make_api(body_timeout_s=0.05)
    response = api.post(path, content=Pulled(hang=True), headers={"Content-Type": content_type})
    assert "0.05 seconds" in is_problem(response, 408, "body_timeout").detail
    assert response.headers["retry-after"] == "1"
    assert api.stored() == []


def test_the_time_of_the_body_does_not_count_against_the_budget(make_api):
    api = make_api(budget_ms=1000)
    arrived, deadlines = [], []

    async def slowly():
        yield coffee_jpeg()[:1000]
        await asyncio.sleep(0.05)
        arrived.append(time.time())
        yield coffee_jpeg()[1000:]

    async def look(job):
        deadlines.append(job.deadline)

    api.local.scorer.before = look
    assert api.score(slowly()).status_code == 200
    assert deadlines[0] >= arrived[0] + 1


@pytest.mark.parametrize(
    "content_type", [b"image/jpeg", b"multipart/form-data; boundary=b", b"application/json"]
)
def test_a_client_that_goes_away_leaves_nothing_behind(api: Api, content_type):
    incoming = [
        {"type": "http.request", "body": coffee_jpeg()[:1000], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = api.asgi("POST", "/v1/scores", incoming, [(b"content-type", content_type)])
    assert sent[0]["status"] == 400
    assert api.local.scorer.calls == 0
    assert api.local.service.admission.in_flight == 0
    assert api.stored() == []


def test_a_real_server_survives_clients_that_break_off(make_local):
    """Over sockets: an early 413, an upload left half-way, and then a photo that must be scored."""
    request = (
        f"POST /v1/scores HTTP/1.1\r\nHost: fooddx\r\nAuthorization: Bearer {API_KEY}\r\n"
        "Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    )
    photo = coffee_jpeg()
    with serving(lambda: create_app(make_local().service)) as url:
        address = (urlsplit(url).hostname, urlsplit(url).port)

        def ask(length: int, body: bytes, *, patient: bool = True) -> bytes:
            with socket.create_connection(address, timeout=30) as client:
                client.sendall((request % length).encode() + body)
                return client.recv(65536) if patient else b""

        assert ask(10**12, b"").startswith(b"HTTP/1.1 413 ")
        for cut in range(0, 1000, 100):
            ask(len(photo), photo[:cut], patient=False)
        assert ask(len(photo), photo).startswith(b"HTTP/1.1 200 ")
