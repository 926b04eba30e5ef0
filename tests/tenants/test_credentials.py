"""Credentials on the request path: opened once, kept for a while, replaced when they change, never shown."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import pprint
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from app.errors import CredentialsUnavailable, FoodDXError
from app.tenants.credentials import Credentials, Secrets, data_keys, decrypt, encrypt, reseal, rotate
from app.tenants.envelope import (
    CredentialsError,
    Damaged,
    Envelope,
    KeysDenied,
    KeysUnavailable,
    WrongTenant,
    from_base64url,
    unseal,
)
from app.tenants.kms import LocalKeys

SECRET = "wJalr-the-secret"  # noqa: S105 - of the tests
MINE = {"access_key_id": "AKIATEST", "secret_access_key": SECRET}


class Watched(LocalKeys):
    """A key file that counts, and fails or waits where a test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: list[str] = []
        self.given: list[bytearray] = []
        self.error: type[CredentialsError] | None = None
        self.may_go = threading.Event()
        self.may_go.set()

    def unwrap(self, wrapped: bytes, tenant: str) -> bytearray:
        self.calls.append(tenant)
        assert self.may_go.wait(20)
        if self.error:
            raise self.error
        self.given.append(super().unwrap(wrapped, tenant))
        return self.given[-1]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "credential_keys")
    yield watched
    watched.may_go.set()


