"""`pytest --benchmark`, on a small project that has our conftest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depthgauge.timing.expected import BESIDE, TOOK
from depthgauge.timing.stored import read

pytestmark = pytest.mark.slow

pytest.importorskip("pytest_benchmark")
CONFTEST = Path(__file__).parent.parent / "conftest.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\ntestpaths = ["tests"]\n'
    )
    for folder, names in {"tests": ("one",), "benchmarks": ("sum", "sorted")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"test_{name}.py").write_text(
                f"def test_{name}(benchmark):\n    benchmark({name}, range(9))\n"
                if folder == "benchmarks"
                else f"def test_{name}():\n    pass\n"
            )
    (tmp_path / "benchmarks" / "test_plain.py").write_text("def test_plain():\n    pass\n")
    return tmp_path


def alone() -> dict[str, str]:
    """The environment without this pytest's own, pytest-xdist's among it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def outcomes(project: Path, *words: str, code: int = 0) -> dict[str, str]:
    """Test -> outcome."""
    quick = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=1") if "no:benchmark" not in words else ()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *quick, *words],
        cwd=project, env=alone(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        return {"error": done.stderr.strip().splitlines()[-1]}
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("PASSED ", "SKIPPED ", "FAILED "))]
    return {line[1].rsplit("::", 1)[-1]: line[0] for line in lines}


def test_the_tests_alone_without_it(project: Path) -> None:
    assert outcomes(project) == {"test_one": "PASSED"}


def test_the_benchmarks_alone_with_it(project: Path) -> None:
    found = outcomes(project, "--benchmark")
    assert {name for name, outcome in found.items() if outcome == "PASSED"} == {"test_sum", "test_sorted"}
    assert "test_one" not in found


def test_a_name_that_no_benchmark_has_is_no_traceback(project: Path) -> None:
    config = project / "pyproject.toml"
    config.write_text(config.read_text() + 'filterwarnings = ["error"]\n')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark", "-k", "nosuch"],
        cwd=project, env=alone(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_files_that_are_named_stay(project: Path) -> None:
    assert outcomes(project, "--benchmark", "benchmarks/test_sum.py") == {"test_sum": "PASSED"}


def test_the_options_of_pytest_benchmark_go_with_it(project: Path) -> None:
    words = ("--benchmark", "--benchmark-json=out.json", "--benchmark-save=first", "--benchmark-group-by=func")
    outcomes(project, *words, "--benchmark-histogram=drawn/h" if _draws() else "--benchmark-verbose", "-k", "sum")
    stored = json.loads((project / "out.json").read_text())
    assert [one["name"] for one in stored["benchmarks"]] == ["test_sum"]
    assert list(project.glob(".benchmarks/*/0001_first.json"))
    compared = outcomes(project, "--benchmark", "--benchmark-compare=0001", "--benchmark-compare-fail=min:1000000%")
    assert compared["test_sum"] == "PASSED"
    untimed = outcomes(project, "--benchmark", "--benchmark-disable")
    assert (untimed["test_sum"], untimed["test_sorted"]) == ("PASSED", "PASSED")
    skipped = outcomes(project, "--benchmark", "--benchmark-skip")
    assert {name for name, outcome in skipped.items() if outcome == "PASSED"} == {"test_plain"}


def stored(project: Path) -> list[Path]:
    return sorted(project.glob(".benchmarks/*/*.json"))


def test_a_run_is_stored_with_its_rounds_and_nothing_else_stays(project: Path) -> None:
    outcomes(project, "--benchmark")
    assert [path.name for path in stored(project)] == ["0001_quick.json"]
    told = json.loads(stored(project)[0].read_text())
    assert all(each["stats"]["data"] for each in told["benchmarks"])
    assert all(each["options"]["disable_gc"] for each in told["benchmarks"])
    assert all(each["extra_info"][TOOK[False]] > 0 for each in told["benchmarks"])  # by which the next is estimated
    assert told[BESIDE] > 0
    outcomes(project, "--benchmark", "--benchmark-disable")
    outcomes(project, "--benchmark", "--benchmark-save=mine")
    assert [path.name for path in stored(project)] == ["0001_quick.json", "0002_mine.json"]


def test_the_quick_selection_and_everything(project: Path) -> None:
    (project / "benchmarks" / "test_long.py").write_text(
        "import pytest\n@pytest.mark.full\ndef test_long(benchmark):\n    benchmark(sum, range(9))\n"
    )
    assert "test_long" not in outcomes(project, "--benchmark")
    assert outcomes(project, "--benchmark", "--benchmark-full")["test_long"] == "PASSED"
    assert stored(project)[-1].name == "0002_full.json"


@pytest.mark.alone
def test_what_was_measured_outlives_a_kill(project: Path) -> None:
    (project / "benchmarks" / "test_zzz.py").write_text(
        "import time\ndef test_zzz(benchmark):\n    benchmark.pedantic(time.sleep, (600,), rounds=1)\n"
    )
    words = ("-p", "no:cacheprovider", "--benchmark", "--benchmark-max-time=0.01", "--benchmark-json=out.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *words],
        cwd=project, env=alone(),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 100
        while not (stored(project) and len(json.loads(stored(project)[0].read_text())["benchmarks"]) == 2):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
    (kept,) = stored(project)
    assert kept.name.startswith("unfinished_")
    assert f"benchmarks: stored as they finish in {kept}" in said
    run = read(kept)  # it is a run like any other
    assert {name.rsplit("::", 1)[-1] for name in run.seconds} == {"test_sum", "test_sorted"}
    assert all(run.seconds.values())
    assert {"machine_info", "commit_info", "datetime", "version"} <= set(run.content)


def _draws() -> bool:
    try:
        import pygal  # noqa: F401 - pytest-benchmark draws histograms with it
    except ImportError:
        return False
    return True


def test_it_says_what_it_needs(project: Path) -> None:
    told = outcomes(project, "--benchmark", "-p", "no:benchmark", code=4)
    assert told["error"] == "ERROR: --benchmark needs pytest-benchmark: pip install pytest-benchmark"


def test_nothing_is_timed_beside_other_processes(project: Path) -> None:
    pytest.importorskip("xdist")
    told = outcomes(project, "--benchmark", "-n", "2", code=4)
    assert told["error"] == "ERROR: --benchmark times one thing at a time: leave out -n and --dist"
