"""Where a tenant's photos are: its own bucket is opened with its own keys, and with no others."""

from __future__ import annotations

import asyncio
import re
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.errors import CredentialsUnavailable, FoodDXError, ImagesUnavailable
from app.stores.images import FolderImages, ImageStore, image_key
from app.stores.s3 import S3Images
from app.tenants import images as module
from app.tenants.credentials import Credentials, encrypt, rotate
from app.tenants.images import TenantImages, open_credentials
from app.tenants.kms import KEY_FILE, LocalKeys
from app.tenants.tenants import Directory, Tenant
from tests.stores.faults import PATIENT, FaultProxy, make_bucket, use_aws

SECRET = "the-secret-of-a-tenant"  # noqa: S105 - of the tests
KEY = image_key("clinic", "5a" * 32)
WORDS = "words for another purpose"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy) -> None:
    """What the service itself may use."""
    use_aws(monkeypatch, proxy.url, access_key_id="the-services-own")
    monkeypatch.setattr(S3Images.__init__, "__defaults__", (None, PATIENT))
    monkeypatch.setattr(module, "_WAIT_S", 60)


class Tenants:
    """Tenants that come and change, and the image stores that they get."""

    def __init__(self, folder: Path, proxy: FaultProxy) -> None:
        self.keys = LocalKeys(folder / KEY_FILE)
        self.proxy = proxy
        self.opened = 0
        self.images = TenantImages(
            FolderImages(folder / "images"), lambda: Directory(self._all.values()), self._open
        )
        self._all: dict[str, Tenant] = {}

    def _open(self) -> Credentials:
        self.opened += 1
        return Credentials(self.keys, ttl_s=0)

    def add(self, name: str, store: str = "", **sealed: str) -> Tenant:
        """A tenant, in the place of the one before it; ``sealed`` are its credentials."""
        return self.put(name, store, encrypt(sealed, name, self.keys) if sealed else "")

    def put(self, name: str, store: str, credentials: str) -> Tenant:
        made_at = datetime(2026, 1, 1, tzinfo=UTC)
        self._all[name] = Tenant(id=name, store=store, credentials=credentials, made_at=made_at)
        return self._all[name]

    def store(self, name: str = "clinic") -> ImageStore:
        return asyncio.run(self.images(name))

    def fails(self, error: type[FoodDXError], name: str = "clinic") -> str:
        """What is said where a store cannot be opened; nothing of it may hold a secret."""
        with pytest.raises(error) as failed:
            self.store(name)
        told = "".join(traceback.format_exception(failed.value)) + repr(failed.value)
        assert SECRET not in told
        assert "fdxc1." not in told
        return failed.value.detail

    def signers(self) -> list[str]:
        """The access keys that signed the requests since the last call."""
        found = [request.headers["authorization"] for request in self.proxy.requests]
        self.proxy.requests.clear()
        return [re.findall("Credential=([^/]+)/", header)[0] for header in found]


@pytest.fixture
def tenants(tmp_path: Path, proxy: FaultProxy) -> Tenants:
    return Tenants(tmp_path, proxy)


@pytest.fixture
def own(moto: str) -> str:
    """A bucket that is not everybody's."""
    return f"s3://{make_bucket(moto)}/photos"


def pair(access_key_id: str = "the-clinics-own", **more: str) -> dict[str, str]:
    return {"access_key_id": access_key_id, "secret_access_key": SECRET, **more}


class TestWithoutAStoreOfOnesOwn:
    @pytest.mark.parametrize("name", ["clinic", "nobody", "", "../clinic"])
    def test_photos_are_with_everybody_s(self, tenants, name: str):
        tenants.add("clinic")
        assert tenants.store(name) is tenants.images.shared

    def test_no_credentials_are_opened(self, tenants):
        """Those of a webhook, or broken ones, are nothing to the photos."""
        tenants.put("clinic", "", "nonsense")
        assert tenants.store() is tenants.images.shared
        assert tenants.opened == 0

    def test_nor_is_a_key_file_made(self, tenants, tmp_path):
        tenants.add("clinic")
        open_credentials("", tmp_path)
        tenants.store()
        assert not (tmp_path / KEY_FILE).exists()


class TestAStoreOfOnesOwn:
    def test_is_opened_with_one_s_own_keys(self, tenants, own, proxy):
        tenants.add("clinic", own, **pair(endpoint=proxy.url, region="eu-west-1"))

        async def story() -> None:
            images = await tenants.images("clinic")
            await images.put(KEY, b"photo")
            assert await images.get(KEY) == b"photo"

        asyncio.run(story())
        assert {request.path for request in proxy.requests} == {f"/{own[5:]}/{KEY}"}
        assert "/eu-west-1/s3/" in proxy.requests[0].headers["authorization"]
        assert tenants.signers() == ["the-clinics-own"] * 2

    def test_goes_where_its_credentials_say_and_not_where_ours_do(self, tenants, own, proxy, moto):
        tenants.add("clinic", own, **pair(endpoint=moto))
        asyncio.run(tenants.store().put(KEY, b"photo"))
        assert proxy.requests == []

    @pytest.mark.parametrize("sealed", [{}, {"webhook_secret": WORDS}])
    def test_without_keys_of_its_own_is_opened_with_the_service_s(self, tenants, own, sealed):
        """The way of a bucket whose policy lets the service in."""
        tenants.add("clinic", own, **sealed)
        asyncio.run(tenants.store().put(KEY, b"photo"))
        assert tenants.signers() == ["the-services-own"]

    def test_is_kept_open(self, tenants, own):
        tenants.add("clinic", own, **pair())
        assert tenants.store() is tenants.store()

    def test_is_nobody_else_s(self, tenants, own):
        tenants.add("clinic", own, **pair())
        tenants.add("other", own, **pair("the-others-own"))
        tenants.add("third")
        clinic, other = tenants.store("clinic"), tenants.store("other")
        assert clinic is not other
        assert tenants.store("third") is tenants.images.shared
        asyncio.run(other.put(KEY, b"photo"))
        assert tenants.signers() == ["the-others-own"]


