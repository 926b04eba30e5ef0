"""openapi.json is the contract: valid, complete, and true of whatever is sent."""

import json
from typing import get_args
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from app import schemas
from app.errors import tree
from app.schemas import Problem
from tests.api.conftest import contract
from tests.photos import coffee_jpeg

SCHEMA = contract()
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in SCHEMA["paths"].items()
    for method, operation in operations.items()
}
CALLS = sorted(OPERATIONS)

# No route's answer: the method is not one, and nothing of this deployment is left out of the contract.
OF_NO_ROUTE = {"method_not_allowed"}


def refs(node):
    """Every $ref below ``node``."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from refs(inner)


def test_the_page_is_valid_openapi(api):
    assert api.get("/openapi.json").json() == SCHEMA
    assert SCHEMA["openapi"] == "3.1.0"
    validate(SCHEMA)


def test_these_are_the_calls_of_the_contract():
    assert CALLS == [
        ("DELETE", "/v1/scores/{result_id}"),
        ("DELETE", "/v1/users/{user}"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v1/labels"),
        ("GET", "/v1/models"),
        ("GET", "/v1/reviews"),
        ("GET", "/v1/scores"),
        ("GET", "/v1/scores/{result_id}"),
        ("GET", "/v1/scores/{result_id}/image"),
        ("POST", "/v1/scores"),
        ("POST", "/v1/scores/{result_id}/review"),
        ("POST", "/v1/uploads"),
    ]


def test_every_reference_leads_somewhere_and_every_schema_is_used():
    named = {ref.removeprefix("#/components/schemas/") for ref in refs(SCHEMA)}
    assert named == set(SCHEMA["components"]["schemas"])


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_call_is_described(call):
    operation = OPERATIONS[call]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    assert ("security" in operation) == call[1].startswith("/v1/")
    for status, response in operation["responses"].items():
        assert response["description"]
        assert ("application/problem+json" in response.get("content", {})) == (int(status) >= 400)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_json_body_has_an_example_that_is_valid(call):
    operation = OPERATIONS[call]
    contents = [operation.get("requestBody", {}), operation["responses"].get("200", {})]
    for content in contents:
        media = content.get("content", {}).get("application/json")
        if media is None or media == {"schema": {}}:
            continue
        name = media["schema"].get("$ref", "").rpartition("/")[2]
        if name:
            (example,) = SCHEMA["components"]["schemas"][name]["examples"]
            model = getattr(schemas, name)
            assert (
                model.model_validate_json(json.dumps(example)).model_dump(mode="json").keys()
                >= example.keys()
            )
        else:
            assert media["example"]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_error_has_an_example_that_is_one(call):
    kinds = {error.code: error for error in tree()}
    for status, response in OPERATIONS[call]["responses"].items():
        media = response.get("content", {}).get("application/problem+json")
        if media is None:
            continue
        assert media["schema"] == {"$ref": "#/components/schemas/Problem"}
        for code, example in media["examples"].items():
            problem = Problem.model_validate(example["value"])
            assert (problem.code, problem.status) == (code, int(status))
            assert (problem.title, problem.status) == (kinds[code].title, kinds[code].status)


def documented(call) -> set[str]:
    """The codes that a call may answer."""
    return {
        code
        for response in OPERATIONS[call]["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }


def test_every_code_is_documented_somewhere():
    assert {error.code for error in tree()} - set().union(*map(documented, CALLS)) <= OF_NO_ROUTE


def test_every_call_documents_what_any_of_its_kind_may_answer():
    for method, path in CALLS:
        codes = documented((method, path))
        if not path.startswith("/v1/"):
            continue
        assert {"unauthenticated", "internal"} <= codes
        if "requestBody" in OPERATIONS[method, path]:
            assert {"invalid_request", "body_timeout", "body_too_large", "invalid_field"} <= codes
        if OPERATIONS[method, path].get("parameters"):
            assert "invalid_field" in codes
        if path not in {"/v1/models", "/v1/uploads"}:
            assert "results_unavailable" in codes


def test_the_words_of_a_profile_are_listed():
    properties = SCHEMA["components"]["schemas"]["Profile"]["properties"]
    for name, words in (("goals", schemas.Goal), ("diet", schemas.Diet), ("avoid", schemas.Avoid)):
        assert properties[name]["items"]["enum"] == list(get_args(words))


# Whatever is sent is answered as documented. The fixture holds every answer against the page.

LATIN = st.text(st.characters(max_codepoint=255), max_size=30)
HEADERS = [
    "Idempotency-Key", "X-Budget-Ms", "X-Request-Id", "Authorization", "Content-Type", "Content-Length",
    "Accept", "Prefer", "Range", "If-None-Match", "Origin", "Host", "Expect", "Transfer-Encoding",
]  # fmt: skip


def values(parameter: dict) -> st.SearchStrategy[str]:
    """Text for a parameter: some that its schema allows, some that nearly does, and any at all."""
    kinds = parameter["schema"].get("anyOf", [parameter["schema"]])
    found = [st.text(max_size=30), st.integers().map(str)]
    for kind in kinds:
        if "pattern" in kind:
            found.append(st.from_regex(kind["pattern"]))
        if kind["type"] == "integer":
            found.append(st.integers(kind["minimum"] - 1, kind["maximum"] + 1).map(str))
    return st.one_of(found)


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_parameter_and_no_header_makes_the_service_fail(api, data):
    method, path = data.draw(st.sampled_from(CALLS))
    query: list[tuple[str, str]] = []
    for parameter in OPERATIONS[method, path].get("parameters", []):
        value = data.draw(values(parameter), label=parameter["name"])
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(value, safe=""))
        elif parameter["in"] == "query" and data.draw(st.booleans()):
            query += [(parameter["name"], value)] * data.draw(st.integers(1, 2))
    query += data.draw(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=1))
    headers = data.draw(st.dictionaries(st.sampled_from(HEADERS), LATIN, max_size=3))
    body = data.draw(st.sampled_from([b"", b"{}", b"\0", coffee_jpeg(64, 48)])) if method == "POST" else None
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    response = api.request(method, path, params=query, headers=sent, content=body)
    assert response.status_code not in {500, 502, 503}, response.text


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW"]),
    path=st.text(max_size=40),
)
def test_no_path_makes_the_service_fail(api, method, path):
    assert api.request(method, "/" + quote(path, safe="/")).status_code < 500
