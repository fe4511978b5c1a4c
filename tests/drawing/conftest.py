"""Figures are drawn as reports draw them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from depthgauge.reports import style


@pytest.fixture(autouse=True)
def house() -> Iterator[None]:
    with style.drawing():
        yield
