"""The client over a real socket: safe retries, errors in words, and never a stack trace for a wrong URL."""

import csv
import hashlib
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from app.api.app import create_app
from app.client import _WAITS_S as PATIENCE
from app.client import Client, Outcome, ServiceError
from models.training.dataset import read_examples
from tests.conftest import API_KEY
from tests.loopback import serving
from tests.photos import coffee_jpeg

SCORED = {"id": "1", "status": "scored", "score": 4}


def problem(status: int, code: str, retry_after: str | None = None) -> Response:
    body = {"detail": "In words.", "code": code, "request_id": "r1"}
    return JSONResponse(body, status, {"Retry-After": retry_after} if retry_after else None)


async def broken(scope, receive, send) -> None:
    """Breaks the connection off within an answer."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})


class Scripted:
    """Answers requests with these responses in turn, and keeps what was sent."""

    def __init__(self, *responses: ASGIApp) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._responses = list(responses)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            for answer in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{answer}.complete"})
            return
        request = Request(scope, receive)
        self.requests.append((request.url.path, dict(request.headers), await request.body()))
        response = self._responses.pop(0) if len(self._responses) > 1 else self._responses[0]
        await response(scope, receive, send)

    @property
    def idempotency_keys(self) -> list[str]:
        return [headers["idempotency-key"] for _, headers, _ in self.requests]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds the client waits between tries, which pass at once."""
    found: list[float] = []
    monkeypatch.setattr("app.client.time.sleep", found.append)
    return found


@pytest.fixture
def client_of():
    """A client of a server that answers as scripted."""
    with ExitStack() as stack:

        def make(app) -> Client:
            url = stack.enter_context(serving(lambda: app))
            return stack.enter_context(Client(url, API_KEY))

        yield make


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "lunch.jpg"
    path.write_bytes(coffee_jpeg())
    return path


def score(client: Client, *photos: Path, profile: str | None = None, parallel: int = 1) -> list[Outcome]:
    return client.score_all(photos, profile, parallel, done=lambda: None)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, "overloaded"),
        (503, "scorer_unavailable"),
        (504, "deadline_exceeded"),
        (409, "idempotency_in_flight"),
    ],
)
def test_a_retry_waits_as_told_and_carries_the_same_key(client_of, photo, waits, status, code):
    server = Scripted(problem(status, code, "2"), problem(status, code, "1"), JSONResponse(SCORED))
    (outcome,) = score(client_of(server), photo)
    assert outcome.result == SCORED
    assert outcome.error is None
    assert waits == [2.0, 1.0]
    assert len(server.requests) == 3
    assert len(set(server.idempotency_keys)) == 1
    assert {body for _, _, body in server.requests} == {photo.read_bytes()}


def test_every_photo_has_a_key_of_its_own(client_of, photo):
    server = Scripted(JSONResponse(SCORED))
    score(client_of(server), photo, photo, photo)
    assert len(set(server.idempotency_keys)) == 3


@pytest.mark.parametrize(
    "answer",
    [
        problem(409, "idempotency_key_reused"),
        problem(422, "image_truncated"),
        problem(413, "body_too_large"),
        problem(401, "unauthenticated"),
        problem(500, "internal"),
        problem(503, "results_unavailable"),
    ],
)
def test_what_a_retry_cannot_help_is_not_retried(client_of, photo, waits, answer):
    server = Scripted(answer)
    (outcome,) = score(client_of(server), photo)
    assert outcome.result is None
    assert outcome.error.startswith("In words. (")
    assert outcome.error.endswith(", request r1)")
    assert len(server.requests) == 1
    assert waits == []


def test_a_service_that_stays_full_is_given_up(client_of, photo, waits):
    server = Scripted(problem(429, "overloaded", "1"))
    (outcome,) = score(client_of(server), photo)
    assert outcome.error == "In words. (overloaded, request r1)"
    assert len(server.requests) == 5
    assert waits == [1.0] * 4


