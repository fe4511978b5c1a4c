"""Peak memory of an analysis, at 1, 10 and 100 times the rows.

    pytest --benchmark benchmarks/test_rows.py

A study of four equal parts is written as a run has it, rows drawn; cases' ids are as long as those of the studies. A
process of its own reads and analyses it part by part, as a report does, or from one frame of all rows. What it needs
beyond its imports is printed, and divided by the rows of a part.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import seeding, store
from depthgauge.encoding import encode
from depthgauge.parts import Analysis, Answer, Part, sizes, study
from depthgauge.seeding import Purpose
from depthgauge.store import Store
from depthgauge.study import Case, Context, Grid, Rows

PARTS, CASES, LAYERS = 4, 20, 32
SIZES = sizes("seeds", quick=(5,), ten=(50,), hundred=(500,))
TIMES = {"quick": 1, "ten": 10, "hundred": 100}


def grids(seeds: int) -> Iterator[Grid]:
    fixed = {"sigma_w": 1.4142135623730951, "sigma_b": 0.05, "width": 256, "depth": LAYERS, "input_correlation": 0.5}
    yield Grid({"activation": ("tanh", "relu", "gelu", "selu")}, fixed, seeds, chunk=CASES)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    for case in cases:
        draws = seeding.numpy_generator(case.random_seed(), Purpose.INPUTS)
        layers = [f"block.{place}.linear" for place in range(LAYERS)]
        for direction in ("forward", "backward"):
            for metric in ("rms", "mean", "share_zero"):
                yield case.rows(
                    metric, draws.random(LAYERS), layer=layers, layer_index=range(LAYERS), direction=direction
                )


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """A profile over layers and seeds, of one metric: what many parts do first."""
    rms = rows[rows["metric"] == "rms"]
    by_layer = ["activation", "direction", "layer_index"]
    profiles = rms.pivot_table(index=by_layer, columns="seed", values="value").mean(axis=1).reset_index()
    yield f"profiles_{rows['part'].iloc[0]}", profiles
    yield f"cases_{rows['part'].iloc[0]}", rows.drop_duplicates("case")[["case", "seed"]].describe()


STUDY = study(
    "many_rows",
    "How much?",
    tuple(Part(f"part_{place}", (), SIZES, grids, run, analyse) for place in range(PARTS)),
)


def write(directory: Path, preset: str) -> int:
    """A run's directory with all rows of a preset; how many there are."""
    chunks = STUDY.chunks(preset)
    with Store.open(directory, {}) as opened:
        opened.plan({STUDY.name: {"preset": preset, "seeds": None, "origin": None, "threads": 1}}, {STUDY.name: chunks})
        rows = 0
        for chunk in chunks:
            encoded = encode(chunk, run(chunk.cases, Context()), {})
            rows += encoded.summary.rows
            (directory / "chunks" / STUDY.name / f"{chunk.id}.parquet").write_bytes(
                encoded.data
            )  # no waiting for a disk
    return rows


def measure(directory: str, how: str) -> None:
    """Analyse a stored run and print what that took: MB beyond those of the imports, and seconds."""
    before, began = _peak(), time.perf_counter()
    stored = store.read(directory)
    assert isinstance(STUDY.analyse, Analysis)
    findings = STUDY.analyse.of(stored.rows(STUDY.name)) if how == "parts" else STUDY.analyse(stored.frame(STUDY.name))
    assert len(findings.tables) == 2 * PARTS
    assert not findings.errors
    told = {"megabytes": _peak() - before, "imports": before, "seconds": time.perf_counter() - began}
    print(json.dumps(told))  # noqa: T201 # read by the benchmark


def _peak() -> float:
    """MB; `ru_maxrss` would be that of the process which started this one, where that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(directory: Path, how: str) -> dict[str, float]:
    words = [sys.executable, __file__, str(directory), how]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300)
    told: dict[str, float] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("how", ["parts", "whole"])
@pytest.mark.parametrize("preset", ["quick", "ten", pytest.param("hundred", marks=pytest.mark.full)])
def test_peak_memory(
    preset: str, how: str, benchmark: BenchmarkFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "run", preset)
    benchmark.group = "rows"
    told = benchmark.pedantic(measured, (tmp_path / "run", how), rounds=1)
    each = told["megabytes"] * 2**20 / (rows / PARTS)
    benchmark.extra_info.update(told, rows=rows, how=how, bytes_a_row_of_the_largest_part=each)
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{TIMES[preset]:3} times, {rows:9,} rows, {how:5}: {told['megabytes']:6,.0f} MB beyond the imports'"
            f" {told['imports']:.0f}, {each:5,.0f} bytes a row of the largest part, {told['seconds']:.1f} s",
            end="",
        )


if __name__ == "__main__":
    measure(*sys.argv[1:])
