"""One tenant can never read, list, guess, dedupe against or delete what is another's: every call is tried.

Two tenants, one named as the other and a little more, have photos, results, reviews and uploads of their own.
What one tries with the other's ids, keys and names must be answered as if nobody had them, and must leave
everything of the other as it was, wherever the photos are: in a folder, in one bucket, in a bucket each, or
in a bucket within the other's.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis
from fastapi.routing import APIRoute

from app.api.routes import router
from app.schemas import Job, Profile
from app.stores.embedded import EmbeddedStore
from app.stores.images import ImageStore
from app.stores.s3 import S3Images, S3Limits
from app.stores.tenants import TenantAdmin
from app.tenants.places import upload_key
from app.tenants.tenants import Tenant as TenantRecord
from models.manifest import load_manifest
from models.registry import DEFAULT
from tests.api.conftest import Api, contract, is_problem
from tests.conftest import MODEL
from tests.photos import coffee_jpeg
from tests.stores.faults import emulated_s3, make_bucket

# For what is not about time: an overloaded machine must not look like a slow store.
PATIENT = S3Limits(connect_s=20, attempt_s=20, total_s=60, ready_s=60)
LAYOUTS = ["a folder", "one bucket", "a bucket each", "one own store", "a store in the store"]
UPLOAD = {"media_type": "image/jpeg", "bytes": 100_000}
ROUTES = {
    (method, route.path) for route in router.routes if isinstance(route, APIRoute) for method in route.methods
}


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with emulated_s3() as url:
        yield url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, moto: str) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    monkeypatch.setattr(S3Images.__init__, "__defaults__", (None, PATIENT))


@dataclass(frozen=True)
class Names:
    """Everything by which a tenant's things can be asked for."""

    reviewed: str
    unsure: str
    waiting: str
    user: str
    photo: str
    upload: str

    def near(self) -> Names:
        """The like that nobody has. Ids are ordered by time, and these come next to the real ones."""
        return Names(*(f"{name[:-1]}{'1' if name[-1] == '0' else '0'}" for name in astuple(self)))

    def veiled(self, text: str) -> str:
        """``text`` without them: what remains tells whether there is something behind a name."""
        for number, name in enumerate(astuple(self)):
            text = text.replace(name, f"<{number}>")
        return text


class Side:
    """One tenant, and what it has."""

    def __init__(self, api: Api, store: EmbeddedStore, tenant: str, api_key: str, number: int) -> None:
        self.api, self.store, self.tenant = api, store, tenant
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._number = number
        self.secret = f"words in {tenant}."

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        headers = self._headers | options.pop("headers", {})
        return self.api.request(method, url, headers=headers, **options)

    def score(self, data: bytes, user: str | None = None, **headers: str) -> dict[str, Any]:
        """The result of a photo."""
        profile = {"data": {"profile": f'{{"user": "{user}"}}'}} if user else {}
        answer = self.ask("POST", "/v1/scores", files={"image": data}, headers=headers, **profile)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def settle(self) -> Side:
        """Own one of everything: a reviewed result, a doubtful one, a photo that waits."""
        user = f"{self.tenant}.ana"
        reviewed = self.score(coffee_jpeg(240 + self._number), user)
        unsure = self.score(coffee_jpeg(260 + self._number), user)
        words = {"score": 3, "dish": "soup", "comment": self.secret}
        assert self.ask("POST", f"/v1/scores/{reviewed['id']}/review", json=words).is_success
        waiting = str(uuid.UUID(int=uuid.UUID(unsure["id"]).int ^ 2**20))
        upload = upload_key(self.tenant, waiting)
        self.api.run(self.images().put(upload, coffee_jpeg(280 + self._number)))
        job = Job(profile=Profile(user=user)).model_dump_json().encode()
        self.api.run(self.api.local.service.results.put_job(self.tenant, waiting, job))
        photo = reviewed["image"]["key"]
        self.names = Names(reviewed["id"], unsure["id"], waiting, user, photo, upload)
        return self

    def images(self) -> ImageStore:
        return self.api.run(self.api.local.service.images(self.tenant))

    def kept(self) -> list[Any]:
        """All that is kept of this tenant, to the byte."""
        names, images = self.names, self.images()
        objects = [self.api.run(images.fetch(key)) for key in (names.photo, names.upload)]
        with redis.Redis.from_url(self.store.url) as client:
            found = sorted(client.scan_iter(f"fooddx:{{{self.tenant}}}:*", 1000))
            return [*objects, *((key, client.dump(key)) for key in found)]


