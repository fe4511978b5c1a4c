"""A sweep on a Dask cluster, of which a worker is killed on the way: the same rows as a pool's, bit for bit."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from depthgauge import running
from depthgauge.request import Request

distributed = pytest.importorskip("distributed", reason="a Dask cluster needs the package distributed")
pytestmark = [pytest.mark.alone, pytest.mark.slow]
WALK = str(Path(__file__).parent / "engine_studies" / "walk.py")
REQUEST = Request("standard")
LONGEST = 120.0  # seconds


def bits(outcome):
    """Every row, so that equal means equal bit by bit: order, text, NaN and all."""
    frame = outcome.stored.frame("walk")
    value = frame["value"].to_numpy().view(np.int64).tolist()
    rest = [frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame if name != "value"]
    return [list(frame.columns), value, *rest]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one thread each, under nannies that start another where one dies."""
    folder = tmp_path_factory.mktemp("dask")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder, silence_logs=50
    ) as made:
        yield made


def test_a_sweep_of_which_a_worker_is_killed_has_the_rows_of_a_pool(tmp_path, cluster):
    began, killed, there = time.monotonic(), [], []
    with distributed.Client(cluster) as client:
        workers = client.run(os.getpid)

        def observe(progress):
            """Kill a worker that has a chunk, once others have been finished; its successor gets some of the last."""
            assert time.monotonic() < began + LONGEST
            busy = [address for address, tasks in client.processing().items() if tasks]
            if not killed and progress.done >= 2 and busy:
                killed.append(workers[busy[0]])
                os.kill(killed[0], signal.SIGKILL)
            if progress.done == progress.total - 6:
                client.wait_for_workers(2, timeout=60)
                there.append(set(client.run(os.getpid).values()))

        swept = running.run(
            "walk",
            out=tmp_path / "cluster",
            request=REQUEST,
            place=running.dask(client),
            sources=[WALK],
            observe=observe,
        )
        assert len(killed) == 1
        assert killed[0] not in there[0]
        assert set(client.run(os.getpid).values()) == there[0], "the run ended a worker of the cluster"
    pooled = running.run("walk", out=tmp_path / "pool", request=REQUEST, workers=1, sources=[WALK])
    assert swept.ran == pooled.ran == len(swept.chunks["walk"])
    assert len(swept.stored.frame("walk")) == pooled.rows
    assert bits(swept) == bits(pooled)
    assert set(swept.stored.frame("walk")["status"]) == {"ok"}


def test_workers_with_several_threads_are_refused(tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", local_directory=tmp_path
        ) as made,
        distributed.Client(made) as client,
        pytest.raises(running.RunError, match="every Dask worker must have one thread"),
    ):
        running.dask(client)