@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [("3600", 10.0), ("0", 0.0), ("-1", 0.0), ("0.5", 0.5), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0)],
)
def test_any_retry_after_is_understood_and_bounded(client_of, photo, waits, retry_after, waited):
    (outcome,) = score(client_of(Scripted(problem(503, "x", retry_after), JSONResponse(SCORED))), photo)
    assert outcome.result == SCORED
    assert waits == [waited]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_error_page_of_a_proxy_is_waited_out_with_the_same_key(client_of, photo, waits, status):
    page = PlainTextResponse("<h1>Oh</h1>", status)
    server = Scripted(page, page, JSONResponse(SCORED))
    (outcome,) = score(client_of(server), photo)
    assert outcome.result == SCORED
    assert waits == [0.25, 0.5]
    assert len(set(server.idempotency_keys)) == 1


def test_an_error_page_that_stays_is_told_by_its_number_and_waited_for_once(client_of, photo, waits):
    server = Scripted(PlainTextResponse("<h1>Bad Gateway</h1>", 502))
    outcomes = score(client_of(server), photo, photo)
    assert [outcome.error for outcome in outcomes] == ["HTTP 502"] * 2
    assert not any(outcome.unanswered for outcome in outcomes)
    assert waits == list(PATIENCE)
    assert len(server.requests) == len(PATIENCE) + 2


def test_a_4xx_of_a_proxy_is_told_at_once(client_of, photo, waits):
    (outcome,) = score(client_of(Scripted(PlainTextResponse("<h1>No</h1>", 403))), photo)
    assert (outcome.error, waits) == ("HTTP 403", [])


@pytest.mark.parametrize("answer", [PlainTextResponse("hello"), JSONResponse([1])])
def test_another_server_is_recognised(client_of, photo, answer):
    client = client_of(Scripted(answer))
    with pytest.raises(ServiceError, match="is not FoodDX"):
        client.models()
    (outcome,) = score(client, photo)
    assert outcome.unanswered
    assert outcome.error.endswith("is not FoodDX")


def test_a_photo_goes_as_it_is_and_without_its_name(client_of, photo):
    server = Scripted(JSONResponse(SCORED))
    client = client_of(server)
    score(client, photo)
    score(client, photo, profile='{"user": "ana"}')
    (path, headers, raw), (_, _, form) = server.requests
    assert path == "/v1/scores"
    assert headers["authorization"] == f"Bearer {API_KEY}"
    assert raw == photo.read_bytes()
    assert photo.read_bytes() in form
    assert b'{"user": "ana"}' in form
    assert b"lunch" not in form


def test_outcomes_keep_the_order_of_the_photos(make_local, tmp_path):
    photos = [tmp_path / f"{number}.jpg" for number in range(6)]
    for number, path in enumerate(photos):
        path.write_bytes(coffee_jpeg(64, 48, quality=70 + number) if number != 2 else b"no photo")
    done = []
    with serving(lambda: create_app(make_local().service)) as url, Client(url, API_KEY) as client:
        outcomes = client.score_all(photos, None, 3, done=lambda: done.append(1))
    assert [outcome.photo for outcome in outcomes] == photos
    assert len(done) == 6
    sizes = [outcome.result and outcome.result["image"]["bytes"] for outcome in outcomes]
    assert sizes == [None if path.name == "2.jpg" else path.stat().st_size for path in photos]
    assert "unsupported_media_type" in outcomes[2].error


def test_a_photo_over_the_cap_is_told_so(make_local, photo):
    app = lambda: create_app(make_local(max_body_bytes=1024).service)  # noqa: E731
    with serving(app) as url, Client(url, API_KEY) as client:
        (outcome,) = score(client, photo)
    assert "body_too_large" in outcome.error


def test_a_photo_that_cannot_be_read_is_told_and_the_others_are_scored(client_of, photo, tmp_path):
    missing, good = score(client_of(Scripted(JSONResponse(SCORED))), tmp_path / "missing.jpg", photo)
    assert missing.error == "cannot be read: No such file or directory"
    assert missing.milliseconds is None
    assert good.result == SCORED


def test_a_service_that_is_not_there_is_waited_for_once(photo, waits):
    with Client("http://127.0.0.1:9", API_KEY) as client:
        outcomes = score(client, photo, photo)
        with pytest.raises(ServiceError, match="is it running"):
            client.models()
    assert all(outcome.unanswered and "is it running" in outcome.error for outcome in outcomes)
    assert waits == list(PATIENCE)


def test_patience_outlasts_the_restart_of_a_replica():
    assert list(PATIENCE) == sorted(PATIENCE)
    assert 7 < sum(PATIENCE) < 9


def test_a_connection_that_breaks_is_tried_again_with_the_same_key(client_of, photo, waits):
    server = Scripted(broken, broken, JSONResponse(SCORED))
    (outcome,) = score(client_of(server), photo)
    assert outcome.result == SCORED
    assert waits == [0.25, 0.5]
    assert len(set(server.idempotency_keys)) == 1


def test_a_photo_without_an_answer_costs_no_other_its_result(client_of, photo, waits):
    server = Scripted(JSONResponse(SCORED), *[broken] * (len(PATIENCE) + 1), JSONResponse(SCORED))
    first, silent, last = score(client_of(server), photo, photo, photo)
    assert first.result == last.result == SCORED
    assert silent.unanswered
    assert silent.error.startswith("no answer from http://127.0.0.1:")
    assert (silent.result, silent.milliseconds) == (None, None)


def test_a_service_that_is_back_is_waited_for_again(client_of, photo, waits):
    away = [broken] * (len(PATIENCE) + 1)
    server = Scripted(*away, JSONResponse(SCORED), broken, JSONResponse(SCORED))
    assert [bool(o.result) for o in score(client_of(server), photo, photo, photo)] == [False, True, True]
    assert waits == [*PATIENCE, PATIENCE[0]]


