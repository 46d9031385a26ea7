"""Seeded runs leave behind what they did before: a refactoring changes no bit."""

import json

import pytest
from golden_runs import CASES, FILE, machine, measure


@pytest.mark.parametrize("name", CASES)
def test_run_equals_its_stored_digests(name: str) -> None:
    stored = json.loads(FILE.read_text()).get(machine())
    if stored is None:
        pytest.skip(f"no digests of {machine()}: `python tests/golden_runs.py --update` on the commit to compare with")
    assert measure([name])[name] == stored[name]
