"""The documentation, held against the code: what is not documented, or documented and not there, fails."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel
from rich.text import Text

from app.api.routes import health, router
from app.cli import _parser
from app.errors import tree
from app.schemas import Problem, Profile, Result, ReviewIn, UploadIn
from app.serving import _ready_block
from app.settings import PREFIX, Settings
from app.stores import results, tenants
from app.telemetry import METRICS, STAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for folder in ("", "docs", "docs/aws", "models", "models/tables", "loadtests")
    for path in (ROOT / folder).glob("*.md")
)
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
KEYS = (ROOT / "docs" / "keys.md").read_text()
ROUTES = [route for part in (router, health) for route in part.routes if isinstance(route, APIRoute)]
# What the application serves beside the routes of the contract.
PUBLIC_PAGES = {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")}


def section(page: str, heading: str) -> str:
    return f"\n{page}".partition(f"\n{heading}\n")[2]


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its own."""
    lines = section(page, heading).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line[1:].removesuffix("|").split("|")])
    return rows


def code(cell: str) -> list[str]:
    """What a cell has in code style."""
    return re.findall(r"`([^`]+)`", cell)


def default_of(name: str) -> str:
    value = Settings.model_fields[name].default
    return "" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)


def test_every_setting_with_its_variable_and_default() -> None:
    documented = [
        (*code(name), *code(variable), "".join(code(default)))
        for name, variable, default, _ in table(README, "## Configuration")
    ]
    assert documented == [(name, PREFIX + name.upper(), default_of(name)) for name in Settings.model_fields]


def test_every_error_with_its_status_and_whether_to_retry() -> None:
    documented = [
        (code(name)[0], int(status), retry == "yes")
        for name, status, retry, _ in table(README, "### The errors")
    ]
    assert documented == [(error.code, error.status, error.retryable) for error in tree()]


def test_every_metric_with_its_kind_and_labels() -> None:
    rows = table(OPERATIONS, "## Metrics")
    documented = {code(name)[0]: (kind, tuple(code(labels))) for name, kind, labels, _ in rows}
    assert documented == {name: (metric.kind, metric.labels) for name, metric in METRICS.items()}
    assert all(f"`{stage}`" in OPERATIONS for stage in STAGES)


def test_every_log_message() -> None:
    call = re.compile(r"(?:logger\.(?:info|warning|error|exception)|log_soon)\(\s*\"([^\"]+)\"")
    logged = {found for path in (ROOT / "app").rglob("*.py") for found in call.findall(path.read_text())}
    assert "scored" in logged
    assert {message for row in table(OPERATIONS, "## Logs") for message in code(row[0])} == logged


def test_every_call() -> None:
    documented = {
        tuple(call.split(" "))
        for row in table(README, "### Every call")
        for cell in row
        for call in code(cell)
        if re.match(r"(GET|POST|PUT|PATCH|DELETE) /", call)
    }
    offered = {(method, route.path) for route in ROUTES for method in route.methods}
    assert documented == offered | PUBLIC_PAGES


def fields(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_every_field_of_the_result() -> None:
    documented = [name for row in table(README, "### The result") for name in code(row[0])]
    assert set(documented) == fields(Result)
    assert len(documented) == len(set(documented))


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def test_every_command_and_option() -> None:
    documented = [call.split() for row in table(README, "## The command") for call in code(row[0])]
    commands = parsers(_parser())
    assert {words[1] for words in documented} == set(commands)
    for group in ("model", "tenant", "credentials"):
        assert {words[2] for words in documented if words[1] == group} == set(parsers(commands[group]))
    words = section(README, "## The command").partition("\n## ")[0]
    options = {option for p in commands.values() for a in p._actions for option in a.option_strings}
    assert {option for option in options - {"-h", "--help"} if option not in words} == set()


def test_every_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE)
    assert set(named) == set(targets)


def test_the_ready_block_is_the_one_that_is_shown() -> None:
    shown = Text.from_markup(_ready_block(Settings(), "fdx_…", Path("…/data/sample.jpg"), 12.5)).plain
    indented = "\n".join(f"    {line}" if line else "" for line in shown.strip().splitlines())
    assert indented in README