class TestOnTheCommandLine:
    def test_what_is_encrypted_is_decrypted(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        assert decrypt(text, "clinic-a", keys) == MINE
        assert SECRET not in text

    def test_every_envelope_has_a_data_key_of_its_own(self, keys):
        one, two = (Envelope.parse(encrypt(MINE, "clinic-a", keys), "clinic-a") for _ in range(2))
        assert keys.unwrap(one.wrapped, "clinic-a") != keys.unwrap(two.wrapped, "clinic-a")

    def test_rotation_wraps_anew_what_it_does_not_decrypt(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        keys.add_key()
        rotated = rotate(text, "clinic-a", keys)
        before, after = Envelope.parse(text, "clinic-a"), Envelope.parse(rotated, "clinic-a")
        assert before.wrapped[:8] != after.wrapped[:8]
        assert before._replace(wrapped=b"") == after._replace(wrapped=b"")
        for each in (text, rotated):
            assert decrypt(each, "clinic-a", keys) == MINE

        unreadable = str(before._replace(ciphertext=bytes(len(before.ciphertext))))
        with pytest.raises(Damaged):
            decrypt(rotate(unreadable, "clinic-a", keys), "clinic-a", keys)

    def test_resealing_takes_a_fresh_data_key(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        resealed = reseal(text, "clinic-a", keys)
        assert decrypt(resealed, "clinic-a", keys) == MINE
        old_key = keys.unwrap(Envelope.parse(text, "clinic-a").wrapped, "clinic-a")
        with pytest.raises(Damaged):
            unseal(Envelope.parse(resealed, "clinic-a"), old_key)

    @pytest.mark.parametrize("act", [decrypt, rotate, reseal])
    def test_nothing_is_done_for_another_tenant(self, keys, act):
        text = encrypt(MINE, "clinic-a", keys)
        with pytest.raises(WrongTenant):
            act(text, "clinic-b", keys)
        assert keys.calls == []

    def test_data_keys_to_go_open_their_envelopes(self, keys):
        envelopes = {tenant: encrypt(MINE, tenant, keys) for tenant in ("clinic-a", "clinic-b")}
        entries = dict(entry.split("=") for entry in data_keys(envelopes, keys).split(" "))
        for tenant, text in envelopes.items():
            assert unseal(Envelope.parse(text, tenant), from_base64url(entries[tenant])) == MINE

    def test_every_data_key_is_wiped(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        decrypt(text, "clinic-a", keys)
        rotate(text, "clinic-a", keys)
        data_keys({"clinic-a": text}, keys)
        assert keys.given == [bytearray(32)] * 3


class TestSecrets:
    SECRETS = Secrets(MINE)

    def test_are_revealed_by_name(self):
        assert self.SECRETS.reveal("secret_access_key") == SECRET
        assert "access_key_id" in self.SECRETS
        with pytest.raises(KeyError) as missing:
            self.SECRETS.reveal("region")
        assert SECRET not in str(missing.value)

    def test_show_in_no_text(self, caplog):
        caplog.set_level(logging.INFO)
        logging.getLogger("test").info("%s %r", self.SECRETS, self.SECRETS, extra={"found": self.SECRETS})
        shown = [
            str(self.SECRETS), repr(self.SECRETS), f"{self.SECRETS}", f"{self.SECRETS!r:>40}", caplog.text,
            pprint.pformat([self.SECRETS]), pretty_repr({"a": self.SECRETS}), str(ValueError(self.SECRETS)),
            str(caplog.records[0].__dict__),
        ]  # fmt: skip
        assert [text for text in shown if SECRET in text or "AKIATEST" in text] == []
        assert not hasattr(self.SECRETS, "__dict__")

    @pytest.mark.parametrize(
        "act", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, list, dict], ids=lambda act: act.__name__
    )
    def test_go_nowhere_else(self, act):
        with pytest.raises(TypeError) as refused:
            act(self.SECRETS)
        assert SECRET not in str(refused.value)


class TestTheCache:
    def test_opens_once_for_all_who_ask_at_once(self, keys):
        texts = {tenant: encrypt(MINE, tenant, keys) for tenant in ("clinic-a", "clinic-b")}

        async def story() -> None:
            cache = Credentials(keys)
            keys.may_go.clear()
            asking = [asyncio.create_task(cache.get(t, text)) for t, text in texts.items() for _ in range(20)]
            await asyncio.sleep(0.05)
            keys.may_go.set()
            found = await asyncio.gather(*asking)
            assert {one.reveal("secret_access_key") for one in found} == {SECRET}
            assert sorted(keys.calls) == ["clinic-a", "clinic-b"]
            assert (await cache.get("clinic-a", texts["clinic-a"])).reveal("access_key_id") == "AKIATEST"
            assert len(keys.calls) == 2

        asyncio.run(story())

    def test_goes_on_for_others_when_the_first_gives_up(self, keys):
        text = encrypt(MINE, "clinic-a", keys)

        async def story() -> None:
            cache = Credentials(keys)
            keys.may_go.clear()
            first, second = (asyncio.create_task(cache.get("clinic-a", text)) for _ in range(2))
            await asyncio.sleep(0.05)
            first.cancel()
            keys.may_go.set()
            assert (await second).reveal("secret_access_key") == SECRET
            assert first.cancelled()
            assert keys.calls == ["clinic-a"]

        asyncio.run(story())

    def test_forgets_after_its_time(self, keys):
        text, clock = encrypt(MINE, "clinic-a", keys), Clock()

        async def story() -> None:
            cache = Credentials(keys, ttl_s=300, clock=clock)
            for later, calls in ((0, 1), (299, 1), (1, 2), (299, 2)):
                clock.now += later
                await cache.get("clinic-a", text)
                assert len(keys.calls) == calls
            keys.error = KeysDenied
            clock.now += 1
            with pytest.raises(CredentialsUnavailable):
                await cache.get("clinic-a", text)

        asyncio.run(story())

    def test_keeps_those_who_came_last(self, keys):
        texts = {tenant: encrypt(MINE, tenant, keys) for tenant in ("a", "b", "c")}

        async def story() -> None:
            cache = Credentials(keys, size=2)
            for tenant in "abacab":
                await cache.get(tenant, texts[tenant])
            assert keys.calls == ["a", "b", "c", "b"]

        asyncio.run(story())

    def test_opens_a_rotated_envelope_anew_and_only_that(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        changed = encrypt(MINE | {"secret_access_key": "another"}, "clinic-a", keys)

        async def story() -> None:
            cache = Credentials(keys)
            assert (await cache.get("clinic-a", text)).reveal("secret_access_key") == SECRET
            assert (await cache.get("clinic-a", changed)).reveal("secret_access_key") == "another"
            assert (await cache.get("clinic-a", changed)).reveal("secret_access_key") == "another"
            assert len(keys.calls) == 2
            assert [kept.secrets.reveal("secret_access_key") for kept in cache._kept.values()] == ["another"]

        asyncio.run(story())

    def test_serves_nobody_elses(self, keys):
        text = encrypt(MINE, "clinic-a", keys)

        async def story() -> None:
            cache = Credentials(keys)
            await cache.get("clinic-a", text)
            with pytest.raises(CredentialsUnavailable, match="wrong_tenant"):
                await cache.get("clinic-b", text)

        asyncio.run(story())

    def test_recovers_when_the_key_service_is_back(self, keys):
        text = encrypt(MINE, "clinic-a", keys)

        async def story() -> None:
            cache = Credentials(keys)
            keys.error = KeysUnavailable
            with pytest.raises(CredentialsUnavailable, match="keys_unavailable") as away:
                await cache.get("clinic-a", text)
            assert away.value.retryable
            assert away.value.retry_after_s == 1
            keys.error = None
            assert (await cache.get("clinic-a", text)).reveal("secret_access_key") == SECRET

        asyncio.run(story())

    def test_leaves_no_secret_in_what_a_crash_report_shows(self, keys):
        """Reporters print the locals of every frame of an error and of what it came from."""
        envelope = Envelope.parse(encrypt(MINE, "clinic-a", keys), "clinic-a")
        broken = str(envelope._replace(nonce=bytes(12)))
        key = bytes(keys.unwrap(envelope.wrapped, "clinic-a"))

        async def story() -> FoodDXError:
            cache = Credentials(keys)
            await cache.get("clinic-b", encrypt(MINE, "clinic-b", keys))
            with pytest.raises(CredentialsUnavailable, match="damaged") as raised:
                await cache.get("clinic-a", broken)
            assert SECRET not in repr(vars(cache))
            return raised.value

        error = asyncio.run(story())
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        ours = [frame for frame in report.stack if "app/tenants" in frame.filename]
        assert ours
        assert error.__cause__ is error.__context__ is None
        shown = str([frame.locals for frame in ours])
        assert SECRET not in shown
        assert str(key)[2:-1] not in shown
        assert "bytearray" not in shown
