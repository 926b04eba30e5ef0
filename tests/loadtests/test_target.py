"""How the load tests reach the service and read its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.target import NoKeyError, api_key, problem_code, retry_after_s


def test_the_key_in_the_environment_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "api_key"
    file.write_text("from-the-file\n")
    assert api_key({"FOODDX_API_KEY": "from-the-environment"}, file) == "from-the-environment"
    assert api_key({}, file) == "from-the-file"


def test_without_a_key_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoKeyError, match="FOODDX_API_KEY"):
        api_key({}, tmp_path / "api_key")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"code": "overloaded"}', "overloaded"),
        (b"{}", ""),
        (b"[]", ""),
        (b"<html>", ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_the_code_of_a_problem_is_read_where_there_is_one(body: bytes | None, code: str) -> None:
    assert problem_code(body) == code


@pytest.mark.parametrize(("header", "seconds"), [("2", 2), ("0.25", 0.25), (None, 1), ("soon", 1), ("-3", 0)])
def test_retry_after_is_seconds_to_wait(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds
