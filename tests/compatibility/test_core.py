"""Every kind of module, loop and wrapper that PyTorch itself has: the first part of docs/compatibility.md."""

from __future__ import annotations

import pytest
from zoo.catalog import CORE


@pytest.mark.parametrize("entry", CORE, ids=lambda entry: entry.key)
def test_entry(entry, judge):
    outcome = judge(entry.key)
    assert outcome["result"] == entry.expected, "; ".join(outcome["why"]) or outcome["unseen"]
