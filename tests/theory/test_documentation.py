import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

from depthgauge import theory

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
MODULES = [
    "depthgauge.theory",
    *(f"depthgauge.theory.{module.name}" for module in pkgutil.iter_modules(theory.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_on_the_page_run():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 15
    assert found.failed == 0


def test_every_public_name_is_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    missing = [name for name in theory.__all__ if f"`{name}" not in page and f"theory.{name}" not in page]
    assert missing == []
