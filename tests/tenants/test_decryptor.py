"""The Lambda function: opens what is the tenant's, and says no in few words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenants import decryptor
from app.tenants.credentials import data_keys, encrypt, reseal, rotate
from app.tenants.decryptor import BadRequest, DataKeys, Decryptor, _given, _started, handler
from app.tenants.envelope import (
    CredentialsError,
    Damaged,
    Envelope,
    KeysDenied,
    KeysUnavailable,
    UnknownVersion,
    WrongTenant,
)
from app.tenants.kms import LocalKeys

SECRET = "wJalr-the-secret"  # noqa: S105 - of the tests
MINE = {"access_key_id": "AKIATEST", "secret_access_key": SECRET}


class Counted(LocalKeys):
    """A key file that counts what is unwrapped, and fails where a test says so."""

    calls = 0
    error: type[Exception] | None = None

    def unwrap(self, wrapped: bytes, tenant: str) -> bytearray:
        self.calls += 1
        if self.error:
            raise self.error
        return super().unwrap(wrapped, tenant)


@pytest.fixture
def keys(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "credential_keys")


def asked(text: str, tenant: str = "clinic-a") -> dict[str, str]:
    return {"tenant": tenant, "credentials": text}


def code(answer: dict[str, object]) -> str:
    error = answer["error"]
    assert isinstance(error, dict)
    return str(error["code"])


class TestTheAnswer:
    def test_has_the_credentials(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        answer = Decryptor(lambda: keys).answer(asked(text))
        assert answer == {"credentials": MINE}
        json.dumps(answer)

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda text: asked(text, "clinic-b"), WrongTenant),
            (lambda text: asked(text[:-20] + ("A" if text[-20] != "A" else "B") + text[-19:]), Damaged),
            (lambda text: asked("fdxc2" + text[5:]), UnknownVersion),
            (lambda text: asked(text, "clinic a"), BadRequest),
            (lambda text: asked("A" * 8193), BadRequest),
            (lambda text: asked(""), BadRequest),
            (lambda text: {"credentials": text}, BadRequest),
            (lambda text: {"tenant": "clinic-a"}, BadRequest),
            (lambda text: {"tenant": ["clinic-a"], "credentials": text}, BadRequest),
            (lambda text: [text], BadRequest),
            (lambda text: text, BadRequest),
            (lambda text: None, BadRequest),
        ],
    )
    def test_to_what_cannot_be_opened_is_an_error_and_costs_no_call_of_kms(self, keys, change, error):
        event = change(encrypt(MINE, "clinic-a", keys))
        answer = Decryptor(lambda: keys).answer(event)
        assert answer == {"error": {"code": error.code, "message": error.text}}
        assert keys.calls == 0

    @pytest.mark.parametrize("error", [WrongTenant, KeysDenied, KeysUnavailable])
    def test_where_kms_refuses_says_how_and_the_next_call_tries_again(self, keys, error):
        text, function = encrypt(MINE, "clinic-a", keys), Decryptor(lambda: keys)
        keys.error = error
        for _ in range(2):
            assert function.answer(asked(text)) == {"error": {"code": error.code, "message": error.text}}
        keys.error = None
        assert function.answer(asked(text)) == {"credentials": MINE}

    def test_to_a_defect_does_not_repeat_what_it_said(self, keys, capsys):
        class Defect(Exception):
            def __str__(self) -> str:
                return SECRET

        keys.error = Defect
        answer = Decryptor(lambda: keys).answer(asked(encrypt(MINE, "clinic-a", keys)))
        assert code(answer) == "internal"
        assert SECRET not in str(answer)
        assert capsys.readouterr() == ("", "")

    @given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(
        st.sampled_from(["tenant", "credentials"]), inner) | st.lists(inner)))  # fmt: skip
    def test_to_any_event_is_one_of_these(self, event):
        assert code(Decryptor(lambda: pytest.fail("KMS was asked"), {"x": b""}).answer(event)) in {
            "bad_request", "damaged", "unknown_version", "wrong_tenant",
        }  # fmt: skip

    def test_has_a_code_of_its_own_for_each_error(self):
        codes = [error.code for error in (*CredentialsError.__subclasses__(), CredentialsError)]
        assert len(codes) == len(set(codes))
        assert "internal" not in codes


class TestWarmCalls:
    def test_ask_kms_once_per_data_key(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        function = Decryptor(lambda: keys)
        for _ in range(3):
            assert function.answer(asked(text)) == {"credentials": MINE}
        assert keys.calls == 1
        assert function.answer(asked(rotate(text, "clinic-a", keys))) == {"credentials": MINE}
        assert keys.calls == 3  # one of them is the rotation's own

    def test_do_not_keep_a_key_that_opens_nothing(self, keys):
        envelope = Envelope.parse(encrypt(MINE, "clinic-a", keys), "clinic-a")
        damaged = str(envelope._replace(nonce=bytes(12)))
        kept = DataKeys()
        function = Decryptor(lambda: keys, kept=kept)
        assert code(function.answer(asked(damaged))) == "damaged"
        assert kept.get("clinic-a", envelope.wrapped) is None

    def test_forget_and_wipe_after_a_while(self):
        now = [1000.0]
        kept, key = DataKeys(ttl_s=300, clock=lambda: now[0]), bytearray(b"k" * 32)
        kept.put("a", b"wrapped", key)
        now[0] += 299
        assert kept.get("a", b"wrapped") is key
        assert kept.get("b", b"wrapped") is None
        now[0] += 1
        assert kept.get("a", b"wrapped") is None
        assert key == bytes(32)

    def test_keep_so_many_and_those_used_last(self):
        kept, keys_ = DataKeys(size=2), [bytearray([n]) * 32 for n in (1, 2, 3)]
        kept.put("a", b"1", keys_[0])
        kept.put("a", b"2", keys_[1])
        kept.get("a", b"1")
        kept.put("a", b"3", keys_[2])
        assert [key[0] for key in keys_] == [1, 0, 3]
        assert kept.get("a", b"2") is None


class TestDataKeysThatComeWithTheFunction:
    def test_open_without_kms(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        variable = data_keys({"clinic-a": text}, keys)
        function = Decryptor(lambda: pytest.fail("KMS was asked"), _given(variable))
        assert function.answer(asked(text)) == {"credentials": MINE}
        assert function.answer(asked(rotate(text, "clinic-a", keys))) == {"credentials": MINE}
        assert code(function.answer(asked(text, "clinic-b"))) == "wrong_tenant"

    def test_give_way_to_kms_for_what_was_sealed_since(self, keys):
        text = encrypt(MINE, "clinic-a", keys)
        given_keys = _given(data_keys({"clinic-a": text}, keys))
        newer = reseal(text, "clinic-a", keys)
        theirs = encrypt({"token": "b"}, "clinic-b", keys)
        function, keys.calls = Decryptor(lambda: keys, given_keys), 0
        assert function.answer(asked(newer)) == {"credentials": MINE}
        assert function.answer(asked(theirs, "clinic-b")) == {"credentials": {"token": "b"}}
        assert keys.calls == 2

    @pytest.mark.parametrize("variable", ["clinic-a", "clinic-a=short", "Clinic=" + "A" * 43, "=", "a=Ä"])
    def test_that_are_none_stop_the_start_in_words_that_quote_nothing(self, variable):
        with pytest.raises(ValueError, match=r"^FOODDX_DATA_KEYS is not a list of tenant=key$"):
            _given(variable)


def test_the_handler_takes_the_data_keys_out_of_the_environment(keys, monkeypatch):
    text = encrypt(MINE, "clinic-a", keys)
    monkeypatch.setenv(decryptor.DATA_KEYS, data_keys({"clinic-a": text}, keys))
    _started.cache_clear()
    try:
        assert handler(asked(text), None) == {"credentials": MINE}
        assert decryptor.DATA_KEYS not in os.environ
    finally:
        _started.cache_clear()


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({}, "[]"),
        ({"AWS_LAMBDA_RUNTIME_API": "x", "FOODDX_DATA_KEYS": f"a={'A' * 43}"}, "[]"),
        ({"AWS_LAMBDA_RUNTIME_API": "x"}, "['http', 'ssl']"),
    ],
)
def test_a_cold_start_loads_no_more_than_it_needs(variables, loaded):
    """And with KMS it loads that at the start, where Lambda gives CPU, not in the first call."""
    names = "asyncio", "boto3", "botocore", "dataclasses", "http", "inspect", "logging", "pydantic", "ssl"
    program = (
        f"import sys; sys.path = {sys.path!r}; import app.tenants.decryptor; "
        f"print([name for name in {names} if name in sys.modules])"
    )
    aws = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    command = [sys.executable, "-I", "-S", "-c", program]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=aws | variables)
    assert found.stdout == f"{loaded}\n"
