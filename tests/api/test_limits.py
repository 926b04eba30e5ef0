"""A tenant with limits: every answer says what is left, and beyond is one clear 429."""

import pytest

from app.stores.tenants import TenantAdmin
from app.tenants.tenants import Limits
from tests.api.conftest import OTHER_KEY, is_problem
from tests.photos import coffee_jpeg

OTHER = {"Authorization": f"Bearer {OTHER_KEY}"}


@pytest.fixture
def limited(make_api, store, request):
    """A service of two tenants, of which the other may make three requests a day."""
    tenant = f"limited-{abs(hash(request.node.nodeid)):x}"
    api = make_api(keys={OTHER_KEY: tenant})
    with TenantAdmin(store.url) as admin:
        admin.change(tenant, lambda found: found.model_copy(update={"limits": Limits(per_day=3)}))
    return api


def rate_limit(response):
    return [response.headers.get(f"ratelimit-{name}") for name in ("limit", "remaining")]


def test_every_answer_says_what_is_left(limited):
    assert rate_limit(limited.get("/v1/models", headers=OTHER)) == ["3", "2"]
    found = limited.post("/v1/scores", content=coffee_jpeg(), headers=OTHER)
    assert (found.status_code, rate_limit(found)) == (200, ["3", "1"])
    missing = limited.get("/v1/no-such-path", headers=OTHER)
    assert missing.status_code == 404
    assert "ratelimit-limit" not in missing.headers, "what reaches no route is not counted"
    assert 0 < int(found.headers["ratelimit-reset"]) <= 86_400


def test_beyond_it_nothing_is_read_or_done(limited):
    for _ in range(3):
        limited.get("/v1/models", headers=OTHER)

    async def body():
        raise AssertionError("the body was read")
        yield b""

    refused = limited.post("/v1/scores", content=body(), headers=OTHER)
    is_problem(refused, 429, "rate_limited")
    assert rate_limit(refused) == ["3", "0"]
    assert refused.headers["retry-after"] == refused.headers["ratelimit-reset"]
    is_problem(limited.get("/v1/models", headers=OTHER), 429, "rate_limited")


def test_others_and_what_needs_no_key_are_not_limited(limited):
    for _ in range(5):
        answer = limited.get("/v1/models")
        assert answer.status_code == 200
        assert "ratelimit-limit" not in answer.headers
        assert limited.get("/healthz").status_code == 200
    for _ in range(5):
        is_problem(limited.get("/v1/models", headers={"Authorization": "Bearer x"}), 401, "unauthenticated")
    assert limited.get("/v1/models", headers=OTHER).status_code == 200
