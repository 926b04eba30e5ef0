"""The envelope: opens for its tenant and its key, whole, and for nothing else."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.tenants.envelope import (
    MAX_CHARACTERS,
    MAX_PLAIN_BYTES,
    CredentialsError,
    Damaged,
    Envelope,
    KeysDenied,
    KeysUnavailable,
    UnknownVersion,
    WrongTenant,
    _check,
    base64url,
    from_base64url,
    seal,
    unseal,
    wipe,
)

KEY = bytes(range(32))
SECRETS = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "wJalr-secret-of-clinic-a"}
# Sealed once with this key; whatever changes, it has to stay readable.
SEALED = (
    "fdxc1.clinic-a.AQIDBAU.AAECAwQFBgcICQoL."
    "PCCidK6ArDm3Y_arwowbH-aip1uWW21MClHH-O9GSZfCNm7QmmSxuRACFwA.KFWdOg"
)
ERRORS = (UnknownVersion, Damaged, WrongTenant, KeysDenied, KeysUnavailable)

secrets = st.dictionaries(st.text(), st.text(), min_size=1, max_size=5).filter(lambda d: len(str(d)) < 500)
tenants = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
data_keys = st.binary(min_size=32, max_size=32)


def checked(body: str) -> str:
    """What a forger makes of a changed envelope: the checksum needs no key."""
    return f"{body}.{_check(body)}"


def opened(text: str, tenant: str = "clinic-a", key: bytes = KEY) -> dict[str, str]:
    return unseal(Envelope.parse(text, tenant), key)


@given(secrets, tenants, data_keys, st.binary(min_size=1, max_size=200))
def test_what_is_sealed_is_opened(credentials, tenant, key, wrapped):
    text = str(seal(credentials, tenant, key, wrapped))
    envelope = Envelope.parse(text, tenant)
    assert unseal(envelope, key) == credentials
    assert (envelope.tenant, envelope.wrapped, str(envelope)) == (tenant, wrapped, text)


def test_an_envelope_of_version_1_stays_readable():
    assert opened(SEALED) == {"token": "a secret of 2026"}
    assert Envelope.parse(SEALED, "clinic-a").wrapped == bytes([1, 2, 3, 4, 5])


class TestAChange:
    @given(st.data())
    def test_of_any_character_is_told_before_a_key_is_asked_for(self, data):
        text = str(seal(SECRETS, "clinic-a", KEY, b"wrapped"))
        place = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.characters().filter(lambda character: character != text[place]))
        with pytest.raises((Damaged, UnknownVersion)):
            Envelope.parse(text[:place] + other + text[place + 1 :], "clinic-a")

    @given(st.data())
    def test_of_any_byte_is_told_by_the_tag_where_a_forger_mends_the_checksum(self, data):
        envelope = seal(SECRETS, "clinic-a", KEY, b"wrapped")
        field = data.draw(st.sampled_from(["nonce", "ciphertext"]))
        changed = bytearray(getattr(envelope, field))
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
        with pytest.raises(Damaged):
            opened(str(envelope._replace(**{field: bytes(changed)})))

    @given(data_keys.filter(lambda key: key != KEY))
    def test_of_the_key_is_damage(self, key):
        with pytest.raises(Damaged):
            opened(SEALED, key=key)

    @pytest.mark.parametrize("cut", [1, 10, 40])
    def test_of_the_length_is_damage(self, cut):
        for text in (SEALED[:-cut], SEALED + "A" * cut, checked(SEALED.rpartition(".")[0][:-cut])):
            with pytest.raises(Damaged):
                opened(text)

    @given(tenants.filter(lambda tenant: tenant != "clinic-a"))
    def test_of_the_tenant_opens_for_neither(self, tenant):
        with pytest.raises(WrongTenant):
            opened(SEALED, tenant)
        relabelled = checked(SEALED.rpartition(".")[0].replace("clinic-a", tenant))
        with pytest.raises(WrongTenant):
            opened(relabelled)
        with pytest.raises(Damaged):
            opened(relabelled, tenant)

    @given(st.integers(0, 9999).filter(lambda version: version != 1))
    def test_of_the_version_is_an_unknown_version(self, version):
        with pytest.raises(UnknownVersion):
            Envelope.parse(f"fdxc{version}.whatever a later version writes", "clinic-a")

    def test_that_only_writes_the_base64_another_way_is_damage(self):
        """The last character of 4 bytes has 4 bits that decode to nothing; padding is none of ours either."""
        *before, ciphertext = SEALED.rpartition(".")[0].split(".")
        assert from_base64url("AQIDBA") == bytes([1, 2, 3, 4])
        for other in ("AQIDBB", "AQIDBA==", "AQ IDBA", "AQIDBA\n", "AQ+D", "Ä"):
            with pytest.raises(ValueError):  # noqa: PT011 - of binascii or our own
                from_base64url(other)
            with pytest.raises(Damaged):
                opened(checked(".".join([*before[:2], other, before[3], ciphertext])))


@given(st.text() | st.from_regex(r"fdxc[0-9]\.[a-z]?(\.[\w-]*){0,5}", fullmatch=True))
def test_any_text_is_read_or_refused(text):
    for given_text in (text, checked(text)):
        with pytest.raises((Damaged, UnknownVersion)):
            Envelope.parse(given_text, "clinic-a")


def test_what_is_too_long_is_not_even_read():
    with pytest.raises(Damaged):
        Envelope.parse("fdxc2." + "A" * MAX_CHARACTERS, "clinic-a")


class TestSealing:
    def test_takes_a_nonce_of_its_own_each_time(self):
        assert len({seal(SECRETS, "clinic-a", KEY, b"w").nonce for _ in range(100)}) == 100

    def test_fits_its_longest_into_the_text_form(self):
        longest = {"k": "x" * (MAX_PLAIN_BYTES - len('{"k":""}'))}
        text = str(seal(longest, "a" * 63, KEY, b"w" * 1024))
        assert len(text) < MAX_CHARACTERS
        assert opened(text, "a" * 63) == longest

    @pytest.mark.parametrize(
        ("credentials", "tenant"),
        [
            (SECRETS, "Clinic-A"),
            (SECRETS, "clinic.a"),
            (SECRETS, ""),
            (SECRETS, "-a"),
            (SECRETS, "a" * 64),
            (SECRETS, "clinic-a\n"),
            ({}, "clinic-a"),
            ({"secret": 7}, "clinic-a"),
            ({"secret": None}, "clinic-a"),
            ({"secret": "s3cret" * 1000}, "clinic-a"),
        ],
    )
    def test_refuses_in_words_that_quote_nothing(self, credentials, tenant):
        with pytest.raises(ValueError, match=r"tenant's id|credentials are") as refused:
            seal(credentials, tenant, KEY, b"w")
        assert "secret" not in str(refused.value)

    def test_shows_nothing_of_it_in_a_repr(self):
        assert repr(seal(SECRETS, "clinic-a", KEY, b"wrapped")) == "Envelope(tenant='clinic-a', …)"


class TestTheErrors:
    @pytest.mark.parametrize("error", ERRORS)
    def test_can_hold_nothing_and_survive_the_way_to_another_process(self, error):
        with pytest.raises(TypeError):
            error("a secret")
        assert error().args == (error.text,)
        back = pickle.loads(pickle.dumps(error()))  # noqa: S301 - our own
        assert (type(back), str(back)) == (error, error.text)

    def test_have_a_code_and_a_text_each(self):
        assert set(CredentialsError.__subclasses__()) >= set(ERRORS)
        assert len({error.code for error in ERRORS}) == len({error.text for error in ERRORS}) == len(ERRORS)

    def test_hide_what_they_came_from(self):
        for text, tenant in ((SEALED, "clinic-b"), (SEALED[:-1], "clinic-a"), ("", "clinic-a")):
            with pytest.raises(CredentialsError) as raised:
                opened(text, tenant, bytes(32))
            assert raised.value.__cause__ is None
            assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_a_wiped_key_is_gone():
    key = bytearray(KEY)
    wipe(key)
    assert key == bytes(32)


@given(st.binary(max_size=50))
def test_base64url_is_read_back(data):
    text = base64url(data)
    assume(text)
    assert from_base64url(text) == data
    assert not set(text) & set("+/=.")


def test_importing_it_loads_little():
    """A cold start pays for each of them."""
    heavy = "asyncio", "botocore", "dataclasses", "http", "inspect", "logging", "pathlib", "pydantic", "ssl"
    program = f"import sys, app.tenants.envelope; print([name for name in {heavy} if name in sys.modules])"
    # Without the site's own imports: the editable install brings pathlib.
    paths = f"import sys; sys.path = {sys.path!r}; "
    command = [sys.executable, "-I", "-S", "-c", paths + program]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
