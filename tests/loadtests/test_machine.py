"""What figures say of their machine."""

from __future__ import annotations

import time

import pytest

from loadtests import machine


def test_settings_are_told_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOODDX_BATCH_SIZE", "8")
    monkeypatch.setenv("FOODDX_API_KEY", "secret-one")
    monkeypatch.setenv("FOODDX_REDIS_URL", "redis://:secret-two@host")
    facts = machine.facts()
    assert facts["settings"]["FOODDX_BATCH_SIZE"] == "8"
    assert "secret" not in repr(facts)
    assert {"Python", "ray", "openvino"} <= facts["versions"].keys()


def test_a_busy_machine_is_busier() -> None:
    before, own = machine.busy_s(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert machine.busy_s() - before >= 0.15