def test_only_a_service_elsewhere_is_asked_through_a_proxy(client_of, photo, monkeypatch):
    proxy, server = Scripted(JSONResponse({"by": "proxy"})), Scripted(JSONResponse(SCORED))
    address = str(client_of(proxy)._http.base_url)
    here = str(client_of(server)._http.base_url)
    for name in ("NO_PROXY", "ALL_PROXY", "HTTP_PROXY", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", address)
    for url, result in (
        (here, SCORED),
        (here.replace("127.0.0.1", "localhost"), SCORED),
        ("http://fooddx.invalid", {"by": "proxy"}),
    ):
        with Client(url, API_KEY) as client:
            assert score(client, photo)[0].result == result


@pytest.mark.parametrize("url", ["", "fooddx", "ftp://127.0.0.1", "http://a:b", "127.0.0.1:8000"])
def test_a_wrong_url_is_told_at_once(url, waits):
    with pytest.raises(ServiceError, match="not a"):
        Client(url, API_KEY)
    assert waits == []


def test_a_wrong_key_is_told(make_local, photo):
    with pytest.raises(ServiceError, match="no key has"):
        Client("http://127.0.0.1:9", "ключ")
    with serving(lambda: create_app(make_local().service)) as url, Client(url, "fdx_wrong") as client:
        assert "unauthenticated" in score(client, photo)[0].error
        with pytest.raises(ServiceError, match="unauthenticated"):
            client.models()


def test_the_key_is_this_machine_s_where_none_is_given(client_of, photo, tmp_path, monkeypatch):
    server = Scripted(JSONResponse(SCORED))
    url = str(client_of(server)._http.base_url)
    monkeypatch.delenv("FOODDX_API_KEY", raising=False)
    monkeypatch.setenv("FOODDX_DATA_DIR", str(tmp_path))
    with pytest.raises(ServiceError, match="no API key"):
        Client(url)
    (tmp_path / "api_key").write_text("fdx_in-the-data-folder-0123456789\n")
    with Client(url) as client:
        score(client, photo)
    monkeypatch.setenv("FOODDX_API_KEY", "fdx_in-the-environment-0123456789")
    with Client(url) as client:
        score(client, photo)
    keys = [headers["authorization"] for _, headers, _ in server.requests]
    assert keys == ["Bearer fdx_in-the-data-folder-0123456789", "Bearer fdx_in-the-environment-0123456789"]


# Labels


class Reviewed:
    """A client of the real service, where photos are scored and reviewed; ``asked`` are the paths it asks."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.asked: list[str] = []
        client._http.event_hooks["request"].append(lambda request: self.asked.append(request.url.path))

    def result(self, number: int, **review) -> dict:
        """Score a photo; another number, another photo. Review it, if there is one."""
        photo = self.folder / f"{number}.jpg"
        photo.write_bytes(coffee_jpeg(64, 48, quality=60 + number))
        (outcome,) = score(self.client, photo)
        assert outcome.result, outcome.error
        if review:
            path = f"/v1/scores/{outcome.result['id']}/review"
            self.client._http.post(path, json=review).raise_for_status()
        return outcome.result


@pytest.fixture
def reviewed(client_of, make_local, tmp_path) -> Reviewed:
    made = []

    async def service(scope, receive, send) -> None:
        # Made at the first message, inside the loop that will run it.
        if not made:
            made.append(create_app(make_local().service))
        await made[0](scope, receive, send)

    return Reviewed(client_of(service), tmp_path)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def test_reviews_become_examples_to_train_on(reviewed, tmp_path):
    first = reviewed.result(1, score=2, dish="flat white", comment="=1+1", reviewer="dr-lee")
    reviewed.result(2)
    third = reviewed.result(3, score=5)
    folder = tmp_path / "new" / "labels"
    assert reviewed.client.export_labels(folder, photos=True) == 2
    examples = read_examples(folder / "labels.csv")
    assert [(example.label, example.score) for example in examples] == [("flat_white", 2), (None, 5)]
    for example, result in zip(examples, (first, third), strict=True):
        assert example.path == folder / "photos" / f"{result['image']['sha256']}.jpeg"
        assert hashlib.sha256(example.path.read_bytes()).hexdigest() == result["image"]["sha256"]
    assert [row["comment"] for row in table(folder)] == ["'=1+1", ""]


def test_without_photos_labels_name_the_keys_of_the_store(reviewed, tmp_path):
    result = reviewed.result(1, score=2)
    assert reviewed.client.export_labels(tmp_path / "out", photos=False) == 1
    assert [row["image"] for row in table(tmp_path / "out")] == [result["image"]["key"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["labels.csv"]


def test_labels_are_fetched_page_by_page_and_each_counts_once(reviewed, tmp_path, monkeypatch):
    results = [reviewed.result(number, score=1 + number) for number in range(3)]
    send, page = Client._send, 0

    def in_small_pages(self, method, path, *, params, **options):
        """Two labels a page; the first one is reviewed again once the first page is read."""
        nonlocal page
        page += 1
        if page == 2:
            self._http.post(f"/v1/scores/{results[0]['id']}/review", json={"score": 4})
        return send(self, method, path, params={**params, "limit": 2}, **options)

    monkeypatch.setattr(Client, "_send", in_small_pages)
    assert reviewed.client.export_labels(tmp_path / "out", photos=False) == 3
    assert page == 2
    assert {row["id"]: row["score"] for row in table(tmp_path / "out")} == {
        result["id"]: score for result, score in zip(results, "423", strict=True)
    }


def test_a_photo_that_is_there_is_not_fetched_again(reviewed, tmp_path):
    results = [reviewed.result(number, score=3) for number in (1, 2, 3)]
    reviewed.client.export_labels(tmp_path / "out", photos=True)
    before = table(tmp_path / "out")
    kept, damaged, lost = ((tmp_path / "out" / row["image"]) for row in before)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    lost.unlink()
    reviewed.asked.clear()
    assert reviewed.client.export_labels(tmp_path / "out", photos=True) == 3
    asked = {path.split("/")[3] for path in reviewed.asked if path.endswith("/image")}
    assert asked == {results[1]["id"], results[2]["id"]}
    assert table(tmp_path / "out") == before
    photos = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept.parent.iterdir()}
    assert photos == {f"{sha256}.jpeg": sha256 for sha256 in photos.values()}


def test_what_is_deleted_before_its_photo_came_is_left_out(reviewed, tmp_path, monkeypatch):
    results = [reviewed.result(number, score=3) for number in (1, 2)]
    labels = Client._labels

    def and_then_deleted(self):
        found = labels(self)
        self._http.delete(f"/v1/scores/{results[0]['id']}").raise_for_status()
        return found

    monkeypatch.setattr(Client, "_labels", and_then_deleted)
    assert reviewed.client.export_labels(tmp_path / "out", photos=True) == 1
    assert [row["id"] for row in table(tmp_path / "out")] == [results[1]["id"]]


PHOTO = b"a photo"
SHA256 = hashlib.sha256(PHOTO).hexdigest()


def page_of(sha256: str = SHA256, link: str | None = None) -> Response:
    text = f"image,score,class,id,sha256\r\nkey,3,,1,{sha256}\r\n"
    return Response(text, media_type="text/csv", headers={"Link": link} if link else None)


@pytest.mark.parametrize(
    "photo",
    [
        problem(503, "images_unavailable"),
        Response(b"another photo", media_type="image/jpeg"),
        Response(PHOTO, media_type="text/html"),
        Response(PHOTO, media_type="image/../../jpeg"),
        PlainTextResponse("<h1>Not here</h1>", 404),
    ],
)
def test_an_error_leaves_the_table_of_before(client_of, tmp_path, photo):
    (tmp_path / "labels.csv").write_text("of before")
    with pytest.raises(ServiceError):
        client_of(Scripted(page_of(), photo)).export_labels(tmp_path, photos=True)
    assert (tmp_path / "labels.csv").read_text() == "of before"
    assert list((tmp_path / "photos").iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("hello"),
        JSONResponse({"items": []}),
        page_of("../../etc/passwd"),
        page_of(SHA256 + ',"'),
        page_of(SHA256 + ",more"),
        Response("id,sha256,image\r\n1\r\n", media_type="text/csv"),
        page_of(link='<?cursor=7>; rel="next"'),  # over and over
    ],
)
def test_what_is_no_table_of_labels_is_told(client_of, tmp_path, answer):
    with pytest.raises(ServiceError, match="is not FoodDX"):
        client_of(Scripted(answer)).export_labels(tmp_path / "out", photos=True)
    assert not (tmp_path / "out").exists()


def test_a_table_that_cannot_be_written_leaves_nothing_behind(client_of, tmp_path):
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        client_of(Scripted(page_of())).export_labels(tmp_path, photos=False)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_a_service_without_labels_is_told_in_its_words(client_of, tmp_path):
    with pytest.raises(ServiceError, match="not_found"):
        client_of(Scripted(problem(404, "not_found"))).export_labels(tmp_path, photos=False)


def test_the_next_page_is_asked_of_the_same_service(client_of, tmp_path):
    elsewhere = Scripted(page_of())
    address = f"{client_of(elsewhere)._http.base_url}/v1/labels?cursor=7"
    server = Scripted(page_of(link=f'<{address}>; rel="next"'), page_of())
    assert client_of(server).export_labels(tmp_path, photos=False) == 1
    assert [path for path, _, _ in server.requests] == ["/v1/labels"] * 2
    assert elsewhere.requests == []


def test_labels_are_waited_for_as_photos_are(client_of, tmp_path, waits):
    server = Scripted(problem(503, "results_unavailable", "2"), page_of())
    assert client_of(server).export_labels(tmp_path, photos=False) == 1
    assert waits == [2.0]