# --- files and links ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text())
    named = re.findall(r"(?<![\w/.~-])((?:app|models|tests|loadtests|docs)/[\w/.-]*\w)", text)
    named += re.findall(r"`(\w+\.(?:yaml|toml|lock|md))`", text)
    assert [name for name in named if not any((base / name).exists() for base in (ROOT, page.parent))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)\s:]+)\)", README)}
    assert {str(page.relative_to(ROOT)) for page in PAGES if page not in linked} == {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert re.findall(r"<<.*?(?:>>|$)|\bTIME\b|\bTODO\b|\bTBD\b", page.read_text(), re.MULTILINE) == []


# --- the examples ---------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def curls() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


class Call:
    """A curl line: its method, path, query, headers and body."""

    def __init__(self, words: list[str]) -> None:
        curl = argparse.ArgumentParser("curl", exit_on_error=False)
        curl.add_argument("-sS", action="store_true")
        curl.add_argument("-X")
        curl.add_argument("-o")
        curl.add_argument("-H", action="append", default=[])
        curl.add_argument("-F", action="append", default=[])
        curl.add_argument("-d")
        curl.add_argument("--data-binary")
        curl.add_argument("url")
        given = curl.parse_args(words[1:])
        has_body = bool(given.F or given.d or given.data_binary)
        url = urlsplit(given.url)
        self.method = given.X or ("POST" if has_body else "GET")
        self.path, self.query = url.path, parse_qs(url.query)
        self.headers = dict(header.split(": ", 1) for header in given.H)
        self.form = dict(part.split("=", 1) for part in given.F)
        self.json = given.d
        self.file = given.data_binary or self.form.get("image")

    def route(self) -> APIRoute:
        found = [r for r in ROUTES if self.method in r.methods and r.path_regex.fullmatch(self.path)]
        assert len(found) == 1, (self.method, self.path)
        return found[0]


@pytest.mark.parametrize("words", curls(), ids=lambda words: words[-1].partition("8000")[2])
def test_an_example_is_a_call_that_the_service_has(words: list[str]) -> None:
    assert words[0] == "curl"
    call = Call(words)
    route = call.route()
    assert call.headers.pop("Authorization") == "Bearer $KEY"
    known = {field.alias for field in route.dependant.header_params} | {"Content-Type"}
    assert set(call.headers) <= known
    assert set(call.query) <= {field.alias for field in route.dependant.query_params}
    if call.json:
        assert call.headers.get("Content-Type") == "application/json"
        {"review": ReviewIn, "uploads": UploadIn}[route.name].model_validate_json(call.json)
    if call.form:
        assert set(call.form) == {"image", "profile"}
        Profile.model_validate_json(call.form["profile"])
    if call.file:
        assert call.file.lstrip("@") in {"data/sample.jpg", "README.md"}


def test_every_v1_call_has_an_example() -> None:
    shown = {(call.method, call.route().path) for call in map(Call, curls())}
    offered = {(method, route.path) for route in router.routes for method in route.methods}
    assert offered == shown


def answers() -> Iterator[tuple[dict[str, Any], type[BaseModel]]]:
    """Every answer in the README, with the schema of the call before it."""
    for calls, text in re.findall(r"```sh\n([^`]*)```\n```json\n([^`]*)```", README):
        route = Call(shlex.split(calls.splitlines()[-1])).route()
        answer = json.loads(text)
        yield answer, Problem if "code" in answer else route.response_model or route.responses[200]["model"]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def unknown_fields(value: Any, annotation: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in unknown_fields(item, annotation)]
    schema = next(models_in(annotation), None)
    if not isinstance(value, dict) or schema is None:
        return []
    hints = get_type_hints(schema)
    return [
        name
        for key, inner in value.items()
        for name in ([key] if key not in fields(schema) else unknown_fields(inner, hints[key]))
    ]


def test_the_answers_have_the_fields_of_their_schemas() -> None:
    shown = list(answers())
    assert len(shown) == len(blocks("json"))
    assert [unknown_fields(answer, model) for answer, model in shown] == [[] for _ in shown]


def test_the_first_answer_is_whole() -> None:
    first, model = next(answers())
    assert model is Result
    Result.model_validate(first)
    assert set(first) == fields(Result)


# --- the keys -------------------------------------------------------------------------------------


def test_every_key() -> None:
    documented = {code(row[0])[0] for row in table(KEYS, "# The keys in Redis")}
    words = (results.__doc__ or "") + (tenants.__doc__ or "")
    known = {key.removeprefix("fooddx:{tenant}:") for key in re.findall(r"^``([^`]+)``", words, re.MULTILINE)}
    assert documented == known - {"fooddx:tenants"}  # the one outside, told of above the table


def test_every_script_and_what_it_answers() -> None:
    documented = {code(row[0])[0]: set(code(row[2])) for row in table(KEYS, "## The scripts")}
    scripts = {f"app/stores/{path.name}": path for path in (ROOT / "app" / "stores").glob("*.lua")}
    answers = {n: set(re.findall(r"(?:return|=) \{'(\w+)'", path.read_text())) for n, path in scripts.items()}
    assert documented == answers