@pytest.fixture(params=LAYOUTS)
def two(
    request: pytest.FixtureRequest, make_api: Callable[..., Api], store: EmbeddedStore, moto: str
) -> tuple[Side, Side]:
    """Two tenants on one service; in ``a store in the store`` the second's photos lie amid the first's."""
    layout = request.param
    shared, own, other = (f"s3://{make_bucket(moto, f'b-{uuid.uuid4().hex}')}/pre" for _ in range(3))
    stores = {
        "a bucket each": (own, other),
        "one own store": (own, own),
        "a store in the store": ("", f"{shared}/in"),
    }
    api = make_api(**({} if layout == "a folder" else {"store": shared}))
    judges = api.local.service.judges
    judges.serving = judges.serving.adjusted({"review": 0.0})  # never sure of a score
    name = f"t{uuid.uuid4().hex[:12]}"
    ids, keys = (name, f"{name}-b"), (f"fdx_{uuid.uuid4().hex}", f"fdx_{uuid.uuid4().hex}")
    with TenantAdmin(store.url) as admin:
        for tenant, key, place in zip(ids, keys, stores.get(layout, ("", "")), strict=True):
            admin.put(TenantRecord.first(key, tenant).model_copy(update={"store": place}))
    api.run(api.local.service.access.refresh())
    one, two = (Side(api, store, *which, number) for number, which in enumerate(zip(ids, keys, strict=True)))
    return one.settle(), two.settle()


# For what has nothing to do with where the photos are.
in_a_folder = pytest.mark.parametrize("two", ["a folder"], indirect=True)
Attempt = tuple[str, dict[str, Any]]


def by_id(path: str, **options: Any) -> Callable[[Names], list[Attempt]]:
    return lambda names: [
        (path.format(result_id=result_id), options)
        for result_id in (names.reviewed, names.unsure, names.waiting)
    ]


def pages(path: str, **more: str) -> Callable[[Names], list[Attempt]]:
    """A list, from its beginning and from where the other's things are."""
    return lambda names: [
        (path, {"params": more}),
        *((path, {"params": more | {"cursor": c}}) for c in (names.reviewed, names.unsure, names.waiting)),
    ]


# What one may try with the other's names, by route. A route without a case fails below.
ATTEMPTS: dict[tuple[str, str], Callable[[Names], list[Attempt]]] = {
    ("POST", "/v1/scores"): lambda names: [
        ("/v1/scores", {"json": {"key": key}, "headers": headers})
        for key in (names.photo, names.upload)
        for headers in ({}, {"Prefer": "respond-async"}, {"Idempotency-Key": names.reviewed})
    ],
    ("GET", "/v1/scores"): lambda names: pages("/v1/scores", user=names.user)(names),
    ("GET", "/v1/scores/{result_id}"): by_id("/v1/scores/{result_id}"),
    ("GET", "/v1/scores/{result_id}/image"): by_id("/v1/scores/{result_id}/image"),
    ("DELETE", "/v1/scores/{result_id}"): by_id("/v1/scores/{result_id}"),
    ("DELETE", "/v1/users/{user}"): lambda names: [(f"/v1/users/{names.user}", {})],
    ("GET", "/v1/reviews"): pages("/v1/reviews"),
    ("POST", "/v1/scores/{result_id}/review"): by_id("/v1/scores/{result_id}/review", json={"score": 1}),
    ("GET", "/v1/labels"): lambda _: [
        ("/v1/labels", {"params": {"limit": 1}}),
        ("/v1/labels", {"headers": {"Accept": "text/csv"}}),
    ],
    ("POST", "/v1/uploads"): lambda names: [
        ("/v1/uploads", {"json": UPLOAD | {field: name}})
        for field, name in (("key", names.upload), ("id", names.waiting), ("tenant", names.user))
    ],
    ("GET", "/v1/models"): lambda _: [("/v1/models", {})],
}  # fmt: skip


