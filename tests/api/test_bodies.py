"""Forms and profiles, well and badly made: an error names what is wrong, and never repeats what was sent."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import is_problem
from tests.photos import coffee_jpeg

PHOTO = coffee_jpeg(64, 48)
PRIVATE = "Ana-Maria-4711"

fuzzing = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def part(name: str, data: bytes, extra: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"


FORM = part("image", PHOTO, '; filename="lunch.jpg"') + part("profile", b'{"user": "ana"}') + b"--b--\r\n"


def send(api, body, content_type="multipart/form-data; boundary=b"):
    return api.score(body, [(b"Content-Type", content_type.encode("latin-1"))])


def test_a_form_may_come_in_any_pieces(api):
    async def pieces(size):
        for start in range(0, len(FORM), size):
            yield FORM[start : start + size]

    for size in (1, 2, 7, 64, 1000):
        assert send(api, pieces(size)).json()["user"] == "ana"


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="b"',
        "Multipart/Form-Data;boundary=b",
        "multipart/form-data; a=1; boundary=b",
    ],
)
def test_the_boundary_may_be_written_in_any_way(api, content_type):
    assert send(api, FORM, content_type).status_code == 200


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b"\r\n", b"\r\n"), (b"", b"what follows the end is not read")]
)
def test_what_stands_around_a_form_does_not_matter(api, before, after):
    assert send(api, before + FORM + after).status_code == 200


def test_other_headers_of_a_part_do_not_matter(api):
    extra = '\r\nContent-Type: text/plain\r\nX-Anything: "'
    assert send(api, part("image", PHOTO, extra) + b"--b--\r\n").json()["image"]["media_type"] == "image/jpeg"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--\r\n",
        part("profile", b"{}") + b"--b--\r\n",
        part("image", PHOTO) + part("image", PHOTO) + b"--b--\r\n",
        part("profile", b"{}") + part("profile", b"{}") + part("image", PHOTO) + b"--b--\r\n",
        part("image", PHOTO) + part("photo", PHOTO) + b"--b--\r\n",
        part("Image", PHOTO) + b"--b--\r\n",
        b"--b\r\n\r\n" + PHOTO + b"\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n\r\n" + PHOTO + b"\r\n--b--\r\n",
        part("image", PHOTO),
        FORM[:-4],
        FORM[: len(PHOTO) // 2],
        FORM.replace(b"--b", b"--c"),
        FORM.replace(b"\r\n", b"\n"),
        b"--b\r\nno colon\r\n\r\n--b--\r\n",
        PHOTO,
    ],
    ids=[
        "nothing", "no part", "no image", "two images", "two profiles", "unknown part", "wrong case",
        "no header", "no name", "no end", "cut end", "cut image", "other boundary", "bare line feeds",
        "broken header", "no form",
    ],
)  # fmt: skip
def test_a_form_that_is_not_as_documented_is_refused(api, body):
    is_problem(send(api, body), 400, "invalid_request")
    assert api.local.scorer.calls == 0
    assert api.stored() == []


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "b" * 5000, '; boundary="\xff"'])
def test_a_form_without_a_usable_boundary_is_refused(api, boundary):
    is_problem(send(api, FORM, "multipart/form-data" + boundary), 400, "invalid_request")


def test_an_empty_image_in_a_form_is_an_empty_photo(api):
    is_problem(send(api, part("image", b"") + b"--b--\r\n"), 422, "image_empty")


@pytest.mark.parametrize(
    ("profile", "where"),
    [
        (f"{PRIVATE}", "profile: "),
        (f'{{"user": "{PRIVATE}"', "profile: "),
        (f'"{PRIVATE}"', "profile: "),
        ("", "profile: "),
        ("null", "profile: "),
        (f'{{"user": "{PRIVATE} Smith"}}', "profile.user: "),
        (f'{{"user": ["{PRIVATE}"]}}', "profile.user: "),
        ('{"user": ""}', "profile.user: "),
        (f'{{"user": "{PRIVATE * 20}"}}', "profile.user: "),
        (f'{{"user": "ana\\n{PRIVATE}"}}', "profile.user: "),
        (f'{{"goals": ["less-salt", "{PRIVATE}"]}}', "profile.goals.1: "),
        (f'{{"goals": "{PRIVATE}"}}', "profile.goals: "),
        (f'{{"diet": ["{PRIVATE}"]}}', "profile.diet.0: "),
        (f'{{"avoid": [{{"a": "{PRIVATE}"}}]}}', "profile.avoid.0: "),
        (f'{{"weight_kg": "{PRIVATE}"}}', "profile.weight_kg: "),
    ],
)
def test_a_wrong_profile_is_named_and_not_repeated(api, profile, where):
    body = part("image", PHOTO) + part("profile", profile.encode()) + b"--b--\r\n"
    problem = is_problem(send(api, body), 422, "invalid_field")
    assert problem.detail.startswith(where)
    assert PRIVATE not in problem.model_dump_json()
    assert api.local.scorer.calls == 0


def test_every_wrong_field_of_a_profile_is_named(api):
    profile = json.dumps({"user": "a b", "goals": ["fame"], "age": 7}).encode()
    detail = is_problem(
        send(api, part("image", PHOTO) + part("profile", profile) + b"--b--\r\n"), 422, "invalid_field"
    ).detail
    assert all(f"profile.{field}: " in detail for field in ("user", "goals.0", "age"))


def test_a_profile_that_is_no_utf8_is_refused(api):
    body = part("image", PHOTO) + part("profile", b'{"user": "\xff"}') + b"--b--\r\n"
    is_problem(send(api, body), 422, "invalid_field")


@pytest.mark.parametrize("size", [16 * 1024 + 1, 1024 * 1024])
def test_a_huge_profile_is_refused(api, size):
    body = part("image", PHOTO) + part("profile", b" " * size) + b"--b--\r\n"
    response = send(api, body)
    if size < 20_000:
        assert "profile: too long" in is_problem(response, 422, "invalid_field").detail
    else:
        assert response.status_code in {413, 422}


def test_a_profile_of_everything_is_taken(api):
    profile = {
        "user": "A.z_0@:+-" + "x" * 119,
        "goals": ["less-sugar", "less-salt", "more-fibre", "weight", "blood-glucose", "blood-pressure"],
        "diet": ["vegan", "gluten-free", "lactose-free", "halal", "kosher"],
        "avoid": ["alcohol", "celery", "tree-nut"],
    }
    assert api.result(PHOTO, json.dumps(profile))["user"] == profile["user"]


# Whatever is sent: a result or a problem. The fixture holds every answer against the contract.


def answered(response):
    assert response.status_code < 500, response.text


@fuzzing
@given(body=st.binary(max_size=300), content_type=st.text(st.characters(max_codepoint=255), max_size=40))
def test_any_body_of_any_type_is_answered(api, body, content_type):
    answered(send(api, body, content_type))


@fuzzing
@given(data=st.data())
def test_any_damage_to_a_form_is_answered(api, data):
    body = bytearray(FORM)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.integers(0, 40))
        body[at : at + cut] = data.draw(
            st.sampled_from([b"--b", b"\r\n", b"--", b'"', b"\0"]) | st.binary(max_size=9)
        )
    answered(send(api, bytes(body)))


@fuzzing
@given(boundary=st.text(st.characters(max_codepoint=255), max_size=80), rest=st.binary(max_size=60))
def test_any_boundary_is_answered(api, boundary, rest):
    body = b"--" + boundary.encode("latin-1") + rest
    answered(send(api, body, f"multipart/form-data; boundary={boundary}"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["user", "goals", "diet", "avoid", "key", "profile", "score", "comment", "bytes"])


@fuzzing
@given(profile=JSON | st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_profile_is_answered(api, profile):
    body = part("image", PHOTO) + part("profile", json.dumps(profile).encode()) + b"--b--\r\n"
    assert send(api, body).status_code in {200, 400, 422}


@fuzzing
@given(
    path=st.sampled_from(
        ["/v1/scores", "/v1/uploads", "/v1/scores/0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11/review"]
    ),
    body=JSON | st.dictionaries(FIELDS, JSON, max_size=4),
)
def test_any_json_is_answered(api, path, body):
    headers = {"Content-Type": "application/json"}
    response = api.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code in {404, 422, 501}
