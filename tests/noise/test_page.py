"""The page's examples run, and it names all that is public."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from depthgauge import noise

PAGE = Path(__file__).parents[2] / "docs" / "noise.md"


def test_examples_on_the_page_run() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 10
    assert found.failed == 0


@pytest.mark.parametrize("name", ["scale", "of_replicas", "from_batches"])
def test_the_page_names_it(name: str) -> None:
    assert f"noise.{name}(" in PAGE.read_text(encoding="utf-8")
    assert name in noise.__all__
