"""Places where chunks run: what a Dask cluster without workers is told, by a client that needs none."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from depthgauge import places
from depthgauge.worker import RunError


class Client:
    """A cluster whose first worker comes when it is waited for, or never."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._there: dict[str, int] = {}

    def nthreads(self) -> dict[str, int]:
        return self._there

    def wait_for_workers(self, number: int, timeout: float) -> None:
        assert number == 1
        assert 0 < timeout <= 60
        if self._threads is None:
            raise TimeoutError
        self._there = {"tcp://x": self._threads}


@pytest.fixture(autouse=True)
def distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = SimpleNamespace(Client=Client, KilledWorker=RuntimeError)
    monkeypatch.setitem(sys.modules, "distributed", module)


def test_the_first_worker_of_a_cluster_is_waited_for() -> None:
    assert places.dask(Client(1)).workers == 1


@pytest.mark.parametrize(
    ("threads", "told"),
    [(None, "the Dask scheduler has no worker, and none came within 30 s"), (2, "every Dask worker must have one thr")],
)
def test_a_cluster_without_workers_and_one_of_others_are_told_apart(threads: int | None, told: str) -> None:
    with pytest.raises(RunError, match=told):
        places.dask(Client(threads))
