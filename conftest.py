"""`pytest` runs the tests, `pytest --benchmark` the benchmarks."""

from __future__ import annotations

import os
import shlex

import pytest

# What a run of ours has in place of pytest-benchmark's own defaults, by option: rounds long against the clock, and few
# enough to be stored. Whoever gives the option gets what they gave.
QUICK = {"max_time": "0.25", "min_time": "0.001"}
FULL = {"max_time": "1.0", "min_time": "0.001"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag `--benchmark`, and what goes with it."""
    parser.addoption(
        "--benchmark",
        action="store_true",
        dest="run_benchmarks",
        help="run the benchmarks of benchmarks/ and nothing else; goes with every option of pytest-benchmark",
    )
    parser.addoption(
        "--benchmark-full",
        action="store_true",
        dest="run_every_benchmark",
        help="with --benchmark: every benchmark, in place of the quick selection",
    )
    parser.addoption(
        "--benchmark-device",
        metavar="DEVICE",
        dest="run_benchmarks_on",
        help="with --benchmark: cpu, cuda, cuda:1 or auto; without it the CPU, and CUDA where there is one",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config: pytest.Config) -> None:
    """Turns the flag into folder and options.

    Raises:
        UsageError: pytest-benchmark is not there, or other processes would run beside the benchmarks.
    """
    config.addinivalue_line("markers", "full: a benchmark that only --benchmark-full runs")
    if config.getoption("run_every_benchmark") or config.getoption("run_benchmarks_on"):
        config.option.run_benchmarks = True
    beside = config.getoption("dist", "no") != "no"  # pytest-xdist runs several processes
    if not config.getoption("run_benchmarks"):
        # Nothing can be timed beside other processes: pytest-benchmark is off, as it would be with a warning.
        config.option.benchmark_disable |= beside
        return
    if beside:
        raise pytest.UsageError("--benchmark times one thing at a time: leave out -n and --dist")
    if not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install pytest-benchmark")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:  # files or folders that were named stay
        config.args = [str(config.rootpath / "benchmarks")]
    # Without timing, pytest-benchmark forbids its own --benchmark-only; the folder holds nothing else anyway.
    untimed = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    config.option.benchmark_only = not (untimed or config.getoption("benchmark_skip"))
    every = config.getoption("run_every_benchmark")
    for name, value in (FULL if every else QUICK).items():
        if not _given(config, name):
            setattr(config.option, f"benchmark_{name}", value)
    # An exit code and a line say so; at the end of the session pyproject.toml would make a traceback of it.
    config.addinivalue_line("filterwarnings", "ignore:Not saving anything, no benchmarks have been run")
    config.option.benchmark_disable_gc = True
    config.option.benchmark_save_data = True  # without rounds two runs cannot be compared
    if config.option.benchmark_only:
        if not (config.getoption("benchmark_save") or config.getoption("benchmark_autosave")):
            config.option.benchmark_save = "full" if every else "quick"
        from depthgauge.timing.saving import AsTheyFinish  # noqa: PLC0415 - the tests need none of it

        config.pluginmanager.register(AsTheyFinish(config), "depthgauge-saving")


def _given(config: pytest.Config, name: str) -> bool:
    """Whether the user gave that option of pytest-benchmark, wherever pytest takes options from."""
    option = f"--benchmark-{name.replace('_', '-')}"
    words = [*config.invocation_params.args, *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    words += config.getini("addopts")
    return any(str(word).partition("=")[0] == option for word in words)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the quick selection."""
    if not config.getoption("run_benchmarks") or config.getoption("run_every_benchmark"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