def test_every_route_of_the_contract_has_a_case():
    assert set(ATTEMPTS) == ROUTES
    without_a_tenant = {path for path in contract()["paths"] if not path.startswith("/v1/")}
    assert without_a_tenant == {"/healthz", "/readyz"}


def test_what_is_another_s_might_as_well_not_exist(two):
    for me, other in (two, two[::-1]):
        mine, others = me.kept(), other.kept()
        for (method, path), attempts in ATTEMPTS.items():
            real, unreal = (
                [_said(me.ask(method, url, **options), names) for url, options in attempts(names)]
                for names in (other.names, other.names.near())
            )
            assert real == unreal, (method, path)
            assert not any(other.secret in text for _, text in real), (method, path)
            assert (me.kept(), other.kept()) == (mine, others), (method, path)


def _said(answer: httpx.Response, names: Names) -> tuple[int, str]:
    """An answer, but for the names in it and what no two answers share."""
    request_id = answer.headers["x-request-id"]
    return answer.status_code, names.veiled(answer.text).replace(request_id, "")


def tricks(me: Side, key: str) -> list[str]:
    """Ways to write another's key that a store, a proxy or a careless comparison might take for it."""
    ours, whole = me.tenant, f"pre/{key}"
    return [
        f"/{key}", f"//{key}", f"./{key}", f"../{key}", f"in/{key}", f"{key}/", f"{key}/.", f" {key}",
        f"{key} ", whole, f"../{whole}", f"s3://{key}", f"{key}?versionId=null", f"{key}#", f"{key}\0",
        f"\ufeff{key}", key.upper(), key.replace("/", "//"), key.replace("/", "\\"),
        key.replace("-", "\u2010"), quote(key, safe=""), f"{ours}/{key}", f"{ours}//{key}",
        f"uploads/{ours}/{key}", f"{ours}/../{key}", f"{ours}/x/../../{key}", f"uploads/{ours}/../{key}",
        f"uploads/{ours}/../../{key}", f"{ours}/..\\{key}", f"{ours}/../{key}\0", f"{ours}/..;/{key}",
        f"{ours}?/../{key}", f"{ours}/%2e%2e/{key}", f"{ours}/%2E%2E%2F{key}", f"{ours}%2F..%2F{key}",
        f"{ours}/%252e%252e/{key}", f"{ours}/\uff0e\uff0e/{key}", f"{ours}/\u2024\u2024/{key}",
    ]  # fmt: skip


def test_no_way_of_writing_a_key_leads_to_another_s_photo(two):
    for me, other in (two, two[::-1]):
        others = other.kept()
        scored = me.api.local.scorer.calls
        missing = is_problem(me.ask("POST", "/v1/scores", json={"key": "missing"}), 404, "not_found").detail
        for target in (other.names.photo, other.names.upload):
            for key in (target, *tricks(me, target)):
                answer = me.ask("POST", "/v1/scores", json={"key": key})
                assert is_problem(answer, 404, "not_found").detail == missing, key
        assert me.api.local.scorer.calls == scored
        assert other.kept() == others


@pytest.mark.parametrize("two", LAYOUTS[1:], indirect=True)
def test_a_form_is_for_one_s_own_uploads(two):
    for me in two:
        upload = me.ask("POST", "/v1/uploads", json=UPLOAD).json()
        assert upload["key"] == f"uploads/{me.tenant}/{upload['id']}"
        assert upload["fields"]["key"].endswith(f"/{upload['key']}")
        place = me.api.local.service.places.of(upload["url"].rpartition("/")[2], upload["fields"]["key"])
        assert place
        assert place.tenant.id == me.tenant


