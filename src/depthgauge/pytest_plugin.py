"""The fixture `numerics` for a user's test suite; pytest loads this by itself, and nothing else of depthgauge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from depthgauge.numerics import Numerics

PACKAGE = "depthgauge"
_STORED = pytest.StashKey[dict[Path, str]]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: Any) -> None:
    """Add `--numerics-update`."""
    parser.getgroup(PACKAGE).addoption(
        "--numerics-update",
        action="store_true",
        help="write the baselines that numerics.drift holds figures against, in place of comparing with them",
    )
    # pytest rewrites the assertions of all modules of a distribution with a plugin when they are first imported, two
    # hundred here: seconds, for nothing. It has no public way to say no.
    marked = getattr(getattr(pluginmanager, "rewrite_hook", None), "_must_rewrite", None)
    if isinstance(marked, set):
        marked.discard(PACKAGE)


@pytest.fixture
def numerics(request: pytest.FixtureRequest) -> Numerics:
    """Checks of a training, comparisons of two modules, and figures held against a stored baseline."""
    from depthgauge.numerics import Numerics  # noqa: PLC0415 - imports torch, which a suite without it never does

    path = Path(request.node.path)
    return Numerics(
        folder=path.parent / "numerics" / path.stem,
        update=bool(request.config.getoption("--numerics-update")),
        note=lambda title, text: request.node.add_report_section("call", title, text),
        test=request.node.nodeid,
        stored=request.config.stash.setdefault(_STORED, {}),
    )
