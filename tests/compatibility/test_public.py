"""Public packages: the rest of docs/compatibility.md, where they are installed, as `tox run -e public` does."""

from __future__ import annotations

import pytest
from zoo.catalog import PACKAGES, PUBLIC, version

INSTALLED = {package: version(package) for package in PACKAGES}
if not any(INSTALLED.values()):
    pytest.skip("no public package is installed; `tox run -e public` tries them", allow_module_level=True)


@pytest.mark.parametrize("entry", PUBLIC, ids=lambda entry: entry.key)
def test_entry(entry, judge):
    if INSTALLED[entry.package] is None:
        pytest.skip(f"{entry.package} is not installed")
    outcome = judge(entry.key)
    if outcome["result"] == "not run":
        pytest.skip("; ".join(outcome["why"]))
    assert outcome["result"] == entry.expected, "; ".join(outcome["why"]) or outcome["unseen"]
