"""Tenants and the directory that knows whose a key is and holds no key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.tenants.envelope import is_tenant
from app.tenants.keys import hash_key
from app.tenants.tenants import DEFAULT_TENANT, Directory, Tenant

KEY = "fdx_a-key-that-is-long-enough"
OTHER = "fdx_another-key-of-another-one"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WEEK = timedelta(days=7)
DIRECTORY = Directory([Tenant.first(KEY, "a"), Tenant.first(OTHER, "b")])
words = st.text(min_size=1).filter(lambda text: text.strip() not in ("", KEY, OTHER))


def owner(header: str | None, directory: Directory = DIRECTORY, now: datetime = NOW) -> str | None:
    found = directory.owner(header, now)
    return found.id if found else None


def bearer(key: str) -> str:
    return f"Bearer {key}"


class TestTheDirectory:
    def test_knows_whose_a_key_is(self):
        assert owner(bearer(KEY)) == "a"
        assert owner(bearer(OTHER)) == "b"
        assert Tenant.first(KEY).id == DEFAULT_TENANT

    @pytest.mark.parametrize(
        "header", [f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} ", f"Bearer {KEY}\t"]
    )
    def test_is_easy_about_case_and_space(self, header):
        assert owner(header) == "a"

    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer ", "Bearer   ", KEY, f"Basic {KEY}", f"Bearer{KEY}", f"Bearer {KEY} x",
         f"Bearer {KEY.upper()}", f"Bearer {hash_key(KEY)}", f"Bearer, {KEY}", "Bearer \u00fc\u4f60"],
    )  # fmt: skip
    def test_knows_nobody_without_a_key(self, header):
        assert owner(header) is None

    @given(words)
    def test_knows_no_other_key(self, given_key: str):
        assert owner(bearer(given_key)) is None

    @given(st.text())
    def test_survives_any_header(self, header: str):
        assert owner(header) in (None, "a", "b")

    def test_that_is_empty_knows_nobody(self):
        assert owner(bearer(KEY), Directory([])) is None

    def test_holds_no_key(self):
        assert KEY not in repr(vars(DIRECTORY))


class TestRotation:
    def test_leaves_two_keys_valid_and_then_one(self):
        tenant, second = Tenant.first(KEY, "a").with_new_key(NOW, WEEK)
        directory = Directory([tenant])
        for key in (KEY, second):
            assert owner(bearer(key), directory) == "a"
        assert owner(bearer(KEY), directory, NOW + WEEK) is None
        assert owner(bearer(second), directory, NOW + WEEK) == "a"
        assert second not in tenant.model_dump_json()

    def test_again_ends_the_oldest_at_once(self):
        tenant, second = Tenant.first(KEY, "a").with_new_key(NOW, WEEK)
        tenant, third = tenant.with_new_key(NOW, WEEK)
        directory = Directory([tenant])
        assert [owner(bearer(key), directory) for key in (KEY, second, third)] == [None, "a", "a"]

    def test_never_lengthens_the_life_of_a_key(self):
        tenant, _ = Tenant.first(KEY, "a").with_new_key(NOW, timedelta(hours=1))
        kept = tenant.model_copy(update={"keys": tenant.keys[1:]})
        again, _ = kept.with_new_key(NOW, WEEK)
        assert again.keys[1].ends_at == NOW + timedelta(hours=1)

    def test_without_overlap_ends_the_key_before_at_once(self):
        tenant, _ = Tenant.first(KEY, "a").with_new_key(NOW, timedelta())
        assert owner(bearer(KEY), Directory([tenant])) is None


def test_a_disabled_tenant_has_no_key():
    disabled = Tenant.first(KEY, "a").model_copy(update={"disabled": True})
    assert owner(bearer(KEY), Directory([disabled])) is None


@given(st.text(max_size=70) | st.from_regex(r"[a-z0-9-]{1,66}", fullmatch=True))
def test_ids_are_those_that_credentials_are_sealed_for(tenant_id: str):
    try:
        fits = Tenant.first(KEY, tenant_id).id == tenant_id
    except ValidationError:
        fits = False
    assert is_tenant(tenant_id) == fits


@pytest.mark.parametrize(
    "tenant_id", ["", "A", "a b", "a:b", "a}b", "{a}", "../a", "a/b", "-a", "ä", "a" * 64]
)
def test_an_id_cannot_reach_into_anothers_keys(tenant_id):
    with pytest.raises(ValidationError):
        Tenant.first(KEY, tenant_id)
