"""Whose object is it: one tenant's or nobody's, whatever stores there are."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
import uuid_utils
from hypothesis import example, given
from hypothesis import strategies as st

from app.stores.images import image_key
from app.tenants.places import Places, is_kept, is_upload_of, result_id_of, upload_key
from app.tenants.tenants import Directory, Tenant

SHA = "5a" + "c" * 62
MADE = datetime(2026, 1, 1, tzinfo=UTC)

# Names that begin with one another, and stores that lie in one another, meet often.
NAMES = ["a", "a-b", "ab", "b", "pre", "5a"]
STORES = [
    "", "", "s3://photos", "s3://photos/pre", "s3://photos/pre/", "s3://photos/pre/a", "s3://photos/pre-a",
    "s3://photos/uploads", "s3://own", "s3://own/a",
]  # fmt: skip
parts = st.sampled_from([*NAMES, "uploads", SHA, "own", "..", "", "%2e", "A", " "]) | st.text(max_size=3)
object_keys = st.lists(parts, min_size=1, max_size=5).map("/".join)
buckets = st.sampled_from(["photos", "own", "phot", "else"])


shared_stores = st.sampled_from(["s3://photos/pre", "s3://photos", "/data/images"])


@st.composite
def tenants(draw: st.DrawFn) -> list[Tenant]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    return [tenant(name, draw(st.sampled_from(STORES)), draw(st.booleans())) for name in names]


def tenant(name: str, store: str = "", disabled: bool = False) -> Tenant:
    return Tenant(id=name, store=store, disabled=disabled, made_at=MADE)


def places(*found: Tenant, shared: str = "s3://photos/pre") -> Places:
    directory = Directory(found)
    return Places(shared, lambda: directory)


def path(store: str) -> str:
    """What the whole path of an object in a store begins with."""
    return store.removeprefix("s3://").rstrip("/") + "/"


class TestLaws:
    @given(shared_stores, tenants(), object_keys)
    def test_what_a_tenant_owns_is_its_own_and_nobody_else_s(
        self, shared: str, found: list[Tenant], key: str
    ):
        known = places(*found, shared=shared)
        for one in found:
            if not known.owns(one.id, key):
                continue
            bucket, object_key = known.address(one.id, key)
            assert known.of(bucket, object_key) == (one, key)
            for other in found:
                # The same object, as the other one would ask for it.
                prefix = path(other.store or shared)
                whole = f"{bucket}/{object_key}" if bucket else f"{path(shared)}{object_key}"
                if other != one and whole.startswith(prefix):
                    assert not known.owns(other.id, whole.removeprefix(prefix))

    @given(shared_stores, tenants(), buckets, object_keys)
    def test_an_object_is_found_by_the_key_its_tenant_has_for_it(
        self, shared: str, found: list[Tenant], bucket: str, key: str
    ):
        known = places(*found, shared=shared)
        if place := known.of(bucket, key):
            assert known.address(place.tenant.id, place.key) == (bucket, key)
            assert known.owns(place.tenant.id, place.key)

    @given(shared_stores, tenants(), object_keys)
    def test_who_comes_to_it_gives_nobody_what_was_another_s(
        self, shared: str, found: list[Tenant], key: str
    ):
        """A new tenant may take, as the place of its store says; it never widens what the others have."""
        for one in found:
            others = [other for other in found if other != one]
            before, after = places(*others, shared=shared), places(*found, shared=shared)
            assert all(before.owns(other.id, key) for other in others if after.owns(other.id, key))

    @given(shared_stores, tenants())
    @example("s3://photos/pre", [tenant("a"), tenant("a-b")])
    @example("s3://photos/pre", [tenant("a", "s3://own"), tenant("a-b", "s3://own")])
    def test_what_is_under_one_s_name_is_one_s_own(self, shared: str, found: list[Tenant]):
        known = places(*found, shared=shared)
        stores = {path(one.store or shared) for one in found} | {path(shared)}
        for one in found:
            mine = path(one.store or shared)
            if any(store != mine and store.startswith(mine) for store in stores):
                continue  # a store within this one may have been put over its name
            for key in (image_key(one.id, SHA), upload_key(one.id, "lunch.jpg")):
                neighbours = [other.id for other in found if path(other.store or shared) == mine]
                assert [name for name in neighbours if known.owns(name, key)] == [one.id]

    @given(st.sampled_from(["s3://own", "s3://own/", "s3://own/a"]), object_keys)
    def test_an_own_store_is_one_s_own_whole(self, store: str, key: str):
        known = places(tenant("a", store), tenant("b"))
        assert known.owns("a", key)
        assert known.address("a", key) == tuple(f"{path(store)}{key}".split("/", 1))


class TestInTheSharedStore:
    @pytest.mark.parametrize("shared", ["s3://photos/pre", "/data/images"])
    @pytest.mark.parametrize("store", ["", "same"])
    def test_a_tenant_has_its_name_and_its_uploads(self, shared: str, store: str):
        """Alone or not, and whether its record names the shared store or none."""
        known = places(tenant("a", shared if store else ""), shared=shared)
        assert known.owns("a", image_key("a", SHA))
        assert known.owns("a", "a/anything")
        assert known.owns("a", upload_key("a", "lunch.jpg"))

    @pytest.mark.parametrize(
        "key",
        [
            "", "/", "uploads", "uploads/", "/a/photo", "//a/photo", "./a/photo", "../pre/a/photo",
            "a-b/photo", "ab/photo", "b/photo", "A/photo", "a%2Fphoto", "a\\photo", " a/photo", "a /photo",
            "photo", ".ready", "uploads/a-b/photo", "uploads/b/photo", "uploads//a/photo",
            "uploads/../a/photo", "uploads/uploads/a/photo", "Uploads/a/photo",
        ],
    )  # fmt: skip
    def test_and_nothing_else(self, key: str):
        known = places(tenant("a"), tenant("a-b"), tenant("b"))
        assert not known.owns("a", key)

    def test_keys_without_a_bucket_are_its_own(self):
        known = places(tenant("a"), tenant("b", "s3://own"))
        found = known.of("", "a/photo")
        assert found == known.of("photos", "pre/a/photo")
        assert found
        assert (found.tenant.id, found.key) == ("a", "a/photo")
        assert known.of("", "b/photo") is None

    def test_other_buckets_and_prefixes_are_nobody_s(self):
        known = places(tenant("a"))
        for bucket, key in (
            ("other", "pre/a/x"),
            ("photos", "a/x"),
            ("photos", "pre-a/x"),
        ):
            assert known.of(bucket, key) is None

    def test_whom_nobody_knows_owns_nothing(self):
        assert not places(tenant("a")).owns("stranger", "stranger/photo")
        assert not places().owns("", "/photo")


class TestStoresInOneAnother:
    def test_the_deepest_counts(self):
        known = places(
            tenant("outer", "s3://own"), tenant("inner", "s3://own/in"), tenant("a", "s3://photos")
        )
        inner, outer = known.of("own", "in/photo"), known.of("own", "inn/photo")
        assert inner
        assert outer
        assert (inner.tenant.id, inner.key) == ("inner", "photo")
        assert (outer.tenant.id, outer.key) == ("outer", "inn/photo")
        assert not known.owns("outer", "in/photo")
        # The service's own store within a tenant's bucket is the service's.
        assert known.of("photos", "pre/photo") is None
        assert not known.owns("a", "pre/photo")

    @pytest.mark.parametrize("stores", [("s3://own", "s3://own/"), ("s3://own/x", "s3://own//x//")])
    def test_of_two_in_one_each_has_what_is_under_its_name(self, stores: tuple[str, str]):
        """One, that is, for S3: however it is written."""
        known = places(tenant("a", stores[0]), tenant("b", stores[1]))
        assert known.owns("a", "a/photo")
        assert known.owns("b", upload_key("b", "photo"))
        for name, key in (("a", "b/photo"), ("b", "a/photo"), ("a", "photo"), ("b", "photo")):
            assert not known.owns(name, key)

    def test_a_disabled_tenant_keeps_what_it_has_from_others(self):
        known = places(tenant("a", "s3://own"), tenant("b", "s3://own", disabled=True))
        assert not known.owns("a", "b/photo")
        assert known.owns("b", "b/photo")


class TestKeys:
    @given(st.sampled_from(NAMES), st.text(max_size=8))
    def test_an_upload_s_key_holds_the_id_of_its_result(self, name: str, more: str):
        result_id = str(uuid_utils.uuid7())
        key = upload_key(name, result_id)
        assert result_id_of(key) == result_id
        assert is_upload_of(name, key)
        assert all(is_upload_of(other, key) == (other == name) for other in NAMES)
        assert result_id_of(f"{key}{more}x") is None

    @pytest.mark.parametrize(
        "key",
        [
            upload_key("a", "lunch.jpg"),
            upload_key("a", str(uuid.uuid4())),
            upload_key("a", str(uuid_utils.uuid7()).upper()),
            upload_key("a", "ffffffff-ffff-7fff-bfff-ffffffffffff"),  # of the year 10889
            image_key("a", SHA),
            f"a/{uuid_utils.uuid7()}",
            "uploads/",
            "",
        ],
    )
    def test_what_nobody_was_given_an_id_for_has_none(self, key: str):
        assert result_id_of(key) is None

    @given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.binary(min_size=32, max_size=32))
    @example("5a", "5a", bytes.fromhex(SHA))
    def test_only_a_photo_under_its_content_and_its_tenant_is_kept(
        self, name: str, other: str, digest: bytes
    ):
        key = image_key(name, digest.hex())
        assert is_kept(other, key) == (name == other)
        for near in (f"{key}0", key[:-1], key.upper(), f"x/{key}", f"uploads/{key}", key.replace("/", "-")):
            assert not is_kept(name, near)
        # A file that somebody names by its hash has arrived, whatever its tenant is called.
        assert not is_kept(other, upload_key(digest.hex()[:2], digest.hex()))
