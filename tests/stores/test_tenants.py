"""Tenants and their limits on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import redis

from app.errors import ResultsUnavailable
from app.stores.connection import connect
from app.stores.embedded import EmbeddedStore
from app.stores.tenants import TENANTS, Allowance, TenantAdmin, TenantError, Tenants
from app.tenants.tenants import Limits, Tenant
from tests.rooms import forget, keys, new_tenant

KEY = "fdx_a-key-that-is-long-enough"
T = TypeVar("T")


@pytest.fixture
def ask(store: EmbeddedStore) -> Callable[[Callable[[Tenants], Awaitable[T]]], T]:
    """Run something on Tenants in a loop and with a connection of its own."""

    def run(work: Callable[[Tenants], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            client = connect(store.url)
            try:
                return await work(Tenants(client))
            finally:
                await client.aclose()

        return asyncio.run(connected())

    return run


@pytest.fixture
def admin(store: EmbeddedStore) -> Iterator[TenantAdmin]:
    with TenantAdmin(store.url) as found:
        yield found
    with redis.Redis.from_url(store.url) as client:
        client.delete(TENANTS)


class TestTenants:
    def test_come_back_as_they_were_stored(self, admin, ask):
        limits = Limits(per_second=2.5, per_day=100)
        stored = Tenant.first(KEY, "clinic").model_copy(update={"limits": limits})
        admin.add(stored)
        admin.add(Tenant.first(KEY + "2", "app"))
        assert admin.all() == [Tenant.first(KEY + "2", "app"), stored]
        assert sorted(ask(Tenants.all), key=lambda tenant: tenant.id) == admin.all()

    def test_are_added_once_and_changed_only_where_they_are(self, admin):
        admin.add(Tenant.first(KEY, "clinic"))
        with pytest.raises(TenantError, match="there is a tenant clinic already"):
            admin.add(Tenant.first(KEY, "clinic"))
        with pytest.raises(TenantError, match="no tenant other"):
            admin.change("other", lambda tenant: tenant)

    def test_are_changed_anew_where_somebody_was_faster(self, admin, store):
        admin.add(Tenant.first(KEY, "clinic"))
        seen = []

        def disable(tenant: Tenant) -> Tenant:
            if not seen:  # somebody else gives it another key meanwhile
                with TenantAdmin(store.url) as other:
                    now = datetime.now(UTC)
                    other.change("clinic", lambda found: found.with_new_key(now, timedelta(days=1))[0])
            seen.append(len(tenant.keys))
            return tenant.model_copy(update={"disabled": True})

        changed = admin.change("clinic", disable)
        assert seen == [1, 2]
        assert (changed.disabled, len(changed.keys)) == (True, 2)
        assert admin.all() == [changed]

    def test_are_changed_once_by_a_change_that_is_sent_again(self, admin, monkeypatch):
        admin.add(Tenant.first(KEY, "clinic"))
        script, now = admin._change, datetime.now(UTC)

        def answer_lost(**sent: Any) -> Any:
            script(**sent)
            return script(**sent)

        monkeypatch.setattr(admin, "_change", answer_lost)
        changed = admin.change("clinic", lambda found: found.with_new_key(now, timedelta(days=1))[0])
        assert len(changed.keys) == 2
        assert admin.all() == [changed]

    def test_that_cannot_be_read_are_no_empty_list(self, admin, ask, store):
        with redis.Redis.from_url(store.url) as client:
            client.hset(TENANTS, "clinic", '{"id": "clinic", "unheard_of": 1}')
        with pytest.raises(ResultsUnavailable):
            ask(Tenants.all)
        with pytest.raises(ResultsUnavailable):
            admin.all()

    def test_are_out_of_reach_without_a_server(self, tmp_path):
        with TenantAdmin(f"unix://{tmp_path}/nobody.sock") as nobody, pytest.raises(ResultsUnavailable):
            nobody.all()


class TestLimits:
    @staticmethod
    def calls(ask: Any, tenant: str, count: int, **limits: Any) -> list[Allowance]:
        async def several(tenants: Tenants) -> list[Allowance | None]:
            return [await tenants.admit(tenant, Limits(**limits)) for _ in range(count)]

        return ask(several)

    def test_none_ask_nobody(self, ask, store):
        tenant = new_tenant()
        assert self.calls(ask, tenant, 3) == [None] * 3
        assert keys(store.url, tenant) == set()

    def test_by_the_second_let_a_second_s_worth_come_at_once(self, ask):
        # So slow that no time passes that would matter.
        found = self.calls(ask, new_tenant(), 4, per_second=0.001)
        assert [one.allowed for one in found] == [True, False, False, False]
        assert found[0].limit == 1
        assert 999 < found[1].reset_s <= 1000
        many = self.calls(ask, new_tenant(), 100, per_second=100)
        assert all(one.allowed for one in many)
        assert many[0].remaining == 99

    def test_by_the_second_allow_more_as_time_passes(self, ask, store):
        tenant = new_tenant()
        assert not self.calls(ask, tenant, 2, per_second=0.001)[-1].allowed
        forget(store.url, tenant, "rate")
        assert self.calls(ask, tenant, 1, per_second=0.001)[0].allowed

    def test_by_the_day_end_at_midnight(self, ask, store):
        tenant = new_tenant()
        found = self.calls(ask, tenant, 4, per_day=3)
        assert [(one.allowed, one.remaining) for one in found] == [
            (True, 2), (True, 1), (True, 0), (False, 0),
        ]  # fmt: skip
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        assert abs(found[-1].reset_s - (midnight - now).total_seconds()) < 5
        with redis.Redis.from_url(store.url) as client:
            assert client.expiretime(f"fooddx:{{{tenant}}}:day") == int(midnight.timestamp())

    def test_charge_nothing_for_what_the_other_refuses(self, ask, store):
        tenant = new_tenant()
        self.calls(ask, tenant, 5, per_second=0.001, per_day=3)
        with redis.Redis.from_url(store.url) as client:
            assert client.get(f"fooddx:{{{tenant}}}:day") == b"1"
        forget(store.url, tenant, "rate")
        with redis.Redis.from_url(store.url) as client:
            client.set(f"fooddx:{{{tenant}}}:day", 3)
        assert not self.calls(ask, tenant, 1, per_second=0.001, per_day=3)[0].allowed
        assert "rate" not in keys(store.url, tenant)

    def test_tell_of_the_one_that_is_nearest(self, ask):
        (found,) = self.calls(ask, new_tenant(), 1, per_second=50, per_day=10)
        assert (found.limit, found.remaining) == (10, 9)
        (found,) = self.calls(ask, new_tenant(), 1, per_second=5, per_day=1000)
        assert (found.limit, found.remaining) == (5, 4)

    def test_of_one_tenant_are_nothing_to_another(self, ask):
        assert not self.calls(ask, new_tenant(), 2, per_day=1)[-1].allowed
        assert self.calls(ask, new_tenant(), 1, per_day=1)[0].allowed

    def test_hold_for_all_replicas_together(self, ask):
        tenant = new_tenant()

        async def at_once(tenants: Tenants) -> list[Allowance | None]:
            return await asyncio.gather(
                *(tenants.admit(tenant, Limits(per_second=0.01, per_day=50)) for _ in range(12))
            )

        assert sum(one.allowed for one in ask(at_once) if one) == 1
