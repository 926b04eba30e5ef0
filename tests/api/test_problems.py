"""One shape for every error: each class of the tree, what nobody planned for, and paths that do not exist."""

import inspect
import logging
import re

import pytest

from app import errors
from app.api.problems import problem
from app.errors import FoodDXError, Overloaded, by_code, tree
from tests.api.conftest import check_problem, is_problem
from tests.photos import coffee_jpeg

# Clients branch on these: a code never changes its meaning.
CODES = {
    "internal": (500, False),
    "invalid_request": (400, False),
    "unauthenticated": (401, False),
    "not_found": (404, False),
    "method_not_allowed": (405, False),
    "body_timeout": (408, True),
    "idempotency_key_reused": (409, False),
    "idempotency_in_flight": (409, True),
    "already_decided": (409, False),
    "image_conflict": (409, False),
    "body_too_large": (413, False),
    "unsupported_media_type": (415, False),
    "invalid_field": (422, False),
    "image_unreadable": (422, False),
    "image_empty": (422, False),
    "image_truncated": (422, False),
    "image_animated": (422, False),
    "image_too_many_pixels": (422, False),
    "image_too_few_pixels": (422, False),
    "overloaded": (429, True),
    "rate_limited": (429, True),
    "needs_object_storage": (501, False),
    "results_unavailable": (503, True),
    "images_unavailable": (503, True),
    "credentials_unavailable": (503, True),
    "queue_unavailable": (503, True),
    "scorer_unavailable": (503, True),
    "deadline_exceeded": (504, True),
}
HIDDEN = "postgres://user:hunter2@/etc/secret"


def test_the_codes_are_those_that_clients_know():
    assert {error.code: (error.status, error.retryable) for error in tree()} == CODES
    assert len(tree()) == len(CODES), "two classes share a code"


def test_the_drawing_of_the_tree_is_the_tree():
    lines = re.findall(
        r"^ {4}([│├└─ ]*)(\w+) +(\d{3}) (\w+)( +retry)?$", inspect.getdoc(errors), re.MULTILINE
    )
    drawn = [
        (len(indent) // 4, name, int(status), code, bool(retry))
        for indent, name, status, code, retry in lines
    ]
    depth = len(FoodDXError.__mro__)
    assert drawn == [
        (len(error.__mro__) - depth, error.__name__, error.status, error.code, error.retryable)
        for error in tree()
    ]


@pytest.fixture
def failing(api):
    """The service with a route that raises any error by its code."""

    async def fail(code: str, detail: str = "", retry_after_s: float | None = None) -> None:
        raise by_code(code, detail, retry_after_s=retry_after_s)

    api.app.add_api_route("/fail/{code}", fail, include_in_schema=False)
    return api


@pytest.mark.parametrize("error", tree(), ids=lambda error: error.__name__)
def test_every_error_has_the_one_shape(failing, error):
    response = failing.get(f"/fail/{error.code}", headers={"X-Request-Id": "trace-1"})
    assert response.status_code == error.status
    assert response.json() == {
        "type": f"urn:fooddx:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.title,
        "code": error.code,
        "request_id": "trace-1",
    }
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "trace-1"
    assert response.headers.get("retry-after") == ("1" if error.retryable else None)
    assert response.headers.get("www-authenticate") == (
        'Bearer realm="fooddx"' if error.status == 401 else None
    )
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert failing.local.meter.total("fooddx_rejected_total", code=error.code) == 1


def test_the_detail_of_a_problem_is_the_error_s(failing):
    response = failing.get("/fail/not_found", params={"detail": "There is no such page."})
    assert is_problem(response, 404, "not_found").detail == "There is no such page."


@pytest.mark.parametrize(("wait_s", "header"), [(0, "1"), (0.2, "1"), (1, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_in_whole_seconds_and_never_too_early(wait_s, header):
    assert problem(Overloaded(retry_after_s=wait_s), "-").headers["retry-after"] == header


# What nobody planned for


@pytest.fixture
def logged(caplog, monkeypatch):
    """The service's log, which Ray takes off the root logger once it is imported."""
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_an_unplanned_error_is_logged_and_not_told(api, logged):
    async def fail() -> None:
        raise RuntimeError(HIDDEN)

    api.app.add_api_route("/fail", fail, include_in_schema=False)
    response = api.get("/fail", headers={"X-Request-Id": "trace-2"})
    told = is_problem(response, 500, "internal")
    assert (told.detail, told.request_id) == ("Something went wrong on our side", "trace-2")
    assert "retry-after" not in response.headers
    assert not any(
        word in response.text for word in ("hunter2", "secret", "RuntimeError", "Traceback", ".py")
    )

    (record,) = [record for record in logged.records if record.levelno >= logging.ERROR]
    assert record.request_id == "trace-2"
    assert HIDDEN in str(record.exc_info[1])
    assert api.local.meter.total("fooddx_rejected_total", code="internal") == 1


def test_an_unplanned_error_in_the_scorer_leaves_nothing_behind(api, logged):
    async def fail(_job):
        raise ZeroDivisionError(HIDDEN)

    api.local.scorer.before = fail
    is_problem(api.score(coffee_jpeg()), 500, "internal")
    assert api.stored() == []
    assert api.local.service.admission.in_flight == 0
    api.local.scorer.before = None
    assert api.result(coffee_jpeg())["duplicate_of"] is None
    assert HIDDEN in str(logged.records[0].exc_info[1])


def test_an_answer_that_breaks_off_does_not_look_whole(api):
    async def fail(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    api.app.mount("/fail", fail)
    with pytest.raises(RuntimeError):  # for the server, which closes the connection
        api.asgi("GET", "/fail/", [])


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/v1", "/v1/", "/v1/nothing", "/v1/models/", "/v1/scores/", "/v2/scores", "/static",
        "/static/nothing.js", "/static/../main.py", "/static/%2e%2e/main.py", "/static/a%00b",
        "/static/" + "x" * 300, "/docs/", "/docs/assets/", "/healthz/", "/redoc", "/v1/users/a%2Fb",
        "/%f0%9f%8d%95",
    ],
)  # fmt: skip
def test_a_path_that_does_not_exist_is_a_problem(api, path):
    is_problem(api.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/scores", {"GET", "POST"}),
        ("GET", "/v1/uploads", {"POST"}),
        ("DELETE", "/v1/models", {"GET"}),
        ("GET", "/v1/users/ana", {"DELETE"}),
        ("POST", "/healthz", {"GET"}),
        ("DELETE", "/", {"GET"}),
        ("PATCH", "/docs", {"GET"}),
        ("POST", "/static/app.js", None),
        ("TRACE", "/v1/models", {"GET"}),
    ],
)
def test_a_method_that_is_not_offered_is_a_problem_and_names_those_that_are(api, method, path, allowed):
    response = api.request(method, path)
    is_problem(response, 405, "method_not_allowed")
    if allowed:
        named = {name.strip() for name in response.headers["allow"].split(",")}
        assert named <= allowed
        assert named


def test_check_problem_notices_what_is_no_problem(api):
    with pytest.raises(AssertionError):
        check_problem(api.get("/healthz"))