def test_the_same_photo_of_both_is_scored_twice_and_kept_twice(two):
    one, two = two
    scored = one.api.local.scorer.calls
    first, second = (side.score(coffee_jpeg(), "ana") for side in (one, two))
    assert one.api.local.scorer.calls == scored + 2
    assert first["duplicate_of"] is second["duplicate_of"] is None
    assert first["image"]["sha256"] == second["image"]["sha256"]
    assert (first["image"]["key"], second["image"]["key"]) == tuple(
        f"{side.tenant}/{first['image']['sha256'][:2]}/{first['image']['sha256']}" for side in (one, two)
    )
    assert two.score(coffee_jpeg())["duplicate_of"] == second["id"]

    # And by key, of what is one's own.
    again = two.ask("POST", "/v1/scores", json={"key": second["image"]["key"]}).json()
    assert again["duplicate_of"] == second["id"]

    assert one.ask("DELETE", f"/v1/scores/{first['id']}").status_code == 204
    is_problem(one.ask("GET", f"/v1/scores/{first['id']}/image"), 404, "not_found")
    assert two.ask("GET", f"/v1/scores/{second['id']}/image").content == coffee_jpeg()
    assert one.score(coffee_jpeg())["duplicate_of"] is None


@in_a_folder
def test_the_same_user_of_both_is_two_people(two):
    results = [side.score(coffee_jpeg(300), "ana") for side in two]
    for side, result in zip(two, results, strict=True):
        assert side.ask("GET", "/v1/scores", params={"user": "ana"}).json()["items"] == [result]
    assert two[0].ask("DELETE", "/v1/users/ana").status_code == 204
    assert two[0].ask("GET", "/v1/scores", params={"user": "ana"}).json()["items"] == []
    assert two[1].ask("GET", "/v1/scores", params={"user": "ana"}).json()["items"] == [results[1]]
    assert two[1].ask("GET", f"/v1/scores/{results[1]['id']}/image").content == coffee_jpeg(300)


@in_a_folder
def test_the_same_idempotency_key_of_both_is_two_requests(two):
    headers = {"Idempotency-Key": "k"}
    first = two[0].score(coffee_jpeg(301), **headers)
    second = two[1].score(coffee_jpeg(302), **headers)
    assert first["image"]["sha256"] != second["image"]["sha256"]
    assert two[0].score(coffee_jpeg(301), **headers) == first
    assert two[1].score(coffee_jpeg(302), **headers) == second
    refused = two[1].ask("POST", "/v1/scores", files={"image": coffee_jpeg(301)}, headers=headers)
    is_problem(refused, 409, "idempotency_key_reused")


@in_a_folder
def test_each_has_the_reviews_and_labels_of_its_own(two):
    for side in two:
        # One to a page: what is another's must not even be counted.
        reviews, labels = (
            side.ask("GET", path, params={"limit": 1}).json() for path in ("/v1/reviews", "/v1/labels")
        )
        assert reviews["next_cursor"] is labels["next_cursor"] is None
        assert [waiting["id"] for waiting in reviews["items"]] == [side.names.unsure]
        assert [label["image"] for label in labels["items"]] == [side.names.photo]
        table = side.ask("GET", "/v1/labels", headers={"Accept": "text/csv"}).text
        assert side.secret in table
        assert len(table.splitlines()) == 2


@in_a_folder
def test_each_has_models_of_its_own(two, store):
    one, two = two
    with TenantAdmin(store.url) as admin:
        admin.change(two.tenant, lambda tenant: tenant.model_copy(update={"models": (DEFAULT,)}))
    one.api.run(one.api.local.service.access.refresh())
    for side, ref in ((one, MODEL), (two, DEFAULT)):
        manifest = load_manifest(ref)
        found = side.ask("GET", "/v1/models").json()
        assert found["serving"] == {"name": manifest.name, "version": manifest.version}
        assert [model["name"] for model in found["models"]] == [manifest.name]