class TestChanges:
    def test_credentials_that_were_wrapped_anew_still_open_it(self, tenants, own):
        before = tenants.add("clinic", own, **pair())
        asyncio.run(tenants.store().put(KEY, b"photo"))
        tenants.keys.add_key()
        tenants.put("clinic", own, rotate(before.credentials, "clinic", tenants.keys))
        assert asyncio.run(tenants.store().get(KEY)) == b"photo"
        assert set(tenants.signers()) == {"the-clinics-own"}

    def test_other_credentials_are_used_from_then_on(self, tenants, own):
        tenants.add("clinic", own, **pair())
        first = tenants.store()
        tenants.add("clinic", own, **pair("the-next"))
        second = tenants.store()
        assert second is not first
        asyncio.run(second.put(KEY, b"photo"))
        assert tenants.signers() == ["the-next"]

    def test_another_store_is_used_from_then_on(self, tenants, own, proxy):
        sealed = tenants.add("clinic", own, **pair()).credentials
        tenants.store()
        tenants.put("clinic", f"{own}/moved", sealed)
        asyncio.run(tenants.store().put(KEY, b"photo"))
        assert proxy.requests[-1].path == f"/{own[5:]}/moved/{KEY}"
        tenants.put("clinic", "", sealed)
        assert tenants.store() is tenants.images.shared

    def test_a_key_that_was_taken_away_is_missed_although_the_store_is_open(self, tenants, own, tmp_path):
        tenants.add("clinic", own, **pair())
        tenants.store()
        (tmp_path / KEY_FILE).rename(tmp_path / "away")
        assert "(keys_unavailable)" in tenants.fails(CredentialsUnavailable)
        (tmp_path / "away").rename(tmp_path / KEY_FILE)
        tenants.store()


class TestWhatCannotBeOpened:
    @pytest.mark.parametrize(
        ("spoil", "code"),
        [
            (lambda text: text[:-2] + ("AA" if text[-2:] != "AA" else "BB"), "damaged"),
            (lambda text: text.replace("fdxc1.", "fdxc9."), "unknown_version"),
            (lambda _: "nonsense", "damaged"),
        ],
    )
    def test_spoilt_credentials(self, tenants, own, spoil: Callable[[str], str], code: str):
        tenants.put("clinic", own, spoil(tenants.add("clinic", own, **pair()).credentials))
        assert f"({code})" in tenants.fails(CredentialsUnavailable)

    def test_another_tenant_s_credentials(self, tenants, own):
        theirs = tenants.add("other", own, **pair()).credentials
        tenants.put("clinic", own, theirs)
        assert "(wrong_tenant)" in tenants.fails(CredentialsUnavailable)
        assert tenants.store("other")

    @pytest.mark.parametrize(
        "sealed",
        [
            {"access_key_id": "the-clinics-own"},
            {"access_key_id": SECRET, "secret_access_key": ""},
            pair(endpoint=f"http://{SECRET}.example.com"),
            pair(endpoint=f"https://user:{SECRET}@example.com"),
            pair(endpoint=f"https://{SECRET}\u2100.example.com"),  # quoted by the error of urllib
        ],
    )
    def test_keys_to_no_bucket(self, tenants, own, sealed: Mapping[str, Any]):
        """Above all not with the service's own keys instead."""
        tenants.add("clinic", own, **sealed)
        said = tenants.fails(ImagesUnavailable)
        assert said == "The store of clinic cannot be used as it is configured."

    @pytest.mark.parametrize("store", ["s3://", "s3://B", "s3://own/../other", "s3://own/a//b"])
    def test_no_bucket(self, tenants, store: str):
        tenants.add("clinic", store, **pair())
        assert "cannot be used" in tenants.fails(ImagesUnavailable)

    def test_takes_nobody_else_with_it(self, tenants, own):
        tenants.put("clinic", own, "nonsense")
        tenants.add("other", own, **pair())
        tenants.fails(CredentialsUnavailable)
        assert tenants.store("other")


def test_of_many_stores_those_used_last_are_kept(tenants, own, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 2)
    for name in ("one", "two", "three"):
        tenants.add(name, own)
    one, two = tenants.store("one"), tenants.store("two")
    assert tenants.store("two") is two
    assert tenants.store("one") is one
    tenants.store("three")
    assert tenants.store("one") is one
    assert tenants.store("two") is not two


def test_a_slow_key_service_is_waited_for_no_longer_than_a_store(tenants, own, monkeypatch):
    monkeypatch.setattr(module, "_WAIT_S", 0.05)
    tenants.add("clinic", own, **pair())
    answered = threading.Event()
    monkeypatch.setattr(tenants.keys, "unwrap", lambda *_: answered.wait(10))
    assert tenants.fails(CredentialsUnavailable) == "The key service is slow."
    answered.set()
