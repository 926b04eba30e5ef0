"""The error tree: as its docstring draws it, and safe to show."""

from __future__ import annotations

import ast
import inspect
import re
from http import HTTPStatus
from pathlib import Path

import pytest

import app.errors
from app.errors import FoodDXError, by_code, tree
from app.messages import Rejected

DRAWN = re.compile(
    r"^ {4}(?P<indent>[│ ├└─]*)(?P<name>\w+) +(?P<status>\d{3}) (?P<code>\w+)(?P<retry> +retry)?$"
)
CLASSES = tree()


def drawn() -> list[tuple[str, str | None, int, str, bool]]:
    """Name, parent's name, status, code and retryable of every line of the drawing."""
    found, parents = [], {}
    for line in inspect.getdoc(app.errors).splitlines():
        if match := DRAWN.match(line):
            depth = len(match["indent"]) // 4
            parents[depth] = match["name"]
            found.append(
                (
                    match["name"],
                    parents.get(depth - 1),
                    int(match["status"]),
                    match["code"],
                    bool(match["retry"]),
                )
            )
    return found


def test_the_drawing_is_the_tree():
    classes = [
        (
            cls.__name__,
            None if cls is FoodDXError else cls.__base__.__name__,
            cls.status,
            cls.code,
            cls.retryable,
        )
        for cls in CLASSES
    ]
    assert drawn() == classes
    assert len(classes) > 20


def test_codes_are_unique_and_stable_words():
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)


@pytest.mark.parametrize("cls", CLASSES)
class TestEveryError:
    def test_has_a_real_status_and_a_public_title(self, cls):
        assert HTTPStatus(cls.status) >= HTTPStatus.BAD_REQUEST
        assert re.fullmatch(r"[A-Z][^.\n/]*", cls.title)
        assert cls.__doc__

    def test_may_be_retried_only_where_that_can_help(self, cls):
        """408, 409 in flight, 429, 503 and 504 mean later; any other status means not like this."""
        if cls.retryable:
            assert cls.status in {408, 409, 429, 503, 504}
        else:
            assert cls.status not in {408, 429, 503, 504}

    def test_says_its_title_where_nothing_else_is_said(self, cls):
        assert cls().detail == str(cls()) == cls.title
        assert cls().retry_after_s is None

    def test_says_what_it_is_told_to(self, cls):
        error = cls("in other words", retry_after_s=2)
        assert (error.detail, str(error), error.retry_after_s) == ("in other words", "in other words", 2)

    def test_comes_back_from_its_code(self, cls):
        error = by_code(cls.code, "in other words", retry_after_s=2)
        assert type(error) is cls
        assert (error.detail, error.retry_after_s) == ("in other words", 2)
        assert by_code(cls.code).detail == cls.title

    def test_survives_the_way_from_another_process(self, cls):
        rejected = Rejected.of(cls("in other words"))
        error = by_code(rejected.code, rejected.detail)
        assert (type(error), error.detail) == (cls, "in other words")


def test_a_code_nobody_knows_is_the_root():
    assert type(by_code("no_such_code")) is FoodDXError
    assert by_code("no_such_code").status == 500


def test_the_module_imports_nothing_of_ours():
    for node in ast.walk(ast.parse(Path(app.errors.__file__).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0] in {"app", "models"}]
