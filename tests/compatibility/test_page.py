"""The page, the entries and the results that are kept say the same."""

from __future__ import annotations

from zoo import results
from zoo.catalog import CORE, ENTRIES, PUBLIC
from zoo.contract import ENOUGH
from zoo.entry import KINDS

STORED = results.read()


def test_each_entry_has_a_name_and_a_result_of_its_own():
    keys = [entry.key for entry in ENTRIES]
    assert len(set(keys)) == len(keys)
    assert set(STORED) <= set(keys), "an entry is gone whose result is kept"
    assert {entry.key for entry in CORE} <= set(STORED), "run pytest tests/compatibility --keep-results"
    assert {entry.kind for entry in ENTRIES} == set(KINDS)


def test_results_are_what_is_expected():
    for entry in ENTRIES:
        told = STORED.get(entry.key, {"result": "not run"})["result"]
        assert told == entry.expected or (told == "not run" and entry in PUBLIC), entry.key
        assert entry.why or entry.expected == "pass", f"{entry.key}: a reason for what is no pass"


def test_no_pass_saw_fewer_than_nine_in_ten_weight_layers():
    for key, outcome in STORED.items():
        if outcome["result"] in {"pass", "partly"}:
            enough = outcome["seen"] >= ENOUGH * outcome["layers"]
            assert outcome["layers"] > 0, key
            assert enough == (outcome["result"] == "pass"), key


def test_most_packages_were_tried():
    tried = {entry.package for entry in PUBLIC if STORED.get(entry.key, {}).get("result") in {"pass", "partly"}}
    assert {"transformers", "peft", "accelerate", "pytorch-lightning", "torch-geometric", "x-transformers"} <= tried


def test_the_page_is_made_of_them():
    assert results.PAGE.read_text(encoding="utf-8") == results.page(STORED), (
        "docs/compatibility.md is not that of the results: pytest tests/compatibility --keep-results"
    )
