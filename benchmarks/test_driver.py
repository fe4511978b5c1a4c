"""What a run costs beyond its measurements: a chunk more by place, and finding all of them stored.

    pytest --benchmark --benchmark-full benchmarks/test_driver.py

Every chunk is one number. A chunk's time is that between the first stored chunk and the last, over those between; what
came before the first (processes that start, libraries that load) is told apart. Two sizes stand one below the other:
seconds a chunk that grow with the number of chunks would show. A resumed run has nothing to run, so that it is the time
of reading and verifying every stored chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import running, store
from depthgauge.encoding import decode, encode
from depthgauge.request import Request
from depthgauge.study import Context

STUDY = Path(__file__).parent / "one_number.py"
WORKERS = 2
SIZES = [50, 200, *(pytest.param(chunks, marks=pytest.mark.full) for chunks in (1_000, 10_000))]


def run(
    chunks: int, out: Path, place: running.Place, observe: Callable[[running.Progress], None] | None = None
) -> running.Outcome:
    request = Request("quick", seeds=chunks)
    return running.run(STUDY.stem, out=out, request=request, place=place, sources=[str(STUDY)], observe=observe)


def fill(chunks: int, out: Path) -> None:
    """Stores so many chunks as a run does, without waiting for the disk."""
    first = run(1, out, running.in_process())
    study = first.studies[STUDY.stem]
    folder = out / "chunks" / study.name
    (path,) = folder.iterdir()
    fingerprint = decode(path.read_bytes(), study.name, path.stem)[1]["fingerprint"]
    for chunk in study.chunks("quick", chunks):
        (folder / f"{chunk.id}.parquet").write_bytes(encode(chunk, study.run(chunk.cases, Context()), fingerprint).data)


@dataclass
class Arrivals:
    """Seconds from its start at which a run had stored its chunks."""

    began: float = field(default_factory=time.perf_counter)
    at: list[float] = field(default_factory=list)

    def note(self, progress: running.Progress) -> None:
        """Takes the time where one more chunk is stored."""
        if progress.done > len(self.at):
            self.at.append(time.perf_counter() - self.began)

    def each(self, start: float = 0.0, stop: float = 1.0) -> float:
        """Seconds a chunk, from one share of all chunks to another."""
        last = len(self.at) - 1
        first, final = round(start * last), round(stop * last)
        return (self.at[final] - self.at[first]) / (final - first)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.Place]:
    """Two workers on this machine, as `dask worker --nworkers 2 --nthreads 1` starts them."""
    distributed = pytest.importorskip("distributed", reason="a Dask cluster needs the package distributed")
    with (
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=tmp_path_factory.mktemp("dask"),
            silence_logs=50,
        ) as made,
        distributed.Client(made) as client,
    ):
        yield running.dask(client)


@pytest.fixture(params=["in process", "pool", "dask"])
def place(request: pytest.FixtureRequest) -> tuple[str, running.Place]:
    """The name of a place, and the place."""
    name = str(request.param)
    if name == "dask":
        return name, request.getfixturevalue("cluster")
    return name, running.pool(WORKERS) if name == "pool" else running.in_process()


@pytest.mark.parametrize("chunks", SIZES)
def test_chunks(
    chunks: int,
    place: tuple[str, running.Place],
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run of so many chunks, from the call to its end."""
    where, executor = place
    arrivals = Arrivals()
    benchmark.group = f"run of {chunks:,} chunks"
    done = benchmark.pedantic(run, (chunks, tmp_path / "run", executor, arrivals.note), rounds=1)
    assert done.ran == done.rows == len(arrivals.at) == chunks
    each, early, late = arrivals.each(), arrivals.each(0, 0.25), arrivals.each(0.75, 1)
    benchmark.extra_info.update(
        place=where, chunks=chunks, chunk=each, early_chunk=early, late_chunk=late, first=arrivals.at[0]
    )
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{where:10} | {chunks:6,} chunks | {1e3 * each:5.2f} ms a chunk, first quarter {1e3 * early:.2f},"
            f" last {1e3 * late:.2f} | the first was there after {arrivals.at[0]:.1f} s",
            end="",
        )


@pytest.mark.parametrize("chunks", SIZES)
def test_resume(
    chunks: int,
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that finds everything stored."""
    out, place = tmp_path / "run", running.in_process()
    fill(chunks, out)
    benchmark.group = f"resumption of {chunks:,} chunks"
    done = benchmark.pedantic(run, (chunks, out, place), rounds=1)
    stored = store.read(out)
    began = time.perf_counter()
    missing = stored.missing(STUDY.stem)
    listing = time.perf_counter() - began
    assert (missing, done.ran, done.reused) == (0, 0, chunks)
    benchmark.extra_info.update(chunks=chunks, listing=listing)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\nresumed    | {chunks:6,} chunks | {1e3 * seconds / chunks:5.2f} ms a chunk, {seconds:.2f} s |"
            f" listed in {1e3 * listing:.1f} ms, {1e6 * listing / chunks:.2f} us a chunk",
            end="",
        )
