"""Who may call what: no key, no answer; and one tenant never sees what is another's."""

import pytest
from fastapi.routing import APIRoute

from app.api.routes import router
from tests.api.conftest import OTHER_KEY, is_problem
from tests.conftest import API_KEY
from tests.photos import coffee_jpeg

RESULT_ID = "0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11"
OTHER = {"Authorization": f"Bearer {OTHER_KEY}"}
CALLS = [
    (method, route.path.format(result_id=RESULT_ID, user="ana"))
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
]
WRONG = {
    "none": {"Authorization": ""},
    "no scheme": {"Authorization": API_KEY},
    "no key": {"Authorization": "Bearer "},
    "another scheme": {"Authorization": f"Basic {API_KEY}"},
    "a wrong key": {"Authorization": "Bearer fdx_wrong"},
    "a key cut short": {"Authorization": f"Bearer {API_KEY[:-1]}"},
    "a key and more": {"Authorization": f"Bearer {API_KEY}x"},
    "upper case": {"Authorization": f"Bearer {API_KEY.upper()}"},
    "a list": {"Authorization": f"Bearer {API_KEY}, Bearer {API_KEY}"},
    "not ASCII": [(b"Authorization", b"Bearer \xff\xfe")],
}


def test_every_route_of_the_contract_is_tried():
    assert len(CALLS) >= 10
    assert all(path.startswith("/v1/") for _, path in CALLS)


def test_every_route_of_the_contract_says_that_it_needs_a_key(api):
    for method, path in CALLS:
        assert api.operation(method, path)["security"] == [{"apiKey": []}]


@pytest.mark.parametrize("wrong", WRONG)
def test_no_route_answers_without_a_key(api, wrong):
    for method, path in CALLS:
        # A query, a body and headers that are wrong too: the key is asked for first.
        response = api.request(
            method, path, params={"limit": "x"}, content=b"{", headers=[*dict(WRONG[wrong]).items()]
        )
        is_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"] == 'Bearer realm="fooddx"'


def test_no_body_is_read_without_a_key(api):
    async def body():
        raise AssertionError("the body was read")
        yield b""

    for method, path in CALLS:
        response = api.request(method, path, content=body(), headers={"Authorization": "Bearer no"})
        is_problem(response, 401, "unauthenticated")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_name_of_the_scheme_may_be_in_any_case(api, scheme):
    assert api.get("/v1/models", headers={"Authorization": f"{scheme} {API_KEY}"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/docs", "/openapi.json", "/static/app.js"])
def test_health_and_pages_need_no_key(api, path):
    assert api.get(path, headers={"Authorization": ""}).status_code == 200


def test_a_refusal_does_not_repeat_the_key(api):
    response = api.get("/v1/models", headers={"Authorization": "Bearer fdx_mistyped"})
    assert "mistyped" not in response.text + str(response.headers)


# Two tenants


@pytest.fixture
def two(make_api, make_local, request):
    """A service of two tenants; the first has a photo, in a diary and in the review queue."""
    api = make_api(keys={OTHER_KEY: f"other-{abs(hash(request.node.nodeid)):x}"})
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"review": 0.0})
    return api


@pytest.fixture
def owned(two):
    return two.result(coffee_jpeg(), '{"user": "ana"}')


def test_another_tenant_s_result_is_not_found(two, owned):
    path = f"/v1/scores/{owned['id']}"
    for method, url, body in (
        ("GET", path, None),
        ("GET", f"{path}/image", None),
        ("DELETE", path, None),
        ("POST", f"{path}/review", {"score": 1}),
    ):
        refused = is_problem(two.request(method, url, json=body, headers=OTHER), 404, "not_found")
        unknown = url.replace(owned["id"], RESULT_ID)
        told = is_problem(two.request(method, unknown, json=body, headers=OTHER), 404, "not_found")
        assert refused.detail == told.detail, "the answer must not tell that the result exists"
    assert two.get(path).json() == owned
    assert two.get(f"{path}/image").status_code == 200


def test_another_tenant_s_user_has_another_diary(two, owned):
    assert two.get("/v1/scores", params={"user": "ana"}, headers=OTHER).json()["items"] == []
    assert two.delete("/v1/users/ana", headers=OTHER).status_code == 204
    assert two.get("/v1/scores", params={"user": "ana"}).json()["items"] == [owned]


def test_another_tenant_s_photos_are_not_to_be_reviewed(two, owned):
    assert two.get("/v1/reviews", headers=OTHER).json()["items"] == []
    assert two.get("/v1/reviews").json()["items"] == [owned]


def test_a_photo_that_another_tenant_has_is_new(two, owned):
    theirs = two.score(coffee_jpeg(), OTHER).json()
    assert theirs["duplicate_of"] is None
    assert two.local.scorer.calls == 2
    assert theirs["image"]["key"] != owned["image"]["key"]
    assert two.score(coffee_jpeg(), OTHER).json()["duplicate_of"] == theirs["id"]

    assert two.delete(f"/v1/scores/{owned['id']}").status_code == 204
    assert two.get(f"/v1/scores/{theirs['id']}/image", headers=OTHER).content == coffee_jpeg()


def test_another_tenant_may_use_the_same_idempotency_key(two):
    ours = two.score(coffee_jpeg(), {"Idempotency-Key": "k"}).json()
    theirs = two.score(coffee_jpeg(quality=80), OTHER | {"Idempotency-Key": "k"}).json()
    assert theirs["id"] != ours["id"]
    assert theirs["image"]["sha256"] != ours["image"]["sha256"]
