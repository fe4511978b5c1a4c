"""The entries are a package of their own beside these tests, which their worker imports, too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-results", action="store_true", help="write the results and docs/compatibility.md anew")


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Judges an entry by its key; keeps what came of it if `--keep-results` asks for it."""
    from zoo.driver import Judge
    from zoo.results import keep

    worker, outcomes = Judge(), {}

    def judged(key: str) -> dict[str, Any]:
        outcomes[key] = worker(key)
        return outcomes[key]

    yield judged
    worker.close()
    if request.config.getoption("--keep-results", default=False):
        keep(outcomes)
