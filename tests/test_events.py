"""Messages of the intake queue: what is read out of them, and that nothing else comes out of any text."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.events import MAX_KEY_BYTES, MAX_MESSAGE_BYTES, Arrival, MalformedMessage, parse
from app.schemas import Profile

ETAG = "b1946ac92492d2347c6235b4d2611184"
ARRIVAL = Arrival("photos", "uploads/acme/1.jpg", ETAG, "v1", 5)


def record(
    encoded: str = "uploads/acme/1.jpg", event: str = "ObjectCreated:Put", **facts: Any
) -> dict[str, Any]:
    """As S3 sends it, less what is of no use here."""
    facts = {"size": 5, "eTag": ETAG, "versionId": "v1", "sequencer": "0055AED6DCD90281E5"} | facts
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-west-1",
        "eventName": event,
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "intake",
            "bucket": {"name": "photos", "arn": "arn:aws:s3:::photos"},
            "object": {"key": encoded} | facts,
        },
    }


def notification(*records: object) -> str:
    return json.dumps({"Records": records})


def bridged(key: str = "uploads/acme/1.jpg", kind: str = "Object Created", **facts: Any) -> str:
    facts = {"key": key, "size": 5, "etag": ETAG, "version-id": "v1", "sequencer": "617f08299329d189"} | facts
    detail = {"version": "0", "bucket": {"name": "photos"}, "object": facts, "reason": "PutObject"}
    return json.dumps({"version": "0", "source": "aws.s3", "detail-type": kind, "detail": detail})


def by_sns(message: str) -> str:
    return json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t", "Message": message})


TEST_EVENT = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "photos"})
REQUEST = json.dumps({"key": "uploads/acme/1", "profile": {"goals": ["less-salt"]}, "bucket": "photos"})
KNOWN = (notification(record(), record()), bridged(), by_sns(notification(record())), TEST_EVENT, REQUEST)

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("wrap", [str, by_sns])
@pytest.mark.parametrize("message", [notification(record()), bridged()])
def test_an_event_is_read_the_same_whichever_way_it_comes(wrap: Any, message: str) -> None:
    assert parse(wrap(message)) == (ARRIVAL,)


@given(keys)
@example("a b+c%2B/é/日本/100%.jpg")
@example("%41+%zz")
def test_a_key_comes_out_as_it_went_in(key: str) -> None:
    for encoded in (quote_plus(key), quote_plus(key, safe="/"), quote(key)):
        assert [found.key for found in parse(notification(record(encoded)))] == [key]
    for plain in (bridged(key), json.dumps({"key": key})):
        assert [found.key for found in parse(plain)] == [key]


def test_every_created_object_counts_and_nothing_else() -> None:
    records = [
        record("a+b", "ObjectCreated:Post"),
        record("gone", "ObjectRemoved:Delete"),
        record("tagged", "ObjectTagging:Put"),
        record("c%2Bd", "s3:ObjectCreated:CompleteMultipartUpload"),
    ]
    assert [arrival.key for arrival in parse(notification(*records))] == ["a b", "c+d"]
    assert parse(bridged(kind="Object Deleted")) == parse(notification()) == ()


@pytest.mark.parametrize("wrap", [str, by_sns])
def test_what_s3_tries_a_queue_out_with_is_nothing(wrap: Any) -> None:
    assert parse(wrap(TEST_EVENT)) == ()


def test_what_an_event_may_leave_out() -> None:
    bare = {"bucket": {"name": "photos"}, "object": {"key": "a"}}
    known = Arrival("photos", "a")
    assert parse(notification({"eventName": "ObjectCreated:Put", "s3": bare})) == (known,)
    assert parse(json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": bare})) == (
        known,
    )
    # An etag in quotes is the same etag; "null" is not one version, but all that were ever written so.
    assert parse(notification(record("a", size=None, eTag='"e"', versionId="null"))) == (
        Arrival("photos", "a", "e"),
    )


def test_a_request_of_ours() -> None:
    assert parse(REQUEST) == (Arrival("photos", "uploads/acme/1", profile=Profile(goals=("less-salt",))),)
    assert parse('{"key": "a", "profile": null}') == (Arrival("", "a"),)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[]", "neither"),
        (by_sns(by_sns(notification(record()))), "neither"),
        ('{"Records": {}}', "neither"),
        ('{"source": "aws.ec2", "detail-type": "Object Created", "detail": {}}', "neither"),
        ('{"source": "aws.s3", "detail-type": "Object Created", "detail": {}}', "detail"),
        (notification(record(), {"eventName": "ObjectCreated:Put"}), "record"),
        (notification(record(), record(size=-1)), "size"),
        (notification(record(), record(size=True)), "size"),
        (notification(record(), record("%FF")), "UTF-8"),
        (notification(record(), record("")), "key"),
        (notification(record(), record("a" * (MAX_KEY_BYTES + 1))), "key"),
        (bridged("é" * (MAX_KEY_BYTES // 2 + 1)), "key"),
        (bridged("\ud800"), "key"),
        (notification(record(eTag=5)), "etag"),
        (notification(record(versionId="\n")), "version"),
        ('{"key": 5}', "field key"),
        ('{"key": "a", "bucket": "\\ud800"}', "bucket"),
        ('{"key": "a", "profile": {"goals": ["fame"]}}', "field profile"),
        ('{"key": "a", "proflie": {}}', "a field of it"),
        (json.dumps({"key": "a", "x": "é" * (MAX_MESSAGE_BYTES // 2)}, ensure_ascii=False), "larger"),
    ],
)
def test_what_is_malformed_says_why_and_quotes_nothing(message: str, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why) as caught:
        parse(message)
    assert not any(word in str(caught.value) for word in ("fame", "proflie", "ud800"))


@given(st.text() | anything.map(json.dumps))
def test_no_text_does_anything_worse_than_be_malformed(text: str) -> None:
    for body in (text, by_sns(text)):
        with contextlib.suppress(MalformedMessage):
            parse(body)


@given(st.data(), st.sampled_from(KNOWN), anything)
def test_no_message_with_a_part_replaced_does_either(data: st.DataObject, message: str, part: object) -> None:
    whole = json.loads(message)
    node, at = {"": whole}, ""
    while isinstance(node[at], dict | list) and node[at] and data.draw(st.booleans(), label="deeper"):
        node = node[at]
        at = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[at] = part
    with contextlib.suppress(MalformedMessage):
        for arrival in parse(json.dumps(whole)):
            assert arrival.key
            assert 0 < len(arrival.key.encode()) <= MAX_KEY_BYTES
            assert arrival.size is None or arrival.size >= 0
