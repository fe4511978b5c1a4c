"""A study's quick run, and its report.

pytest --benchmark benchmarks/test_studies.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import reports, running, store

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "dead_units.py"


def run(name: str, out: Path) -> running.Outcome:
    sources = [str(EXAMPLE)] if name == EXAMPLE.stem else []
    return running.run(name, out=out, workers=0, sources=sources, fresh=True)


@pytest.mark.parametrize("name", ["dead_units", pytest.param("gradient_flow", marks=pytest.mark.full)])
def test_quick_run(benchmark: BenchmarkFixture, name: str, tmp_path: Path) -> None:
    """All of it in this process: cases, rows, files."""
    benchmark.group = "study"
    done = benchmark.pedantic(run, (name, tmp_path / "run"), rounds=3 if name == "dead_units" else 1, warmup_rounds=1)
    benchmark.extra_info.update(study=name, rows=done.rows, chunks=done.ran)


def test_report(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Analysis, figures, pages of a stored run."""
    done = run("dead_units", tmp_path / "run")
    stored = store.read(tmp_path / "run")
    benchmark.group = "report"
    path = benchmark.pedantic(reports.render, (stored, dict(done.studies)), rounds=3, warmup_rounds=1)
    benchmark.extra_info["bytes"] = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
